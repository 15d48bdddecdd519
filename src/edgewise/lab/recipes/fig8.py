"""Figures 8 to 12: figure 1 with batches, with momentum, and with cross-entropy."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import fig1, mechanisms
from edgewise.lab.recipes.recipe import SGD_CURVES, Claim, Recipe, optimizer_label, parameterization_label
from edgewise.lab.results.runs import Run

_BATCH_SIZE = 512
_MOMENTUM = 0.9


def _variations(
    *, batch_size: int | None = None, momenta: tuple[float, ...] = (0.0,), loss: str = "mse"
) -> Callable[[str], tuple[RunConfig, ...]]:
    """Return the runs of figure 1 with another batch size, other momenta, another loss."""

    def configs(scale: str) -> tuple[RunConfig, ...]:
        return tuple(
            replace(
                config,
                batch_size=batch_size,
                optimizer=replace(config.optimizer, momentum=momentum),
                loss=loss,
                measure_every={"paper": 1, "desk": 9}.get(scale, 5),
            )
            for momentum in momenta
            for config in fig1.configs(scale)
        )

    return configs


def squared_error_claims(low: float, high: float) -> Callable[[Sequence[Run]], list[Claim]]:
    """Return the claims of figure 1, with where η·λ ends as multiples of its late limit."""

    def claims(runs: Sequence[Run]) -> list[Claim]:
        flat, sharp = mechanisms.flat(runs), mechanisms.sharp(runs)
        return [
            mechanisms.rises("μP", flat),
            mechanisms.hovers("μP", flat, low, high),
            mechanisms.diverges("SP", sharp),
            mechanisms.trains("SP", sharp),
            mechanisms.falls("SP", sharp),
        ]

    return claims


def cross_entropy_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what holds for cross-entropy, where gradients are bounded and late sharpness falls again."""
    claims = []
    for momentum in dict.fromkeys(run.config.optimizer.momentum for run in runs):
        own = [run for run in runs if run.config.optimizer.momentum == momentum]
        flat, sharp, name = mechanisms.flat(own), mechanisms.sharp(own), optimizer_label(own[0].config)
        claims += [
            mechanisms.rises(f"μP, {name}", flat),
            mechanisms.smaller_spikes(f"SP, {name}", sharp),
            mechanisms.trains(f"SP, {name}", sharp),
            mechanisms.falls(f"SP, {name}", sharp),
        ]
    return claims


def _row(config: RunConfig) -> str:
    return f"{parameterization_label(config)}, {optimizer_label(config)}"


_LAYOUT = replace(SGD_CURVES, row=_row)

FIG8 = Recipe(
    id="fig8",
    title="Two ways to start, with batches",
    finding="Figure 1 with stochastic gradients. The same happens on batches of 512: from a flat start sharpness "
    "rises to 2/η_t and stays near it, from a sharp start warmup brings it down.",
    configs=_variations(batch_size=_BATCH_SIZE),
    claims=squared_error_claims(0.6, 1.3),
    layout=_LAYOUT,
)

FIG9 = Recipe(
    id="fig9",
    title="Two ways to start, with momentum",
    finding="Figure 1 with momentum 0.9. At first, momentum has yet to build up, and 2/η_t is the threshold. Late "
    "in training it is (2 + 2β)/η_t, and sharpness hovers there.",
    configs=_variations(momenta=(_MOMENTUM,)),
    claims=squared_error_claims(0.85, 1.3),
    layout=_LAYOUT,
)

FIG10 = Recipe(
    id="fig10",
    title="Two ways to start, with momentum and batches",
    finding="Figure 9 on batches of 512. Noise lowers the late threshold. Sharpness settles between 2/η_t and "
    "(2 + 2β)/η_t.",
    configs=_variations(batch_size=_BATCH_SIZE, momenta=(_MOMENTUM,)),
    claims=squared_error_claims(0.4, 1.1),
    layout=_LAYOUT,
)

FIG11 = Recipe(
    id="fig11",
    title="Two ways to start, with cross-entropy and batches",
    finding="Figure 8 with cross-entropy. From the flat start sharpness rises, and falls again late, as the loss "
    "goes to zero. From the sharp start the loss spikes, less the longer the warmup.",
    configs=_variations(batch_size=_BATCH_SIZE, loss="xent"),
    claims=cross_entropy_claims,
    layout=_LAYOUT,
)

FIG12 = replace(
    FIG11,
    id="fig12",
    title="Two ways to start, with cross-entropy",
    finding="Figures 1 and 9 with cross-entropy. From the flat start sharpness rises, and falls again late. From "
    "the sharp start the loss spikes, less the longer the warmup, with and without momentum.",
    configs=_variations(momenta=(0.0, _MOMENTUM), loss="xent"),
)
