"""Figures 13, 14 and 30: figures 2 and 6 with batches, with cross-entropy, and at length."""

from collections.abc import Sequence
from dataclasses import replace

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import fig2
from edgewise.lab.recipes.recipe import (
    Claim,
    Recipe,
    at_edge,
    beside_limit,
    number,
    parameterization_label,
)
from edgewise.lab.results.runs import Run

_BEGINNING = 100  # updates, each measured: what is above the threshold is so for a few at a time


def batch_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the runs of figure 2 on batches of 512."""
    return tuple(replace(config, batch_size=512) for config in fig2.adam_configs(scale))


def cross_entropy_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the runs of figure 2 with cross-entropy."""
    return tuple(replace(config, loss="xent") for config in fig2.adam_configs(scale))


def batch_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that Adam starts high on batches too, and that noise lowers the late threshold."""
    return [*fig2.adam_claims(runs), _below_the_limit(runs)]


def gi_adam_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the runs of figure 6, and the beginning of those without warmup with each update measured."""
    runs = fig2.gi_adam_configs(scale)
    beginnings = tuple(
        replace(config, num_steps=_BEGINNING, measure=("preconditioned_sharpness",), measure_every=1)
        for config in runs
        if config.warmup.steps == 1 and config.num_steps > 1
    )
    return runs + beginnings


def gi_adam_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that GI-Adam comes below its threshold sooner than Adam."""
    return [
        _sooner(adam, gi_adam)
        for adam in runs
        for gi_adam in runs
        if adam.config.measure_every == 1  # the beginnings
        and adam.config.optimizer.name == "adam"
        and replace(adam.config, optimizer=replace(adam.config.optimizer, name="gi-adam")) == gi_adam.config
    ]


def _below_the_limit(runs: Sequence[Run]) -> Claim:
    ends = [float(at_edge(run, "preconditioned_sharpness").mean()) for run in runs]
    text = "on batches η·λ settles below the threshold of full batches (mean of the last third)"
    return beside_limit(
        text,
        runs[0],
        lambda limit: Claim(
            text=text,
            expected=f"below {limit:.0f}",
            measured=", ".join(map(number, ends)),
            holds=all(end < limit for end in ends),
        ),
    )


def _sooner(adam: Run, gi_adam: Run) -> Claim:
    name = parameterization_label(adam.config)
    text = f"{name}, T_wrm = 1: of the first {_BEGINNING} updates those above the threshold, Adam, GI-Adam"

    def judge(limit: float) -> Claim:  # the same for both
        sums = [_steps_above(run, limit) for run in (adam, gi_adam)]
        return Claim(
            text=text,
            expected="fewer with GI-Adam",
            measured=f"{sums[0]}, {sums[1]}",
            holds=sums[1] < sums[0],
        )

    return beside_limit(text, adam, judge)


def _steps_above(run: Run, limit: float) -> int:
    steps, values = run.measured("preconditioned_sharpness")
    products = run.columns["lr"][steps.astype(int)] * values
    return int((products > limit).sum())


FIG13 = Recipe(
    id="fig13",
    title="Why Adam needs warmup, with batches",
    finding="Figure 2 on batches of 512. The preconditioned sharpness starts just as high. Late in training it "
    "settles below 38/η: noise lowers the threshold.",
    configs=batch_configs,
    claims=batch_claims,
    layout=fig2.FIG2.layout,
)

FIG14 = replace(
    fig2.FIG2,
    id="fig14",
    title="Why Adam needs warmup, with cross-entropy",
    finding="Figure 2 with cross-entropy. The preconditioned sharpness starts orders of magnitude above the "
    "threshold and falls within the first steps, as it does with the squared error.",
    configs=cross_entropy_configs,
)

FIG30 = Recipe(
    id="fig30",
    title="GI-Adam in both parameterizations",
    finding="Figure 6 at length. In SP and in simple μP GI-Adam starts √(1 − β₂) lower than Adam. It spends less "
    "of its training above the threshold.",
    configs=gi_adam_configs,
    claims=gi_adam_claims,
    layout=fig2.FIG6.layout,
)
