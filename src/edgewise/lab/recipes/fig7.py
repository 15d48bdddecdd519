"""Figure 7: persistent catapults beside linear warmup."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgewise.lab.configs import RunConfig, WarmupConfig
from edgewise.lab.recipes import fig1, mechanisms
from edgewise.lab.recipes.recipe import LOSS, SGD_CURVES, SHARPNESS, Claim, Quantity, Recipe, number
from edgewise.lab.results.runs import Run


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the warmed-up runs of figure 1 from the sharp initialization, and catapults at the same rate."""
    linear = [
        config
        for config in fig1.configs(scale)
        if config.model.parameterization == "sp" and config.warmup.steps > 1
    ]
    measure = (*linear[0].measure, "critical_lr")
    return (*linear, replace(linear[0], warmup=WarmupConfig(kind="catapult"), measure=measure))


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what catapults must show: at the target early, stable there, and no worse."""
    linear = [run for run in runs if run.config.warmup.kind == "linear"]
    catapults = [run for run in runs if run.config.warmup.kind == "catapult"]
    return [
        claim
        for run in catapults
        for claim in (_early(run, linear), _stable(run), _no_worse(run, linear), _critical_rate(run))
    ]


def _early(run: Run, linear: list[Run]) -> Claim:
    done = run.outcome["warmup"]
    reached, shortest = done["steps_to_target"], min(other.config.warmup.steps for other in linear)
    return Claim(
        text="catapults reach the target rate without a length",
        expected=f"before update {shortest}, the end of the shorter linear warmup; no fallback",
        measured=f"update {reached}, in {done['num_catapults']} catapults and {done['num_forwards']} forwards",
        holds=reached is not None and reached < shortest and done["fallback"] is None,
    )


def _stable(run: Run) -> Claim:
    _, sharpness = run.measured("sharpness")
    limit = 2 / run.outcome["lr_target"]
    return Claim(
        text="the sharpness ends below 2/η_trgt",
        expected=f"below {number(limit)}, from {number(sharpness[0])}",
        measured=number(sharpness[-1]),
        holds=bool(sharpness[-1] < limit),
    )


def _no_worse(run: Run, linear: list[Run]) -> Claim:
    own, others = run.outcome["train_loss"], [other.outcome["train_loss"] for other in linear]
    return Claim(
        text=f"final training loss, beside linear warmup of {mechanisms.lengths(linear)}",
        expected=f"at most {', '.join(map(number, others))}",
        measured=number(own),
        holds=own <= min(others),
    )


def _critical_rate(run: Run) -> Claim:
    """Return how far η_c of the next update rises: the target is stable where it ends above."""
    steps, rates = run.measured("critical_lr")
    target = run.config.optimizer.lr  # in units of 1/λ₀
    multiples = rates * target / run.outcome["lr_target"]
    late = multiples[steps >= run.config.num_steps * 2 / 3]
    found = len(late) > 0
    first, end, largest = (multiples[0], np.median(late), multiples.max()) if found else (math.nan,) * 3
    return Claim(
        text="the critical rate of the next update rises along training, η_c·λ₀",
        expected=f"above the target, {target:g}, in the last third (paper: up to 40), from a start below it",
        measured=f"{number(first)} at first, {number(end)} in the last third (median), {number(largest)} at most",
        holds=bool(first < target < end),
    )


RECIPE = Recipe(
    id="fig7",
    title="Warmup without a length: persistent catapults",
    finding="Full-batch gradient descent from the sharp initialization (SP), at 32/λ₀. Each rise of the rate to just "
    "above critical throws the trajectory into a flatter region. A handful of such catapults do what a linear warmup "
    "does in its whole length. The target rate is then stable.",
    configs=configs,
    claims=claims,
    layout=replace(SGD_CURVES, quantities=(LOSS, SHARPNESS, Quantity(column="lr", label="learning rate η"))),
)
