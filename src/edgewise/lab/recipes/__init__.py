"""The figures of the paper, each a recipe."""

from pathlib import Path

from edgewise.arguments import known_name
from edgewise.lab.recipes import (
    edge_warmup,
    fig1,
    fig2,
    fig3,
    fig4,
    fig5,
    fig7,
    fig8,
    fig13,
    fig15,
    fig20,
    fig23,
    fig26,
    own,
    table1,
    warmups,
    when_warmup,
)
from edgewise.lab.recipes.recipe import (
    SCALES,
    Claim,
    PhaseDiagrams,
    Quantity,
    Recipe,
    Table,
    Trajectories,
    stability_limits,
)
from edgewise.lab.results.phase_diagram import CellValue, OutcomeEntry

__all__ = [
    "DEMO",
    "PAPER",
    "RECIPES",
    "SCALES",
    "CellValue",
    "Claim",
    "OutcomeEntry",
    "PhaseDiagrams",
    "Quantity",
    "Recipe",
    "Table",
    "Trajectories",
    "recipe",
    "stability_limits",
]

RECIPES = {
    r.id: r
    for r in (
        fig1.RECIPE,
        fig2.FIG2,
        fig3.FIG3,
        fig4.RECIPE,
        fig5.FIG5,
        fig2.FIG6,
        fig7.RECIPE,
        fig8.FIG8,
        fig8.FIG9,
        fig8.FIG10,
        fig8.FIG11,
        fig8.FIG12,
        fig13.FIG13,
        fig13.FIG14,
        fig15.FIG15,
        fig15.FIG16,
        fig15.FIG17,
        fig15.FIG18,
        fig3.FIG19,
        fig20.FIG20,
        fig3.FIG21,
        fig3.FIG22,
        fig23.FIG23,
        fig23.FIG24,
        fig23.FIG25,
        fig26.FIG26,
        fig5.FIG27,
        fig5.FIG28,
        fig5.FIG29,
        fig13.FIG30,
        fig26.FIG31,
        table1.TABLE1,
    )
}
PAPER = tuple(RECIPES)  # what "all" means
RECIPES |= {r.id: r for r in (edge_warmup.RECIPE, warmups.RECIPE, when_warmup.RECIPE)}
DEMO = ("fig1", "fig6", "fig4")  # three parts, in the order of the story


def recipe(name: str, file: Path | None = None) -> Recipe:
    """Return a recipe by its figure id, or the one in a file.

    Raises:
        UnknownNameError: there is none of that name.
        RecipeError: the file holds none.
    """
    if file is not None:
        return own.load(file)
    return RECIPES[known_name("figure", name, RECIPES)]
