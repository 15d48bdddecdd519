"""The runs: optimizers × target rates × tasks × seeds, with EdgeWarmup, catapults and linear lengths.

The constants of EdgeWarmup that its rules before 2026-11-28 had were chosen on the tasks of `DEVELOPMENT` and then left
alone. What that was worth is seen on those of `HELD_OUT`. What is new since was chosen on other tasks.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig

LENGTHS = (1, 8, 32, 64, 128, 200)
NUM_STEPS = 400
OCTAVES = (-1.5, -0.75, 0.0, 0.75, 1.5)  # of the target rates, around a rough best
TOO_HIGH = (2, 4)  # octaves above the largest rate that trains
SEEDS = range(3)
OTHER_SEEDS = range(3, 6)  # on which the lengths that were best on the first are tried, beside EdgeWarmup
_ALL_SEEDS = range(OTHER_SEEDS.stop)
_SEEDS_AT = {"demo": range(1), "embedded": SEEDS, "desk": _ALL_SEEDS, "paper": _ALL_SEEDS}
EDGE, LINEAR = "edge", "linear"


def _digits(model: str, parameterization: str, depth: int, width: int) -> dict[str, Any]:
    return {
        "data": DataConfig(name="digits"),
        "model": ModelConfig(name=model, depth=depth, width=width, parameterization=parameterization),
        "batch_size": 64,
    }


def _lm(batch_size: int, *, final_norm: bool = True) -> dict[str, Any]:
    return {
        "data": DataConfig(name="stdlib-text", context=16),
        "model": ModelConfig(name="lm", depth=1, width=32, parameterization="sp", final_norm=final_norm),
        "batch_size": batch_size,
    }


DEVELOPMENT = {
    "FCN, SP, MSE": _digits("fcn", "sp", 3, 64) | {"loss": "mse"},
    "conv net, BatchNorm": _digits("cnn", "sp", 3, 16),
    "LM, B = 16": _lm(16),
}
HELD_OUT = {
    "FCN, μP": _digits("fcn", "mup", 3, 64),
    "LM, B = 64": _lm(64),
    "LM, no final LayerNorm": _lm(16, final_norm=False),
}
TASKS = DEVELOPMENT | HELD_OUT

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"name": "sgd"},
    "SGD-M": {"name": "sgd", "momentum": 0.9},
    "Adam": {"name": "adam"},
    "AdamW": {"name": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.1},
    "GI-AdamW": {"name": "gi-adamw", "weight_decay": 0.1},
    "NAdam": {"name": "nadam"},
    "Lion": {"name": "lion", "betas": (0.9, 0.99)},
}
# log₂ of a rough best rate, and of the largest that trains, from one run an octave (seed 10, T_wrm = 32 and 128).
_BEST_AND_LARGEST: dict[str, tuple[tuple[float, int], ...]] = {
    "FCN, SP, MSE": ((0, 0), (-1.5, 0), (-4, -2), (-5, -2), (-3, 0), (-4.5, -3), (-9, -6)),
    "conv net, BatchNorm": ((1, 3), (-2, 3), (-3, -1), (-4, -1), (-7, 0), (-4, -1), (-8, -4)),
    "LM, B = 16": ((0.5, 1), (-1, 0), (-5, -2), (-5, -1), (-4, 0), (-5, -2), (-8, -4)),
    "FCN, μP": ((0, 2), (-2, -1), (-3, -1), (-2, -1), (-1, 0), (-2.5, -1), (-6, -4)),
    "LM, B = 64": ((0.5, 1), (0.5, 1), (-4, -1), (-4, -1), (-3, 0), (-4.5, -2), (-8, -4)),
    "LM, no final LayerNorm": ((-1, -1), (-2, -2), (-4, -3), (-5, -1), (-3.5, 0), (-4, -2), (-7, -6)),
}


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return every task, optimizer, rate, seed and warmup; the task is the same at every scale."""
    return tuple(
        config
        for task, settings in TASKS.items()
        for (name, optimizer), (best, largest) in zip(
            OPTIMIZERS.items(), _BEST_AND_LARGEST[task], strict=True
        )
        for config in (
            *_grid(settings, name, optimizer, best, _SEEDS_AT[scale]),
            *_too_high(settings, optimizer, largest),
        )
    )


def _grid(
    settings: dict[str, Any], name: str, optimizer: dict[str, Any], best: float, seeds: Iterable[int]
) -> Iterable[RunConfig]:
    for octave in OCTAVES:
        at_rate = OptimizerConfig(**optimizer, lr=2.0 ** (best + octave))
        for seed in seeds:
            for warmup in _warmups(at_rate):
                in_grid = warmup.kind == LINEAR and warmup.steps in LENGTHS
                if seed in SEEDS or in_grid or warmup.kind == EDGE:
                    yield _run(settings, at_rate, warmup, seed)
            if name == "Adam" and seed in SEEDS:
                yield _run(settings, replace(at_rate, name="radam"), WarmupConfig(decay="cosine"), seed)


def _too_high(settings: dict[str, Any], optimizer: dict[str, Any], largest: int) -> Iterable[RunConfig]:
    """Return runs at rates that no length should train at, and the longest length at the lower one, to see that."""
    for octaves in TOO_HIGH:
        at_rate = OptimizerConfig(**optimizer, lr=2.0 ** (largest + octaves))
        yield _run(settings, at_rate, WarmupConfig(kind=EDGE, decay="cosine"), 0)
        yield _run(settings, at_rate, WarmupConfig(steps=LENGTHS[-1], decay="cosine"), 0)


def _warmups(optimizer: OptimizerConfig) -> list[WarmupConfig]:
    """Return EdgeWarmup, catapults, the grid of lengths, and the rule of thumb 2/(1 − β₂) where there is a β₂."""
    lengths = list(LENGTHS)
    if "betas" in optimizer.traits.options:
        lengths.append(min(NUM_STEPS, round(2 / (1 - optimizer.betas[1]))))
    linear = [WarmupConfig(steps=steps, decay="cosine") for steps in dict.fromkeys(lengths)]
    return [*(WarmupConfig(kind=kind, decay="cosine") for kind in (EDGE, "catapult")), *linear]


def _run(settings: dict[str, Any], optimizer: OptimizerConfig, warmup: WarmupConfig, seed: int) -> RunConfig:
    return RunConfig(**settings, optimizer=optimizer, warmup=warmup, num_steps=NUM_STEPS, seed=seed)
