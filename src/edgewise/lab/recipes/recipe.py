"""What a recipe is: the runs of a figure, how they are laid out, and what they must show."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.lab.configs import OptimizerConfig, RunConfig
from edgewise.lab.ladders import Ladder, ladders
from edgewise.lab.results.phase_diagram import TEST_LOSS, CellValue
from edgewise.lab.results.runs import Run

SCALES = ("demo", "embedded", "paper")


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
    layout: Trajectories | PhaseDiagrams | Table

    def ladders(self, scale: str) -> list[Ladder]:
        """Return the runs as they are to be trained: the rates of a phase diagram upwards, until training fails."""
        configs = self.configs(scale)
        climbs = (
            isinstance(self.layout, PhaseDiagrams) and self.layout.climbs and self.layout.value.of_training
        )
        return ladders(configs) if climbs else [(config,) for config in configs]


def no_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return nothing: the recipe claims nothing."""
    return []


LOSS = Quantity(column="train_loss", label="training loss")
SHARPNESS = Quantity(column="sharpness", label="sharpness λ", threshold=True)
SHARPNESS_ALONE = Quantity(column="sharpness", label="sharpness λ")  # of Adam: no threshold of its own
SHARPNESS_TIMES_RATE = Quantity(column="sharpness", label="η·λ", log=False, times_lr=True, threshold=True)
PRECONDITIONED_SHARPNESS = Quantity(
    column="preconditioned_sharpness", label="preconditioned sharpness", threshold=True
)


def late_stability_limit(optimizer: OptimizerConfig) -> float:
    """Return the largest stable lr × (preconditioned) sharpness late in training (paper, section 2).

    2(1 + β) for gradient descent with momentum β, 2(1 + β₁)/(1 − β₁) for the Adam family but NAdam, which has that
    over 1 + 2β₁. NaN for Lion: its steps have the size of the rate wherever it is, so that none is the largest stable.
    """
    if optimizer.name == "sgd":
        return 2 * (1 + optimizer.momentum)
    if optimizer.name == "lion":
        return math.nan
    beta1 = optimizer.betas[0]
    limit = 2 * (1 + beta1) / (1 - beta1)
    return limit / (1 + 2 * beta1) if optimizer.name == "nadam" else limit


def stability_limits(optimizer: OptimizerConfig) -> tuple[float, ...]:
    """Return the late limit, and before it the early one where it differs: 2, while momentum has yet to build up.

    Empty where there is none.
    """
    late = late_stability_limit(optimizer)
    if math.isnan(late):
        return ()
    return (2.0, late) if optimizer.name == "sgd" and late != 2 else (late,)


def parameterization_label(config: RunConfig) -> str:
    """Return the parameterization as the figures name it."""
    return {"sp": "SP", "ntp": "NTP", "mup": "μP", "simple-mup": "simple μP"}[config.model.parameterization]


def optimizer_label(config: RunConfig) -> str:
    """Return the optimizer as the figures name it."""
    if config.optimizer.name == "sgd":
        name = "GD" if config.batch_size is None else "SGD"
        return f"{name} with momentum" if config.optimizer.momentum else name
    return {
        "adam": "Adam",
        "adamw": "AdamW",
        "gi-adam": "GI-Adam",
        "gi-adamw": "GI-AdamW",
        "ri-adam": "RI-Adam",
        "radam": "RAdam",
        "nadam": "NAdam",
        "lion": "Lion",
    }[config.optimizer.name]


def warmup_label(config: RunConfig) -> str:
    """Return the warmup as the figures name it: by its length, if it has one."""
    if config.warmup.kind != "linear":
        return {"catapult": "catapults", "edge": "EdgeWarmup"}[config.warmup.kind]
    return f"T_wrm = {config.warmup.steps}" + (" from η_c" if config.warmup.lr_init == "critical" else "")


def at_edge(run: Run, column: str) -> np.ndarray[Any, Any]:
    """Return lr × column over the last third of the run, where it was measured."""
    steps, values = run.measured(column)
    rates = run.columns["lr"][steps.astype(int)]
    return (rates * values)[steps >= steps[-1] * 2 / 3]


def number(value: float) -> str:
    """Return a number with three significant digits, or what it is instead."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"
