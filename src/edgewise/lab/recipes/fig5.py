"""Figures 5, 27, 28 and 29: the warmup that is saved by starting at the critical learning rate."""

import math
from collections.abc import Sequence

import numpy as np

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import settings
from edgewise.lab.recipes.recipe import (
    Claim,
    PhaseDiagrams,
    Recipe,
    number,
    optimizer_label,
    parameterization_label,
)
from edgewise.lab.results.phase_diagram import CellValue, OutcomeEntry, PhaseDiagram, phase_diagram
from edgewise.lab.results.runs import Run

# `rtol` of the search for η_c: its upper end is above the critical rate by this share at most.
_BRACKET = 1 / 16
# Negative where the search cost more than it saved.
STEPS_SAVED = CellValue(
    label="T_save (steps)", of=OutcomeEntry("warmup.steps_saved"), digits=0, of_training=False
)


def configs(scale: str, parameterization: str, optimizer: str) -> tuple[RunConfig, ...]:
    """Return warmups from η_c over target rates and lengths, each to its end and a few steps beyond."""
    lengths, num_rates = {
        "demo": ((16, 64), 3),
        "embedded": ((16, 64, 256), 6),
        "desk": ((64, 256, 1024, 4096, 10_000), 10),
        "paper": ((64, 256, 1024, 4096, 10_000), 10),
    }[scale]
    lowest, unit = (4.0, "1/sharpness") if optimizer == "sgd" else (1e-3, "absolute")
    return tuple(
        RunConfig(
            **settings.wrn(scale, parameterization),
            optimizer=OptimizerConfig(name=optimizer, lr=lowest * 2**x, lr_unit=unit),
            warmup=WarmupConfig(steps=steps, lr_init="critical"),
            num_steps=10_000 if scale == "paper" else steps + 10,
            batch_size=128 if scale in ("desk", "paper") else 64,
        )
        for steps in lengths
        for x in range(num_rates)
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that T_save follows its formula, and how it moves over the diagram."""
    diagram = phase_diagram(runs, STEPS_SAVED)
    return [_formula(runs), _longer_saves_more(runs), _larger_saves_less(diagram)]


def _formula(runs: Sequence[Run]) -> Claim:
    """Hold both formulas against the rates that were trained with."""
    errors, fallbacks = [], 0
    for run in runs:
        done = run.outcome["warmup"]
        if done["fallback"] is not None:
            fallbacks += 1
            continue
        steps, target = run.config.warmup.steps, done["lr_target"]
        start = run.columns["lr"][0] / target
        reached = int(np.argmax(run.columns["lr"] >= target * (1 - 1e-9)))
        errors += [
            abs(STEPS_SAVED.of(run) - (steps * start - done["num_forwards"] / 2)),
            abs(reached - steps * (1 - start)),
        ]
    return Claim(
        text="T_save = T_wrm·η_c/η_trgt − T_fp/2 and T_reach = T_wrm(1 − η_c/η_trgt), from the rates of the updates",
        expected="within one step in each run",
        measured=f"within {max(errors, default=math.nan):.2f} steps in {len(errors) // 2} runs, {fallbacks} fell back",
        holds=bool(errors and max(errors) <= 1),
    )


def _longer_saves_more(runs: Sequence[Run]) -> Claim:
    """Return that η_c is that of the network, whatever the length: what is saved follows from the shortest warmups."""
    lengths = sorted({run.config.warmup.steps for run in runs})
    of_length = {
        length: {run.config.optimizer.lr: run for run in runs if run.config.warmup.steps == length}
        for length in (lengths[0], lengths[-1])
    }
    shortest, longest = of_length.values()
    pairs = [(_share(longest[rate]), _share(run)) for rate, run in shortest.items()]
    known = [pair for pair in pairs if not any(map(math.isnan, pair))]
    apart = [max(pair) / min(pair) - 1 if min(pair) > 0 else math.inf for pair in known]
    saved = [float(np.nanmax([STEPS_SAVED.of(run) for run in its.values()])) for its in of_length.values()]
    return Claim(
        text="the longer the warmup, the more steps are saved, in proportion: (T_save + T_fp/2)/T_wrm is η_c/η_trgt",
        expected=f"at each target rate the same at T_wrm = {lengths[-1]} as at {lengths[0]}, within the width of the "
        f"search's bracket, {_BRACKET:g}",
        measured=f"{max(apart, default=math.nan):.1%} apart at most; most saved {number(saved[0])} → "
        f"{number(saved[1])}",
        holds=bool(apart and max(apart) <= _BRACKET and saved[1] > saved[0]),
    )


def _share(run: Run) -> float:
    """Return η_c/η_trgt as T_save has it, NaN where the search fell back."""
    return (STEPS_SAVED.of(run) + run.outcome["warmup"]["num_forwards"] / 2) / run.config.warmup.steps


def _larger_saves_less(diagram: PhaseDiagram) -> Claim:
    row = diagram.mean[-1]
    known = row[~np.isnan(row)]
    return Claim(
        text=f"the larger the target rate, the fewer steps are saved (T_wrm = {diagram.warmups[-1]})",
        expected="least at the largest rate",
        measured=" → ".join(number(float(value)) for value in (known[0], known[-1])),
        holds=bool(known[-1] < known[0]),
    )


def _panel(config: RunConfig) -> str:
    return f"{parameterization_label(config)}, {optimizer_label(config)}"


def _recipe(figure: str, parameterization: str, optimizer: str, name: str) -> Recipe:
    return Recipe(
        id=figure,
        title=f"What starting at the critical rate saves: {name}",
        finding="Warmup that starts at η_c, found by a handful of forward passes, reaches the target earlier. It saves "
        "T_save = T_wrm·η_c/η_trgt − T_fp/2 steps, most for long warmups to moderate rates.",
        configs=lambda scale: configs(scale, parameterization, optimizer),
        claims=claims,
        layout=PhaseDiagrams(panel=_panel, value=STEPS_SAVED),
    )


FIG5 = _recipe("fig5", "sp", "sgd", "SP, SGD")
FIG27 = _recipe("fig27", "mup", "sgd", "μP, SGD")
FIG28 = _recipe("fig28", "sp", "adam", "SP, Adam")
FIG29 = _recipe("fig29", "mup", "adam", "μP, Adam")
