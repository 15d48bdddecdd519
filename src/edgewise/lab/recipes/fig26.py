"""Figures 26 and 31: what Adam does beyond its failure boundary, and what its first second moment is worth."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import fig2, settings
from edgewise.lab.recipes.recipe import (
    LOSS,
    PRECONDITIONED_SHARPNESS,
    Claim,
    Quantity,
    Recipe,
    Trajectories,
    number,
    optimizer_label,
    parameterization_label,
)
from edgewise.lab.results.runs import Run

_COLUMNS = {"train_loss": "loss", "gradient_norm": "gradient norm", "second_moment": "norm of v"}


def far_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return Adam without warmup at a rate that trains, and at ones far beyond the boundary."""
    num_steps = {"demo": 60, "embedded": 300, "desk": 4000, "paper": 10_000}[scale]
    return tuple(
        RunConfig(
            **settings.lm(scale),
            optimizer=OptimizerConfig(name="adam", lr=lr),
            warmup=WarmupConfig(steps=1),
            num_steps=num_steps,
            batch_size=64 if scale == "paper" else 16,
            measure=("gradient_norm", "second_moment"),
        )
        for lr in (0.004, 1.0, 4.0)
    )


def far_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that everything spikes, and nothing diverges."""
    trained, *far = runs
    return [
        Claim(
            text="far beyond the failure boundary Adam does not diverge",
            expected="a finite loss to the end",
            measured=", ".join(
                f"η = {run.config.optimizer.lr:g}: {number(run.outcome['train_loss'])}" for run in far
            ),
            holds=not any(run.outcome["diverged"] for run in far),
        ),
        *(_spikes(column, name, trained, far) for column, name in _COLUMNS.items()),
    ]


def _spikes(column: str, name: str, trained: Run, far: list[Run]) -> Claim:
    largest = [float(np.max(run.measured(column)[1])) for run in (trained, *far)]
    return Claim(
        text=f"the {name} spikes beyond what it is at a rate that trains",
        expected=f"at least twice {number(largest[0])}",
        measured=", ".join(map(number, largest[1:])),
        holds=all(value >= 2 * largest[0] for value in largest[1:]),
    )


def ablation_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return figure 2 without warmup, for Adam, GI-Adam and RI-Adam."""
    constant = [config for config in fig2.adam_configs(scale) if config.warmup.steps == 1]
    return tuple(
        replace(config, optimizer=replace(config.optimizer, name=name))
        for config in constant
        for name in ("adam", "gi-adam", "ri-adam")
    )


def ablation_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that a random second moment of the right size does what the first gradient does."""
    by_name = {(run.config.model.parameterization, run.config.optimizer.name): run for run in runs}
    claims = []
    for parameterization in dict.fromkeys(run.config.model.parameterization for run in runs):
        adam, gi_adam, ri_adam = (by_name[parameterization, name] for name in ("adam", "gi-adam", "ri-adam"))
        claims += [_starts_lower(adam, ri_adam), _as_good(gi_adam, ri_adam)]
    return claims


def _starts_lower(adam: Run, ri_adam: Run) -> Claim:
    first = [float(run.measured("preconditioned_sharpness")[1][0]) for run in (adam, ri_adam)]
    return Claim(
        text=f"{parameterization_label(adam.config)}: initial preconditioned sharpness, Adam ÷ RI-Adam",
        expected="an order of magnitude at least (GI-Adam: 1/√(1 − β₂) = 31.6)",
        measured=f"{number(first[0] / first[1])} ({number(first[0])} ÷ {number(first[1])})",
        holds=first[0] >= 10 * first[1],
    )


def _as_good(gi_adam: Run, ri_adam: Run) -> Claim:
    """Return that they end alike; the lab log says how far apart seeds are."""
    ends = [float(run.columns["train_loss"][-1]) for run in (gi_adam, ri_adam)]
    return Claim(
        text=f"{parameterization_label(gi_adam.config)}: last training loss, RI-Adam beside GI-Adam",
        expected="within a factor of two (GI-Adam's own seeds: up to 1.5)",
        measured=f"{number(ends[1])} beside {number(ends[0])}",
        holds=abs(math.log2(ends[1] / ends[0])) <= 1,
    )


FIG26 = Recipe(
    id="fig26",
    title="Adam far beyond the failure boundary",
    finding="A language model at rates far beyond the boundary. Loss, gradient norm and second moment spike. Yet "
    "nothing diverges: the spike enters v, and the next updates are small.",
    configs=far_configs,
    claims=far_claims,
    layout=Trajectories(
        quantities=(
            LOSS,
            Quantity(column="gradient_norm", label="gradient norm"),
            Quantity(column="second_moment", label="norm of v"),
        ),
        row=optimizer_label,
        line=lambda config: f"η = {config.optimizer.lr:g}",
    ),
)

FIG31 = Recipe(
    id="fig31",
    title="A random second moment of the right size",
    finding="Adam, GI-Adam (v₀ = g₀²) and RI-Adam (v₀ random, of the norm of g₀). RI-Adam starts as low as GI-Adam and "
    "ends as well. What helps is the size of v₀, not what it knows.",
    configs=ablation_configs,
    claims=ablation_claims,
    layout=Trajectories(
        quantities=(LOSS, PRECONDITIONED_SHARPNESS), row=parameterization_label, line=optimizer_label
    ),
)
