"""Runs as a diagram: target learning rate × warmup, with failure, divergence and absence kept apart."""

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.lab.configs import RunConfig
from edgewise.lab.results.runs import Absent, Run

_ROUNDING = 1e-6  # of accuracies, which are means in float32

Row = int | str  # length of the warmup, or the name of one without


class Cell(enum.Enum):
    """What became of a cell."""

    TRAINED = "trained"
    FAILED = "failed"  # finished, but learned nothing
    DIVERGED = "diverged"  # the loss is not finite
    MISSING = "missing"  # no such run
    WAITING = "waiting"  # of one seed at least: not trained yet
    ERROR = "error"  # of one seed at least: its training raised


@dataclass(frozen=True)
class OutcomeEntry:
    """A number that a run's outcome holds, by its name; `a.b` is entry b of entry a. NaN where it is None.

    >>> OutcomeEntry("test_loss")
    OutcomeEntry(name='test_loss')
    """

    name: str

    def __call__(self, run: Run) -> float:
        """Return the number."""
        entry: Any = run.outcome
        for name in self.name.split("."):
            entry = entry[name]
        return math.nan if entry is None else float(entry)


@dataclass(frozen=True, kw_only=True)
class CellValue:
    """The number that a cell shows."""

    label: str
    of: Callable[[Run], float]
    """An `OutcomeEntry` can be read by everybody; what a function returns is known once the sweep has ended."""
    lower_is_better: bool = False
    digits: int = 2
    of_training: bool = True
    """Whether it is worth something only where training succeeded."""

    def text(self, value: float) -> str:
        """Return the number as a cell shows it."""
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # + 0.0: no minus before a zero


TEST_LOSS = CellValue(label="test loss", of=OutcomeEntry("test_loss"), lower_is_better=True)
TEST_ACCURACY = CellValue(label="test accuracy", of=OutcomeEntry("test_accuracy"), digits=3)
BEST_ACCURACY = CellValue(label="best test accuracy", of=OutcomeEntry("best_test_accuracy"), digits=3)


@dataclass(frozen=True, kw_only=True)
class PhaseDiagram:
    """Rows are warmups, columns target rates, both ascending; rows without a length come last."""

    value: CellValue
    lr_targets: tuple[float, ...]
    warmups: tuple[Row, ...]
    mean: np.ndarray[Any, Any]  # (warmups, rates), over the seeds there are, NaN where there is none
    deviation: np.ndarray[Any, Any]  # (warmups, rates), the sample deviation over seeds, NaN for a single one
    cells: np.ndarray[Any, Any]  # (warmups, rates) of Cell; the worst over seeds

    def complete(self, warmup: Row) -> bool:
        """Whether nothing of a row is waiting or ended with an error: only then its boundary and its best are known."""
        return not {Cell.WAITING, Cell.ERROR} & set(self.cells[self.warmups.index(warmup)])

    def boundary(self, warmup: Row) -> float:
        """Return the last rate of a row before training fails; 0 if nothing trained.

        Cells that failed below the first that trained do not count: their rates are too small to learn anything in
        the steps there are.
        """
        row = self.cells[self.warmups.index(warmup)]
        largest = 0.0
        for lr, cell in zip(self.lr_targets, row, strict=True):
            if cell is Cell.TRAINED:
                largest = lr
            elif largest or cell is not Cell.FAILED:
                break
        return largest

    def best(self, warmup: Row) -> tuple[float, float]:
        """Return the target rate with the best value among a row's trained cells, and that value."""
        i = self.warmups.index(warmup)
        sign = 1.0 if self.value.lower_is_better else -1.0
        values = np.where([c is Cell.TRAINED for c in self.cells[i]], sign * self.mean[i], np.inf)
        j = int(np.argmin(values))
        return self.lr_targets[j], sign * float(values[j])

    def trained(self, warmup: Row) -> list[float]:
        """Return the target rates of a row at which all seeds trained, ascending."""
        row = self.cells[self.warmups.index(warmup)]
        return [lr for lr, cell in zip(self.lr_targets, row, strict=True) if cell is Cell.TRAINED]

    def at(self, lr_target: float, warmup: Row) -> float:
        """Return the value of one cell, NaN where it is missing."""
        return self._of_cell(self.mean, lr_target, warmup)

    def deviation_at(self, lr_target: float, warmup: Row) -> float:
        """Return the deviation over seeds of one cell, NaN where it is missing or of one seed."""
        return self._of_cell(self.deviation, lr_target, warmup)

    def _of_cell(self, values: np.ndarray[Any, Any], lr_target: float, warmup: Row) -> float:
        if lr_target not in self.lr_targets:
            return math.nan
        return float(values[self.warmups.index(warmup), self.lr_targets.index(lr_target)])


def cell_of(outcome: dict[str, Any]) -> Cell:
    """Return whether the run of this outcome trained.

    It failed when its accuracy is below 1.5 × a random guess (Kalra & Barkeshli 2024), or when it is no better than
    the best constant output. That is told by its test loss, beside that of the class frequencies. Where test data were
    looked at on the way, it is told by its best accuracy, beside the share of the most frequent class.
    """
    if outcome["diverged"]:
        return Cell.DIVERGED
    best = outcome.get("best_test_accuracy")
    guessing = (outcome["test_accuracy"] if best is None else best) < 1.5 / outcome["num_classes"]
    if best is None:
        constant = outcome["test_loss"] >= outcome["guess_loss"]
    else:
        constant = best <= outcome["guess_accuracy"] + _ROUNDING
    return Cell.FAILED if guessing or constant else Cell.TRAINED


def row_of(config: RunConfig) -> Row:
    """Return the row that a run belongs to."""
    return config.warmup.steps if config.warmup.traits.has_length else config.warmup.traits.label


def phase_diagram(runs: Sequence[Run | Absent], value: CellValue = TEST_LOSS) -> PhaseDiagram:
    """Arrange runs that differ in target rate, warmup and seed."""
    seeds: dict[tuple[Row, float], list[Run | Absent]] = {}
    for run in runs:
        seeds.setdefault((row_of(run.config), run.config.optimizer.lr), []).append(run)
    rates = sorted({rate for _, rate in seeds})
    warmups = sorted({row for row, _ in seeds}, key=lambda row: (isinstance(row, str), row))
    mean, deviation = (np.full((len(warmups), len(rates)), math.nan) for _ in range(2))
    cells = np.full((len(warmups), len(rates)), Cell.MISSING, dtype=object)
    severity = list(Cell)
    for (row, rate), group in seeds.items():
        at = warmups.index(row), rates.index(rate)
        values = [value.of(run) for run in group if isinstance(run, Run)]
        with np.errstate(invalid="ignore"):  # ∞ − ∞, where runs diverged
            mean[at] = np.mean(values) if values else math.nan
            deviation[at] = np.std(values, ddof=1) if len(values) > 1 else math.nan
        cells[at] = max((kind_of(run, value) for run in group), key=severity.index)
    return PhaseDiagram(
        value=value,
        lr_targets=tuple(rates),
        warmups=tuple(warmups),
        mean=mean,
        deviation=deviation,
        cells=cells,
    )


def kind_of(run: Run | Absent, value: CellValue) -> Cell:
    """Return what became of one run, where a figure shows this value."""
    if isinstance(run, Absent):
        return Cell.ERROR if run.failed else Cell.WAITING
    return cell_of(run.outcome) if value.of_training else Cell.TRAINED
