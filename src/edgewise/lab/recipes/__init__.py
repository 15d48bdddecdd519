"""The figures of the paper, each a recipe."""

from edgewise.errors import known_name
from edgewise.lab.recipes import fig1, fig2, fig4, fig7
from edgewise.lab.recipes.recipe import (
    SCALES,
    Claim,
    PhaseDiagrams,
    Quantity,
    Recipe,
    Trajectories,
    late_stability_limit,
)

__all__ = [
    "DEMO",
    "RECIPES",
    "SCALES",
    "Claim",
    "PhaseDiagrams",
    "Quantity",
    "Recipe",
    "Trajectories",
    "late_stability_limit",
    "recipe",
]

RECIPES = {r.id: r for r in (fig1.RECIPE, fig2.FIG2, fig4.RECIPE, fig2.FIG6, fig7.RECIPE)}
DEMO = ("fig1", "fig6", "fig4")  # three parts, in the order of the story


def recipe(name: str) -> Recipe:
    """Return a recipe by its figure id.

    Raises:
        UnknownNameError: there is none.
    """
    return RECIPES[known_name("figure", name, RECIPES)]
