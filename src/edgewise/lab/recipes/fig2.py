"""Figures 2 and 6: the preconditioned sharpness of full-batch Adam, and of GI-Adam."""

from collections.abc import Sequence
from dataclasses import replace

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import mechanisms, settings
from edgewise.lab.recipes.recipe import (
    ADAM_CURVES,
    LOSS,
    PRECONDITIONED_SHARPNESS,
    Claim,
    Recipe,
    number,
    optimizer_label,
    parameterization_label,
    warmup_label,
)
from edgewise.lab.results.runs import Run

_NEGLIGIBLE_EPS = 1e-20
_RATES = {"simple-mup": 0.003, "sp": 0.001}


def _config(scale: str, parameterization: str, optimizer: str, warmup_steps: int) -> RunConfig:
    demo = scale == "demo"
    return RunConfig(
        **settings.fcn(scale, parameterization),
        optimizer=OptimizerConfig(name=optimizer, lr=_RATES[parameterization]),
        warmup=WarmupConfig(steps=warmup_steps),
        loss="mse",
        num_steps={"demo": 100, "embedded": 400, "desk": 2000, "paper": 2000}[scale],
        measure=("preconditioned_sharpness",) if demo else ("preconditioned_sharpness", "sharpness"),
        measure_every={"demo": 3, "embedded": 8, "desk": 8, "paper": 5}[scale],
    )


def _lengths(scale: str) -> tuple[int, ...]:
    paper = (1, 64, 256, 1024)
    return {"demo": (1,), "embedded": (1, 64, 256), "desk": paper, "paper": paper}[scale]


def adam_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return Adam in simple-μP and SP over the warmup lengths."""
    return tuple(_config(scale, p, "adam", steps) for p in _RATES for steps in _lengths(scale))


def gi_adam_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return GI-Adam in simple-μP and SP over the warmup lengths, and Adam without warmup to compare."""
    adam = tuple(_config(scale, p, "adam", 1) for p in _RATES)
    gi_adam = tuple(_config(scale, p, "gi-adam", steps) for p in _RATES for steps in _lengths(scale))
    # The ratio of the two starts, ε aside: ε dominates the entries whose gradient is below it.
    starts = tuple(
        replace(c, num_steps=1, optimizer=replace(c.optimizer, eps=_NEGLIGIBLE_EPS))
        for c in adam + gi_adam
        if c.warmup.steps == 1
    )
    return adam + gi_adam + starts


def adam_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that Adam starts far above its threshold, whatever the initialization."""
    return [mechanisms.starts_high(run) for run in mechanisms.unwarmed(runs)]


def gi_adam_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that GI-Adam starts √(1 − β₂) lower, beside Adam's own start."""
    constant = mechanisms.unwarmed(runs)
    adam = [run for run in constant if run.config.optimizer.name == "adam"]
    gi_adam = [run for run in constant if run.config.optimizer.name == "gi-adam"]
    return [mechanisms.starts_high(run) for run in adam if run.config.num_steps > 1] + [
        _ratio(a, b) for a, b in zip(adam, gi_adam, strict=True)
    ]


def _ratio(adam: Run, gi_adam: Run) -> Claim:
    first = [run.measured("preconditioned_sharpness")[1][0] for run in (adam, gi_adam)]
    optimizer = adam.config.optimizer
    expected = (1 - optimizer.betas[1]) ** -0.5
    ratio = first[0] / first[1]
    aside, tolerance = optimizer.eps == _NEGLIGIBLE_EPS, adam.config.measure_rtol
    return Claim(
        text=f"{parameterization_label(adam.config)}: initial preconditioned sharpness, Adam ÷ GI-Adam, "
        + ("ε aside" if aside else f"ε = {optimizer.eps:g}"),
        expected=f"1/√(1 − β₂) = {expected:.1f} within {tolerance:.0%}, that of the measurement"
        if aside
        else f"below {expected:.1f}: ε is in both P",
        measured=f"{ratio:.2f} ({number(first[0])} ÷ {number(first[1])})",
        holds=bool(
            abs(ratio / expected - 1) < tolerance if aside else 1 < ratio < (1 + tolerance) * expected
        ),
    )


FIG2 = Recipe(
    id="fig2",
    title="Why Adam needs warmup",
    finding="Full-batch Adam. The preconditioned sharpness starts orders of magnitude above the threshold 38/η "
    "and falls within the first steps, whatever the sharpness itself does: Adam begins in a place where "
    "its own target rate is unstable.",
    configs=adam_configs,
    claims=adam_claims,
    layout=ADAM_CURVES,
)

FIG6 = Recipe(
    id="fig6",
    title="Why Adam needs warmup, and what GI-Adam changes",
    finding="Full-batch Adam starts with a preconditioned sharpness far above its threshold 38/η and spends its "
    "first steps falling. GI-Adam (v₀ = g₀²) starts √(1 − β₂) lower, 31.6 times at β₂ = 0.999, at no cost.",
    configs=gi_adam_configs,
    claims=gi_adam_claims,
    layout=replace(
        ADAM_CURVES,
        quantities=(LOSS, PRECONDITIONED_SHARPNESS),
        line=lambda config: (
            optimizer_label(config)
            if config.warmup.steps == 1
            else f"{optimizer_label(config)}, {warmup_label(config)}"
        ),
    ),
)
