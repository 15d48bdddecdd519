"""The picture for the page on the evidence of `edgewise inspect`, from the stored runs of benchmarks/advice.py.

`PYTHONPATH=benchmarks python docs/studies/advice_plots.py`, where transformers and Lightning are installed: writes
docs/images/inspect-rates.png.
"""

import math
from pathlib import Path

from advice_grid import RUNS, Runs
from advice_tasks import PAIRS
from matplotlib.figure import Figure

from advice import METHODS, ask_all, read_truth
from edgewise.lab.report import colors

IMAGE = Path(__file__).parents[1] / "images" / "inspect-rates.png"
_STYLES = {
    "inspect": ("o", colors.BLUE),
    "steepest point": ("^", colors.VERMILLION),
    "LRFinder": ("x", colors.GRAY),
}
_LOWEST = 1e-4  # drawn at the edge


def main() -> None:
    runs = Runs(RUNS / "grid.csv").read()
    answers = {(answer.pair, answer.method): answer.lr for answer in ask_all(RUNS / "answers.csv")}
    pairs = sorted(PAIRS, key=lambda pair: pair.held_out, reverse=True)
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(0.5, 2, color=colors.GREEN, alpha=0.15, label="within a factor of 2 of the best")
    for name in METHODS:
        marker, color = _STYLES[name]
        places = [
            (max(answers[pair.name, name] / read_truth(pair, runs).best, _LOWEST), i)
            for i, pair in enumerate(pairs)
            if math.isfinite(answers[pair.name, name])
        ]
        axes.scatter(*zip(*places, strict=True), marker=marker, color=color, label=name, zorder=3)
    for i, pair in enumerate(pairs):
        truth = read_truth(pair, runs)
        if truth.learns:
            axes.plot(
                truth.boundary / truth.best,
                i,
                "|",
                color=colors.PINK,
                markersize=10,
                label=None if i else "training fails",
            )
    axes.set_yticks(
        range(len(pairs)),
        [f"{pair.name}{' (held out)' if pair.held_out else ''}" for pair in pairs],
        fontsize=8,
    )
    axes.set_xscale("log")
    axes.set_xlim(_LOWEST / 1.5, 200)
    axes.set_xlabel("suggested rate ÷ best of the grid (left edge: 1e-4 or less)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
