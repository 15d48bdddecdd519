"""The picture for the page on EdgeWarmup, from the stored runs of benchmarks/edge_ceilings.py and of its grid.

`PYTHONPATH=benchmarks python docs/studies/edge_ceilings_plots.py [FOLDER OF RUNS]`: writes
docs/images/edge-warmup-ceilings.png. Points of EdgeWarmup are single runs; those of the grid are means of the seeds
that a rate has.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from advice_grid import RUNS, SEEDS, Run, Runs, best_rate
from advice_tasks import PAIRS, Pair
from edge_tables import EDGE_RUNS, EdgeRun, edge_runs
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from edgewise.lab.configs import WarmupConfig
from edgewise.lab.report.colors import GRAY, of_warmup

IMAGE = Path(__file__).parents[1] / "images" / "edge-warmup-ceilings.png"
_COLUMNS = 4
_LINEAR = of_warmup(WarmupConfig(steps=200))
_SHADES = LinearSegmentedColormap.from_list("", ["black", of_warmup(WarmupConfig(kind="edge")), "white"])
# The shade and size of a ceiling's points: where all are at one place, each is still seen.
_STYLES = {1: (_SHADES(0.75), 50), 4: (_SHADES(0.5), 30), 16: (_SHADES(0.25), 14), 64: (_SHADES(0.0), 4)}
_RATES = (1 / 64, 128)
_LOWEST, _HIGHEST = 0.65, 1.7  # losses beyond are drawn at the edge
_GRID_LABEL = "the grid: linear warmup over a tenth of the run"


def curve(pair: Pair, grid: Sequence[Run]) -> list[tuple[float, float]]:
    """Return rates over the best one, and the losses there over those of the best on the same batches."""
    best, losses = best_rate(pair, grid)
    at_best = dict(zip(SEEDS, losses, strict=True))
    own = [run for run in grid if run.pair == pair.name]
    points = []
    for lr in sorted({run.lr for run in own}):
        runs = [run for run in own if run.lr == lr]
        points.append((lr / best, sum(run.final for run in runs) / sum(at_best[run.seed] for run in runs)))
    return points


def draw(axes: Axes, pair: Pair, grid: Sequence[Run], runs: Sequence[EdgeRun]) -> None:
    """Draw the panel of a pair."""
    rates, ratios = zip(*curve(pair, grid), strict=True)
    inside = [min(ratio, 2 * _HIGHEST) for ratio in ratios]  # infinite: up, out of the panel
    axes.plot(rates, inside, ".-", color=_LINEAR, linewidth=0.8, markersize=3)
    axes.axhline(1, color=GRAY, linewidth=0.4)
    at_best = dict(zip(SEEDS, best_rate(pair, grid)[1], strict=True))
    for ceiling, (color, size) in _STYLES.items():
        for run in runs:
            if run.pair == pair.name and run.ceiling == ceiling:
                ratio = run.final / at_best[run.seed]
                rate = run.held if math.isfinite(run.held) else run.ceiling
                marker = "^" if ratio > _HIGHEST else "v" if ratio < _LOWEST else "o"
                place = min(max(ratio, _LOWEST), _HIGHEST)
                axes.scatter(
                    rate, place, size, color=color, marker=marker, zorder=3, linewidth=0, clip_on=False
                )
    axes.set_title(pair.name, fontsize=8, pad=3)


def main() -> None:
    grid = Runs(RUNS / "grid.csv").read()
    runs = edge_runs(Path(sys.argv[1]) if sys.argv[1:] else EDGE_RUNS).read()
    num_rows = len(PAIRS) // _COLUMNS
    figure = Figure(figsize=(8.5, 1.55 * num_rows + 1), layout="constrained")
    panels = figure.subplots(num_rows, _COLUMNS, sharex=True, sharey=True)
    for axes, pair in zip(panels.flat, PAIRS, strict=True):
        draw(axes, pair, grid, runs)
    first = panels[0, 0]
    first.plot([], [], ".-", color=_LINEAR, linewidth=0.8, markersize=3, label=_GRID_LABEL)
    first.set_xscale("log", base=2)
    first.set_yscale("log")
    first.set_xlim(*_RATES)
    first.set_ylim(_LOWEST, _HIGHEST)
    first.set_xticks([1 / 16, 1 / 4, 1, 4, 16, 64], ["1/16", "1/4", "1", "4", "16", "64"])
    first.set_yticks([0.75, 1, 1.25, 1.5], ["0.75", "1", "1.25", "1.5"])
    first.minorticks_off()
    for axes in panels.flat:
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
    for ceiling, (color, size) in _STYLES.items():
        label = f"EdgeWarmup, ceiling {ceiling} × best rate"
        first.scatter([], [], size, color=color, linewidth=0, label=label)
    first.scatter(
        [], [], 20, color="white", edgecolor="black", marker="^", label="loss beyond the panel, or not finite"
    )
    for axes, pair in zip(panels[0], PAIRS, strict=False):
        half = "held out" if pair.held_out else "development"
        axes.set_title(f"{half}\n{pair.name}", fontsize=8, pad=3)
    figure.supxlabel(
        "rate ÷ best rate of the grid (of EdgeWarmup: the rate that the warmup ended at)", fontsize=9
    )
    figure.supylabel("final loss ÷ that at the best rate, on the same batches", fontsize=9)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
