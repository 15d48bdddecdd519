"""Runs as a diagram: target learning rate × warmup length, with failure, divergence and absence kept apart."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.lab.store import Run


class Cell(enum.Enum):
    """What became of a cell."""

    TRAINED = "trained"
    FAILED = "failed"  # finished, but learned nothing
    DIVERGED = "diverged"  # the loss is not finite
    MISSING = "missing"  # no such run


@dataclass(frozen=True, kw_only=True)
class PhaseDiagram:
    """Rows are warmup lengths, columns target rates, both ascending."""

    lr_targets: tuple[float, ...]
    warmup_steps: tuple[int, ...]
    test_loss: np.ndarray[Any, Any]  # (warmups, rates), mean over seeds, NaN where missing
    cells: np.ndarray[Any, Any]  # (warmups, rates) of Cell; the worst over seeds

    def boundary(self, warmup_steps: int) -> float:
        """Return the largest target rate up to which every cell of a row trained; 0 if none did."""
        row = self.cells[self.warmup_steps.index(warmup_steps)]
        largest = 0.0
        for lr, cell in zip(self.lr_targets, row, strict=True):
            if cell is not Cell.TRAINED:
                break
            largest = lr
        return largest

    def best(self, warmup_steps: int) -> tuple[float, float]:
        """Return the target rate with the lowest test loss among a row's trained cells, and that loss."""
        i = self.warmup_steps.index(warmup_steps)
        losses = np.where([c is Cell.TRAINED for c in self.cells[i]], self.test_loss[i], np.inf)
        j = int(np.argmin(losses))
        return self.lr_targets[j], float(losses[j])

    def loss_at(self, lr_target: float, warmup_steps: int) -> float:
        """Return the test loss of one cell."""
        i, j = self.warmup_steps.index(warmup_steps), self.lr_targets.index(lr_target)
        return float(self.test_loss[i, j])


def cell_of(outcome: dict[str, Any]) -> Cell:
    """Return whether the run of this outcome trained.

    It failed when its accuracy is below 1.5 × a random guess (Kalra & Barkeshli 2024), or its test loss is no
    better than that of the best constant output, the class frequencies.
    """
    if outcome["diverged"]:
        return Cell.DIVERGED
    guessing = outcome["test_accuracy"] < 1.5 / outcome["num_classes"]
    return Cell.FAILED if guessing or outcome["test_loss"] >= outcome["guess_loss"] else Cell.TRAINED


def phase_diagram(runs: Sequence[Run]) -> PhaseDiagram:
    """Arrange runs that differ in target rate, warmup length and seed."""
    rates = sorted({run.config.optimizer.lr for run in runs})
    warmups = sorted({run.config.warmup.steps for run in runs})
    test_loss = np.full((len(warmups), len(rates)), math.nan)
    cells = np.full((len(warmups), len(rates)), Cell.MISSING, dtype=object)
    severity = list(Cell)
    for i, steps in enumerate(warmups):
        for j, rate in enumerate(rates):
            seeds = [
                run for run in runs if (run.config.warmup.steps, run.config.optimizer.lr) == (steps, rate)
            ]
            if seeds:
                test_loss[i, j] = np.mean([run.outcome["test_loss"] for run in seeds])
                cells[i, j] = max((cell_of(run.outcome) for run in seeds), key=severity.index)
    return PhaseDiagram(
        lr_targets=tuple(rates), warmup_steps=tuple(warmups), test_loss=test_loss, cells=cells
    )
