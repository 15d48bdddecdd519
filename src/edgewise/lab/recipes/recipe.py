"""What a recipe is: the runs of a figure, how they are laid out, and what they must show."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgewise.lab.configs import RunConfig
from edgewise.lab.ladders import Ladder, ladders
from edgewise.lab.results.phase_diagram import TEST_LOSS, CellValue
from edgewise.lab.results.runs import Run

SCALES = ("demo", "embedded", "desk", "paper")  # from minutes over hours to days


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One finding of the paper, held against the stored results."""

    text: str
    expected: str
    measured: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A column of the stored rows, as one column of panels."""

    column: str
    label: str
    log: bool = True
    times_lr: bool = False
    """Show lr × column, with the stability limit as a level; otherwise limit/lr as a curve."""
    threshold: bool = False
    """Draw the stability limit."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Curves over the steps: a row of panels for each `row` label, a line for each `line` label."""

    quantities: tuple[Quantity, ...]
    row: Callable[[RunConfig], str]
    line: Callable[[RunConfig], str]


@dataclass(frozen=True, kw_only=True)
class PhaseDiagrams:
    """A value over target rate × warmup, a panel for each `panel` label."""

    panel: Callable[[RunConfig], str]
    value: CellValue = TEST_LOSS
    columns: int | None = None
    """Panels side by side, each line of them with axes and colours of its own; shared by all if not given."""
    climbs: bool = True
    """Whether the rates of a row are trained upwards until training fails; otherwise all of them are."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A value, mean and deviation over seeds, for each `row` label and `column` label."""

    row: Callable[[RunConfig], str]
    column: Callable[[RunConfig], str]
    value: CellValue


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What the best warmup length gains over none, over the distance of the target from the edge at the start."""

    panel: Callable[[RunConfig], str]
    line: Callable[[RunConfig], str]
    """What one phase diagram is of; runs of one step measure where it starts."""
    value: CellValue
    tolerance: Callable[[RunConfig], float]
    """What a gain must be above to count, in units of the value; the same for all runs of a panel."""


Layout = Trajectories | PhaseDiagrams | Table | Gains


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A figure of the paper."""

    id: str
    title: str
    finding: str
    """What to see in it, in two or three sentences."""
    configs: Callable[[str], tuple[RunConfig, ...]]
    """Scale → runs."""
    claims: Callable[[Sequence[Run]], list[Claim]]
    """All runs of the figure → what holds on them; asked where a sweep ends, not where results are read."""
    layout: Layout

    def ladders(self, scale: str) -> list[Ladder]:
        """Return the runs as they are to be trained: the rates of a phase diagram upwards, until training fails."""
        configs = self.configs(scale)
        layout = self.layout
        climbs = isinstance(layout, Gains) or (
            isinstance(layout, PhaseDiagrams) and layout.climbs and layout.value.of_training
        )
        return ladders(configs) if climbs else [(config,) for config in configs]


def no_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return nothing: the recipe claims nothing."""
    return []


LOSS = Quantity(column="train_loss", label="training loss")
SHARPNESS = Quantity(column="sharpness", label="sharpness λ", threshold=True)
PRECONDITIONED_SHARPNESS = Quantity(
    column="preconditioned_sharpness", label="preconditioned sharpness", threshold=True
)


def stability_limits(run: Run) -> tuple[float, ...]:
    """Return the largest stable lr × (preconditioned) sharpness, and before it the early one where it differs.

    The early one is 2, while momentum has yet to build up. Empty where the optimizer has no limit, or none was stored.
    """
    late = _stored_limit(run)
    if late is None or math.isnan(late):
        return ()
    late = float(f"{late:.6g}")  # runs that differ in rounding alone share one line
    optimizer = run.config.optimizer
    early = "momentum" in optimizer.traits.options and optimizer.momentum
    return (2.0, late) if early else (late,)


def beside_limit(text: str, run: Run, judge: Callable[[float], Claim]) -> Claim:
    """Return the claim, given the stability limit that training stored; without one it says so and does not hold.

    Args:
        text: what is claimed, where there is no limit to claim it of.
        run: whose outcome holds the limit, unless an earlier edgewise stored the run.
        judge: limit → claim.
    """
    limit = _stored_limit(run)
    if limit is None:
        measured = "the stability limit is not stored: train again, in a new folder"
        return Claim(text=text, expected="told beside the stability limit", measured=measured, holds=False)
    return judge(limit)


def _stored_limit(run: Run) -> float | None:
    limit: float | None = run.outcome.get("stability_limit")
    return limit


def parameterization_label(config: RunConfig) -> str:
    """Return the parameterization as the figures name it."""
    return {"sp": "SP", "ntp": "NTP", "mup": "μP", "simple-mup": "simple μP"}[config.model.parameterization]


def optimizer_label(config: RunConfig) -> str:
    """Return the optimizer as the figures name it."""
    traits = config.optimizer.traits
    name = (config.batch_size is None and traits.full_batch_label) or traits.label
    has_momentum = "momentum" in traits.options and config.optimizer.momentum
    return f"{name} with momentum" if has_momentum else name


def warmup_label(config: RunConfig) -> str:
    """Return the warmup as the figures name it: by its length, if it has one."""
    warmup = config.warmup
    if not warmup.traits.has_length:
        return warmup.traits.label
    return f"{warmup.traits.label} = {warmup.steps}" + (" from η_c" if warmup.lr_init == "critical" else "")


SGD_CURVES = Trajectories(
    quantities=(
        LOSS,
        SHARPNESS,
        Quantity(column="sharpness", label="η·λ", log=False, times_lr=True, threshold=True),
    ),
    row=parameterization_label,
    line=warmup_label,
)
ADAM_CURVES = replace(
    SGD_CURVES,
    quantities=(
        LOSS,
        PRECONDITIONED_SHARPNESS,
        replace(SHARPNESS, threshold=False),
    ),  # λ alone has no threshold
)


def at_edge(run: Run, column: str) -> np.ndarray[Any, Any]:
    """Return lr × column over the last third of the run, where it was measured."""
    steps, values = run.measured(column)
    rates = run.columns["lr"][steps.astype(int)]
    return (rates * values)[steps >= steps[-1] * 2 / 3]


def number(value: float) -> str:
    """Return a number with three significant digits, or what it is instead."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"
