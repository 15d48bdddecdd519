"""Figures 15 to 18: the mechanisms in residual networks and in Transformers."""

from collections.abc import Sequence
from dataclasses import replace

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import mechanisms, settings
from edgewise.lab.recipes.recipe import ADAM_CURVES, SGD_CURVES, Claim, Recipe, number, optimizer_label
from edgewise.lab.results.runs import Run


def wrn_configs(scale: str, loss: str) -> tuple[RunConfig, ...]:
    """Return the residual network with a loss, in μP at 1/λ₀ and in SP at 32/λ₀."""
    num_steps, batch_size, lengths, every = {
        "demo": (60, 64, (1, 30), 10),
        "embedded": (400, 128, (1, 64, 128), 10),
        "desk": (2000, 512, (1, 256, 1024), 5),
        "paper": (2000, 512, (1, 256, 1024), 5),
    }[scale]
    training = {"loss": loss, "num_steps": num_steps, "batch_size": batch_size, "measure_every": every}
    return settings.two_starts(settings.wrn, scale, lengths, **training)


def wrn_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that μP starts flat and sharpens, and SP starts sharp and is brought down."""
    flat, sharp = mechanisms.flat(runs), mechanisms.sharp(runs)
    return [
        mechanisms.rises("μP", flat),
        mechanisms.trains("μP", flat),
        mechanisms.smaller_spikes("SP", sharp),
        mechanisms.trains("SP", sharp),
        mechanisms.falls("SP", sharp),
    ]


def lm_sgd_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the language model with SGD, with and without the final LayerNorm."""
    return tuple(
        config
        for final_norm, multiple in ((True, 2.0), (False, 16.0))
        for config in _lm_configs(
            scale,
            OptimizerConfig(name="sgd", lr=multiple, lr_unit="1/sharpness"),
            measure=("sharpness",),
            final_norm=final_norm,
        )
    )


def lm_adam_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the language model with Adam over the warmup lengths."""
    adam = OptimizerConfig(name="adam", lr=0.003)
    return _lm_configs(scale, adam, measure=("sharpness", "preconditioned_sharpness"))


def _lm_configs(
    scale: str, optimizer: OptimizerConfig, *, measure: tuple[str, ...], final_norm: bool = True
) -> tuple[RunConfig, ...]:
    num_steps, batch_size, lengths, every = {
        "demo": (40, 16, (1, 20), 10),
        "embedded": (300, 16, (1, 32, 128), 10),
        "desk": (2000, 64, (1, 256, 1024), 10),
        "paper": (2000, 64, (1, 256, 1024), 5),
    }[scale]
    return tuple(
        RunConfig(
            **settings.lm(scale, final_norm=final_norm),
            optimizer=optimizer,
            warmup=WarmupConfig(steps=warmup_steps),
            num_steps=num_steps,
            batch_size=batch_size,
            measure=measure,
            measure_every=every,
        )
        for warmup_steps in lengths
    )


def lm_sgd_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what the final LayerNorm decides."""
    normed = [run for run in runs if run.config.model.final_norm]
    free = [run for run in runs if not run.config.model.final_norm]
    return [
        _sharper_without(normed, free),
        mechanisms.rises("final LayerNorm", normed),
        mechanisms.smaller_spikes("no final LayerNorm", free),
        mechanisms.falls("no final LayerNorm", free),
    ]


def _sharper_without(normed: list[Run], free: list[Run]) -> Claim:
    values = [float(runs[0].measured("sharpness")[1][0]) for runs in (free, normed)]
    return Claim(
        text="initial sharpness, without the final LayerNorm ÷ with it",
        expected="within an order of magnitude of the paper's 100: 10 at least",
        measured=f"{number(values[0] / values[1])} ({number(values[0])} ÷ {number(values[1])})",
        holds=values[0] >= 10 * values[1],
    )


def lm_adam_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that Adam starts high in Transformers as well, and trains."""
    (constant,) = mechanisms.unwarmed(runs)
    return [mechanisms.starts_high(constant), mechanisms.trains("Adam", runs)]


def norm_label(config: RunConfig) -> str:
    """Return whether there is a final LayerNorm."""
    return "final LayerNorm" if config.model.final_norm else "no final LayerNorm"


_FROM_BOTH_STARTS = (
    "In μP sharpness rises on its own. In SP, at 32/λ₀, warmup brings it down, and the loss rises the less the "
    "longer the warmup."
)

FIG15 = Recipe(
    id="fig15",
    title="A residual network, squared error",
    finding=f"A wide residual network with SGD. {_FROM_BOTH_STARTS}",
    configs=lambda scale: wrn_configs(scale, "mse"),
    claims=wrn_claims,
    layout=SGD_CURVES,
)

FIG16 = replace(
    FIG15,
    id="fig16",
    title="A residual network, cross-entropy",
    finding=f"Figure 15 with cross-entropy. {_FROM_BOTH_STARTS}",
    configs=lambda scale: wrn_configs(scale, "xent"),
)

FIG17 = Recipe(
    id="fig17",
    title="A Transformer with SGD: what the final LayerNorm decides",
    finding="A Pre-LN language model with SGD. With its final LayerNorm it starts flat, and sharpness rises. "
    "Without it the start is far sharper, and sharpness falls: the two classes of figure 1 in one architecture.",
    configs=lm_sgd_configs,
    claims=lm_sgd_claims,
    layout=replace(SGD_CURVES, row=norm_label),
)

FIG18 = Recipe(
    id="fig18",
    title="A Transformer with Adam",
    finding="A Pre-LN language model with Adam. The preconditioned sharpness starts far above 38/η and falls "
    "early. The sharpness itself says nothing of this.",
    configs=lm_adam_configs,
    claims=lm_adam_claims,
    layout=replace(ADAM_CURVES, row=optimizer_label),
)
