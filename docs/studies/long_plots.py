"""The phase diagrams that EdgeWarmup makes unnecessary, from the stored runs of benchmarks/long_runs.py.

`PYTHONPATH=benchmarks python docs/studies/long_plots.py`: writes docs/images/edge-warmup-plane.png, one seed a cell.
"""

import math
from pathlib import Path

import numpy as np
from advice_grid import trains
from long_runs import EDGE, LENGTHS, LINEAR, PICTURED, PLANE, LongRun, LongRuns, best_rate, seeds
from long_tasks import TASKS, Task
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

IMAGE = Path(__file__).parents[1] / "images" / "edge-warmup-plane.png"
_WORST = 1.25  # loss over the best, at the end of the colours
_COLORS = "viridis_r"


class Plane:
    """The final losses of a task, over its rates, with one seed."""

    def __init__(self, task: Task, runs: list[LongRun]) -> None:
        self.task = task
        self.lr = best_rate(task, runs)
        self._runs = [run for run in runs if run.task == task.name and run.seed == seeds(task)[0]]

    def row(self, way: str, share: float = 0.0) -> list[float]:
        """Return the losses over the rates, not a number where there is no run."""
        return [
            next(
                (
                    run.final
                    for run in self._runs
                    if (run.way, run.share) == (way, share) and math.isclose(run.lr, multiple * self.lr)
                ),
                math.nan,
            )
            for multiple in PLANE
        ]

    def trains(self, loss: float) -> bool:
        """Whether a loss is at least half of the way from the best constant output to the best one."""
        return trains(self.task.constant_loss(), loss, self.best)

    @property
    def best(self) -> float:
        """The lowest loss of all rates and lengths."""
        return min(min(self.row(LINEAR, share)) for share in LENGTHS)


def draw(axes: Axes, plane: Plane, rows: list[tuple[str, list[float]]], *, best_marked: bool) -> None:
    """Draw rows of losses, with their numbers, failures crossed."""
    losses = np.array([row for _, row in rows])
    trained = np.vectorize(plane.trains)(losses)
    axes.pcolormesh(
        np.where(trained, losses / plane.best, np.nan),
        cmap=_COLORS,
        norm=Normalize(1, _WORST),
        edgecolors="white",
        linewidth=1,
    )
    best = np.unravel_index(np.nanargmin(np.where(trained, losses, np.nan)), losses.shape)
    for (i, j), loss in np.ndenumerate(losses):
        text = f"{loss:.3g}" if trained[i, j] else "×"
        star = "★ " if best_marked and (i, j) == best else ""
        dark = trained[i, j] and loss / plane.best > 1 + 0.55 * (_WORST - 1)
        axes.text(
            j + 0.5,
            i + 0.5,
            star + text,
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axes.set_facecolor("#e4e4e4")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [name for name, _ in rows], fontsize=9)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def main() -> None:
    runs = LongRuns().read()
    planes = [Plane(task, runs) for task in TASKS if task.name in PICTURED]
    figure = Figure(figsize=(9.5, 3.3 * len(planes)), layout="constrained")
    panels = figure.subplots(
        2 * len(planes), 1, height_ratios=[len(LENGTHS), 1] * len(planes), squeeze=False
    )[:, 0]
    for plane, (above, below) in zip(planes, panels.reshape(-1, 2), strict=True):
        lengths = [
            (f"linear, {max(1, round(share * plane.task.num_updates)):,}", plane.row(LINEAR, share))
            for share in LENGTHS
        ]
        draw(above, plane, lengths, best_marked=True)
        draw(below, plane, [("EdgeWarmup", plane.row(EDGE))], best_marked=False)
        title = f"{plane.task.name}: final loss after {plane.task.num_updates:,} updates"
        above.set_title(title, fontsize=10, loc="left")
        below.set_xticks(np.arange(len(PLANE)) + 0.5, [f"{multiple * plane.lr:.2g}" for multiple in PLANE])
        above.set_xticks([])
    panels[-1].set_xlabel("target rate: for EdgeWarmup, a ceiling")
    colors = ScalarMappable(Normalize(1, _WORST), _COLORS)
    figure.colorbar(colors, ax=panels, label="loss ÷ the best of the plane", aspect=40, pad=0.01)
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
