"""Claims that many figures share: how sharpness and warmup meet on a trajectory."""

import math
from collections.abc import Sequence

import numpy as np

from edgewise.lab.configs import OptimizerConfig
from edgewise.lab.recipes.recipe import Claim, at_edge, beside_limit, number, parameterization_label
from edgewise.lab.results.runs import Run

# The mean loss of ten batches varies by far less, and a network that has learned something is far below.
_BATCHES_VARY = 0.05


def lengths(runs: Sequence[Run]) -> str:
    """Return the warmup lengths of the runs."""
    return ", ".join(str(run.config.warmup.steps) for run in runs)


def warmed(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with warmup."""
    return [run for run in runs if run.config.warmup.steps > 1]


def unwarmed(runs: Sequence[Run]) -> list[Run]:
    """Return the runs at a constant rate."""
    return [run for run in runs if run.config.warmup.steps == 1]


def flat(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that start flat, in μP."""
    return [run for run in runs if run.config.model.parameterization == "mup"]


def sharp(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that start sharp, in SP."""
    return [run for run in runs if run.config.model.parameterization == "sp"]


def rises(name: str, runs: Sequence[Run]) -> Claim:
    """Return that the sharpness rises on its own (progressive sharpening)."""
    first = [run.measured("sharpness")[1][0] for run in runs]
    largest = [run.measured("sharpness")[1].max() for run in runs]
    ratios = [high / low for low, high in zip(first, largest, strict=True)]
    from_the_edge = runs[0].config.optimizer.lr == 1.0  # in units of 1/λ₀
    return Claim(
        text=f"{name}: sharpness first rises",
        expected="by half at least" + (": halfway to 2/η_trgt = 2λ₀" if from_the_edge else ""),
        measured=f"{number(first[0])} → {', '.join(map(number, largest))} at T_wrm {lengths(runs)}",
        holds=bool(min(ratios) > 1.5),
    )


def hovers(name: str, runs: Sequence[Run], low: float, high: float) -> Claim:
    """Return where the median of η·λ ends, between two multiples of the late stability limit."""
    medians = [float(np.median(at_edge(run, "sharpness"))) for run in runs]
    text = f"{name}: η·λ in the last third, beside its late limit"

    def judge(limit: float) -> Claim:
        return Claim(
            text=f"{text} {number(limit)}",
            expected=f"median {number(low * limit)}–{number(high * limit)}: {low:g} to {high:g} times it, our bounds",
            measured=", ".join(map(number, medians)) + f" at T_wrm {lengths(runs)}",
            holds=all(low * limit <= median <= high * limit for median in medians),
        )

    return beside_limit(text, runs[0], judge)


def diverges(name: str, runs: Sequence[Run]) -> Claim:
    """Return that without warmup training diverges at once, from rates given in units of 1/λ₀."""
    (run,) = unwarmed(runs)
    growth = _growth(run.config.optimizer)
    within = math.ceil(math.log(np.finfo(np.float32).max) / math.log(growth))
    return Claim(
        text=f"{name}, T_wrm = 1: diverges",
        expected=f"within {within} updates: a quadratic loss, times {growth:.0f} in each, then overflows float32",
        measured=f"{'diverged' if run.outcome['diverged'] else 'trained'} after {run.outcome['num_steps']} updates",
        holds=run.outcome["diverged"] and run.outcome["num_steps"] <= within,
    )


def _growth(optimizer: OptimizerConfig) -> float:
    """Return by what factor an update raises the loss of a quadratic in the sharpest direction, η·λ₀ being `lr`.

    Of gradient descent with momentum β, z² for the larger root of z² − (1 + β − ηλ)z + β = 0.
    """
    beta = optimizer.momentum
    return float(max(abs(np.roots([1, optimizer.lr - 1 - beta, beta])))) ** 2


def trains(name: str, runs: Sequence[Run]) -> Claim:
    """Return that with warmup the loss falls well below that of the best constant output.

    A network that has come to answer the same to all is within a percent of it, on either side.
    """
    runs = warmed(runs)
    ends = [float(run.columns["train_loss"][-10:].mean()) for run in runs]
    starts = [float(run.columns["train_loss"][0]) for run in runs]
    bound = (1 - _BATCHES_VARY) * runs[0].outcome["guess_loss"]
    return Claim(
        text=f"{name}, T_wrm = {lengths(runs)}: trains",
        expected=f"training loss (mean of the last ten steps) below {number(bound)}, "
        f"that of the best constant output less {_BATCHES_VARY:.0%}",
        measured=", ".join(f"{number(a)} → {number(b)}" for a, b in zip(starts, ends, strict=True)),
        holds=all(end < bound for end in ends),
    )


def falls(name: str, runs: Sequence[Run]) -> Claim:
    """Return that with warmup the sharpness falls to where the target rate is stable."""
    runs = warmed(runs)
    products = [run.outcome["lr_target"] * run.measured("sharpness")[1] for run in runs]
    text = f"{name}, T_wrm = {lengths(runs)}: the sharpness falls"
    return beside_limit(
        text,
        runs[0],
        lambda limit: Claim(
            text=text,
            expected=f"η_trgt·λ to the threshold {number(limit)}, where the target rate is stable",
            measured=", ".join(f"{number(its[0])} → {number(its.min())}" for its in products),
            holds=all(bool(its.min() <= limit) for its in products),
        ),
    )


def smaller_spikes(name: str, runs: Sequence[Run]) -> Claim:
    """Return that a longer warmup makes the early rise of the loss smaller."""
    runs = sorted(runs, key=lambda run: run.config.warmup.steps)
    spikes = [spike(run) for run in runs]
    return Claim(
        text=f"{name}: the longer the warmup, the smaller the rise of the loss above its start",
        expected=f"falling over T_wrm = {lengths(runs)}",
        measured=", ".join(f"{number(s)}×" if math.isfinite(s) else "diverges" for s in spikes),
        holds=spikes == sorted(spikes, reverse=True) and spikes[0] > spikes[-1],
    )


def spike(run: Run) -> float:
    """Return the largest training loss over the first one; infinite if the run diverged."""
    losses = run.columns["train_loss"]
    return math.inf if run.outcome["diverged"] else float(losses.max() / losses[0])


def starts_high(run: Run) -> Claim:
    """Return that Adam starts far above its threshold, and comes down early."""
    steps, values = run.measured("preconditioned_sharpness")
    products = run.columns["lr"][steps.astype(int)] * values
    name = parameterization_label(run.config)
    text = f"{name}, Adam: preconditioned sharpness starts above the threshold and falls early"
    return beside_limit(
        text,
        run,
        lambda limit: Claim(
            text=text,
            expected=f"η·λ from above {limit:.0f} to below within 100 steps, a twentieth of the paper's run",
            measured=f"{number(products[0])} → {number(products[steps <= 100].min())}",
            holds=bool(products[0] > limit > products[steps <= 100].min()),
        ),
    )
