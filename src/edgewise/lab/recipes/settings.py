"""What the paper trains, at each scale: "paper" as published, the others small and without a download.

"desk" has the paper's shares of warmup, thousands of steps, its widths where two cores bear them, and data on which the
task is not done in a hundred steps; "embedded" and "demo" take minutes.
"""

from collections.abc import Callable
from typing import Any

from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig


def seeds(scale: str) -> range:
    """Return the seeds of a phase diagram: three at embedded scale, else one."""
    return range(3 if scale == "embedded" else 1)


def fcn(scale: str, parameterization: str) -> dict[str, Any]:
    """Return data and model of the mechanisms: FCN-4-512 on 5,000 images of CIFAR-10; FCN-4-256 on a stand-in."""
    if scale == "paper":
        data, width = DataConfig(name="cifar10", num_samples=5000), 512
    elif scale == "desk":
        data, width = DataConfig(name="mnist1d"), 256
    else:
        data, width = DataConfig(name="digits"), 256
    return {
        "data": data,
        "model": ModelConfig(name="fcn", depth=4, width=width, parameterization=parameterization),
    }


def wrn(scale: str, parameterization: str, images: str = "cifar10") -> dict[str, Any]:
    """Return data and model of the image classifiers: WRN-16-4, augmented; a WRN-16-1 or 10-1 on a stand-in."""
    if scale == "paper":
        data, depth, width = DataConfig(name=images, augment=True), 16, 4
    elif scale == "desk" and images == "cifar10":
        data, depth, width = DataConfig(name="mnist1d"), 16, 1
    else:
        stand_ins = {"cifar10": "digits", "cifar100": "digit-pairs", "tiny-imagenet": "digit-pairs-2x"}
        data, depth, width = DataConfig(name=stand_ins[images]), 10, 1
    return {
        "data": data,
        "model": ModelConfig(name="wrn", depth=depth, width=width, parameterization=parameterization),
    }


def lm(scale: str, *, text: str = "wikitext-103", final_norm: bool = True) -> dict[str, Any]:
    """Return data and model of the language models: Pre-LN LM-4-128; LM-4-64 or 2-64 on the standard library's text."""
    if scale == "paper":
        data, depth, width = DataConfig(name=text, context=64), 4, 128
    elif scale == "desk":
        data, depth, width = DataConfig(name="stdlib-bpe", context=64), 4, 64
    else:
        data, depth, width = DataConfig(name="stdlib-text", context=32), 2, 64
    return {
        "data": data,
        "model": ModelConfig(
            name="lm", depth=depth, width=width, parameterization="sp", final_norm=final_norm
        ),
    }


def two_starts(
    data_and_model: Callable[[str, str], dict[str, Any]],
    scale: str,
    lengths: tuple[int, ...],
    **training: Any,
) -> tuple[RunConfig, ...]:
    """Return SGD from a flat start (μP) at 1/λ₀ and from a sharp one (SP) at 32/λ₀, over the warmup lengths.

    Args:
        data_and_model: (scale, parameterization) → data and model.
        scale: one of `SCALES`.
        lengths: of the warmups.
        training: further fields of the configs.
    """
    return tuple(
        RunConfig(
            **data_and_model(scale, parameterization),
            optimizer=OptimizerConfig(name="sgd", lr=multiple, lr_unit="1/sharpness"),
            warmup=WarmupConfig(steps=warmup_steps),
            measure=("sharpness",),
            **training,
        )
        for parameterization, multiple in (("mup", 1.0), ("sp", 32.0))
        for warmup_steps in lengths
    )
