"""What warmup gains at each target rate, over how far beyond the edge of stability training would start without it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgewise.lab.configs import RunConfig, WarmupConfig
from edgewise.lab.results.phase_diagram import Cell, CellValue, kind_of
from edgewise.lab.results.runs import Absent, Run

# Of η·λ at the first updates of gradient descent; also with momentum, which has yet to build up.
_EARLY_LIMIT = 2.0


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One target rate of a phase diagram, on one seed."""

    config: RunConfig
    """Of the run without warmup."""
    distance: float
    """η_trgt times the initial (preconditioned) sharpness, over the stability limit: training starts stable below 1."""
    value: float
    """That of the best length less that of none; ∞ where it trains with warmup alone, −∞ where without alone."""

    @property
    def target(self) -> str:
        """The target rate in its unit, as people write it."""
        optimizer = self.config.optimizer
        return f"{optimizer.lr:g}{'/λ₀' if optimizer.lr_unit == '1/sharpness' else ''}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How "warmup is needed where training would start beyond the edge" fares on the rates of a diagram."""

    below: int
    """Rates at which training starts stable: no warmup needed, says the rule."""
    missed: int
    """Those of them at which it gains all the same."""
    beyond: int
    """Rates at the edge or beyond it: warmup needed, says the rule."""
    found: int
    """Those of them at which it gains."""
    decided: int
    """Those of these at which nothing trains without it."""
    onset: Gain | None
    """The nearest from which on it gains at every rate and seed; none if at the largest it does not."""


def is_start(config: RunConfig) -> bool:
    """Whether a run is there for the curvature at its first update alone."""
    return config.whole_steps == 1


def gains(runs: Sequence[Run | Absent], value: CellValue) -> tuple[Gain, ...]:
    """Return what warmup gains at each target rate, nearest first; nothing of rates that are out of reach or not known.

    Out of reach is a rate that trains with no length. What is missing among the runs lies beyond the failure boundary,
    and what waits or raised is not known, as is the distance of a rate whose start was not measured.

    Args:
        runs: of one network and one optimizer: target rates × lengths × seeds, and where rates are absolute, a run of
            one step for each seed that measured the preconditioned sharpness.
        value: what is gained, the higher the better.
    """
    starts = {_origin(run.config): run for run in runs if isinstance(run, Run) and is_start(run.config)}
    cells: dict[RunConfig, list[Run | Absent]] = {}
    for run in runs:
        if not is_start(run.config):
            without = replace(run.config, warmup=replace(run.config.warmup, steps=1))
            cells.setdefault(without, []).append(run)
    found = [
        Gain(config=config, distance=_distance(config, starts), value=_gain(cell, value))
        for config, cell in cells.items()
        if not any(isinstance(run, Absent) for run in cell)
    ]
    known = [gain for gain in found if not math.isnan(gain.value + gain.distance)]
    return tuple(sorted(known, key=lambda gain: gain.distance))


def out_of_reach(runs: Sequence[Run | Absent], value: CellValue) -> int:
    """Return how many pairs of target rate and seed train with no length, of those that were tried."""
    kinds: dict[RunConfig, set[Cell]] = {}
    for run in runs:
        if not is_start(run.config):
            kinds.setdefault(replace(run.config, warmup=WarmupConfig()), set()).add(kind_of(run, value))
    return sum(kinds_of <= {Cell.FAILED, Cell.DIVERGED} for kinds_of in kinds.values())


def rule(found: Sequence[Gain], tolerance: float) -> Rule:
    """Return how the rule fares: warmup gains, that is more than the tolerance, where the distance is 1 or more."""
    below = [gain for gain in found if gain.distance < 1]
    beyond = [gain for gain in found if gain.distance >= 1]
    last = max((gain.distance for gain in found if gain.value <= tolerance), default=0.0)
    further = [gain for gain in found if gain.distance > last]
    return Rule(
        below=len(below),
        missed=sum(gain.value > tolerance for gain in below),
        beyond=len(beyond),
        found=sum(gain.value > tolerance for gain in beyond),
        decided=sum(gain.value == math.inf for gain in beyond),
        onset=min(further, key=lambda gain: gain.distance, default=None),
    )


def _origin(config: RunConfig) -> RunConfig:
    """Return what runs have in common that start at the same place with the same optimizer, whatever their rates."""
    return replace(
        config,
        optimizer=replace(config.optimizer, lr=1.0),
        warmup=WarmupConfig(),
        num_steps=1,
        schedule_steps=None,
        measure=(),
    )


def _distance(config: RunConfig, starts: dict[RunConfig, Run]) -> float:
    if config.optimizer.lr_unit == "1/sharpness":
        return config.optimizer.lr / _EARLY_LIMIT
    start = starts.get(_origin(config))
    if start is None:
        return math.nan
    _, measured = start.measured("preconditioned_sharpness")
    return config.optimizer.lr * float(measured[0]) / float(start.outcome["stability_limit"])


def _gain(cell: Sequence[Run | Absent], value: CellValue) -> float:
    trained = {
        run.config.warmup.steps: value.of(run)
        for run in cell
        if isinstance(run, Run) and kind_of(run, value) is Cell.TRAINED
    }
    without = trained.pop(1, -math.inf)
    return max(trained.values(), default=-math.inf) - without  # NaN where neither trained
