"""A task, an optimizer and a target rate: what EdgeWarmup and the linear lengths come to in it."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes.edge_warmup.grid import EDGE, LENGTHS, LINEAR, SEEDS, TASKS
from edgewise.lab.recipes.recipe import optimizer_label
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.results.runs import Run

_CLOSE = 0.01  # relative gap that counts as a tie, or one deviation over the seeds if that is larger


def task_of(config: RunConfig) -> str:
    """Return the name of a run's task."""
    same = {"data": config.data, "model": config.model, "batch_size": config.batch_size}
    return next(
        name
        for name, settings in TASKS.items()
        if same == {key: settings[key] for key in same} and settings.get("loss", "xent") == config.loss
    )


def is_edge(config: RunConfig) -> bool:
    """Whether the run is one of EdgeWarmup."""
    return config.warmup.kind == EDGE


def key_of(config: RunConfig) -> tuple[str, str, float]:
    """Return a run's cell: task, optimizer and target rate."""
    optimizer = config.optimizer
    return task_of(config), "sgd-m" if optimizer.momentum else optimizer.name, optimizer.lr


def row_of(config: RunConfig) -> str | int:
    """Return what a run's cell is trained with: the length of a linear warmup, or the kind of another."""
    return config.warmup.steps if config.warmup.kind == LINEAR else config.warmup.kind


def panel_label(config: RunConfig) -> str:
    """Return task and optimizer."""
    return f"{task_of(config)}; {optimizer_label(config)}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One task, optimizer and target rate: final test losses over the seeds, by warmup."""

    task: str
    optimizer: str
    lr: float
    edge: tuple[float, ...]  # infinite where a seed did not train
    linear: dict[int, tuple[float, ...]]  # by length
    overhead: float  # of EdgeWarmup, the mean over the seeds

    @property
    def key(self) -> tuple[str, str, float]:
        """The cell, as `key_of` says it of a run."""
        return self.task, self.optimizer, self.lr

    @property
    def best_length(self) -> int:
        """The length with the smallest mean loss."""
        return min(LENGTHS, key=lambda steps: statistics.fmean(self.linear[steps]))

    @property
    def trainable(self) -> bool:
        """Whether any length trains every seed."""
        return math.isfinite(statistics.fmean(self.linear[self.best_length]))

    def gap(self, length: int) -> float:
        """Return mean loss over that of a linear length, minus 1."""
        other = statistics.fmean(self.linear[length])
        mine = statistics.fmean(self.edge)
        return mine / other - 1 if math.isfinite(other) else -math.inf if math.isfinite(mine) else 0.0

    def ties(self, length: int) -> bool:
        """Whether the gap is at most 1 %, or one deviation over the seeds if that is larger."""
        others = self.linear[length]
        if not math.isfinite(statistics.fmean(others)):
            return True
        deviation = statistics.stdev(others) / statistics.fmean(others) if len(others) > 1 else 0.0
        return self.gap(length) <= max(_CLOSE, deviation)


def final_loss(outcome: dict[str, Any]) -> float:
    """Return the test loss at the end, infinite where the run did not train."""
    return float(outcome["test_loss"]) if cell_of(outcome) is Cell.TRAINED else math.inf


def cell_results(runs: Sequence[Run], seeds: Iterable[int] = SEEDS) -> list[CellResult]:
    """Return the cells of the grid, over some seeds."""
    losses: dict[tuple[str, str, float], dict[str | int, list[float]]] = {}
    overheads: dict[tuple[str, str, float], list[float]] = {}
    for run in runs:
        if run.config.seed not in seeds:
            continue
        key = key_of(run.config)
        losses.setdefault(key, {}).setdefault(row_of(run.config), []).append(final_loss(run.outcome))
        if is_edge(run.config):
            overheads.setdefault(key, []).append(run.outcome["warmup"]["overhead"])
    return [
        CellResult(
            task=task,
            optimizer=optimizer,
            lr=lr,
            edge=tuple(seen[EDGE]),
            linear={steps: tuple(seen[steps]) for steps in LENGTHS},
            overhead=statistics.fmean(overheads[task, optimizer, lr]),
        )
        for (task, optimizer, lr), seen in losses.items()
        if {EDGE, *LENGTHS} <= set(seen)
    ]


def fixed_length(cells: Sequence[CellResult]) -> int:
    """Return the one length that is best on average: fewest failures, then the smallest mean log loss."""

    def badness(steps: int) -> tuple[int, float]:
        means = [statistics.fmean(cell.linear[steps]) for cell in cells]
        finite = [math.log(mean) for mean in means if math.isfinite(mean)]
        return len(means) - len(finite), statistics.fmean(finite) if finite else math.inf

    return min(LENGTHS, key=badness)
