"""How far apart seeds are in what two kinds of claims compare: η·λ at the edge, and last training losses.

    python docs/studies/claim_seeds.py [scale] [seeds]

A line for each seed. Figures 1 and 8 to 10, the flat start without warmup: η·λ over the last third, smallest, largest
and median, by the function that the claims are judged with. Figure 31: the last training losses of GI-Adam and RI-Adam,
and their ratio.
"""

import sys
from dataclasses import replace

import numpy as np

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import RECIPES
from edgewise.lab.recipes.recipe import at_edge
from edgewise.lab.results.runs import Run
from edgewise.lab.training import train


def trained(config: RunConfig) -> Run:
    """Return the run, trained here and not stored."""
    result = train(config)
    names = dict.fromkeys(name for row in result.rows for name in row)
    columns = {name: np.array([row.get(name, np.nan) for row in result.rows], float) for name in names}
    return Run(config=config, columns=columns, outcome=result.outcome)


def edges(figure: str, scale: str, seeds: range) -> None:
    """Print where η·λ is at the end, of a figure's flat start without warmup."""
    (config,) = (
        c for c in RECIPES[figure].configs(scale) if (c.model.parameterization, c.warmup.steps) == ("mup", 1)
    )
    for seed in seeds:
        products = at_edge(trained(replace(config, seed=seed)), "sharpness")
        low, median, high = products.min(), np.median(products), products.max()
        print(f"{figure} seed {seed}: η·λ {low:.2f} to {high:.2f}, median {median:.2f}", flush=True)


def last_losses(scale: str, seeds: range) -> None:
    """Print what GI-Adam and RI-Adam end at in figure 31."""
    configs = [replace(c, measure=()) for c in RECIPES["fig31"].configs(scale)]
    for parameterization in dict.fromkeys(c.model.parameterization for c in configs):
        for seed in seeds:
            ends = {
                c.optimizer.name: trained(replace(c, seed=seed)).columns["train_loss"][-1]
                for c in configs
                if (c.model.parameterization, c.optimizer.name != "adam") == (parameterization, True)
            }
            ratio = ends["ri-adam"] / ends["gi-adam"]
            its = ", ".join(f"{name} {loss:.3g}" for name, loss in ends.items())
            print(f"fig31 {parameterization} seed {seed}: {its}, ratio {ratio:.2f}", flush=True)


def main() -> None:
    """Train and print, figure by figure."""
    scale = sys.argv[1] if len(sys.argv) > 1 else "demo"
    seeds = range(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    last_losses(scale, seeds)
    for figure in ("fig8", "fig1", "fig10", "fig9"):
        edges(figure, scale, seeds)


if __name__ == "__main__":
    main()
