"""Figure 1: gradient descent from a flat and from a sharp initialization."""

from collections.abc import Sequence

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import mechanisms, settings
from edgewise.lab.recipes.recipe import SGD_CURVES, Claim, Recipe, at_edge, number
from edgewise.lab.results.runs import Run


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return μP at η = 1/λ₀ and SP at 32/λ₀, over the warmup lengths."""
    # Every odd number of steps: at the edge the loss alternates, and an even stride would see one side only.
    num_steps, measure_every, lengths = {
        "demo": (250, 5, (1, 64, 200)),
        "embedded": (500, 1, (1, 64, 200)),
        "desk": (2000, 9, (1, 64, 256, 1024)),
        "paper": (2000, 1, (1, 64, 256, 1024)),
    }[scale]
    return settings.two_starts(
        settings.fcn, scale, lengths, loss="mse", num_steps=num_steps, measure_every=measure_every
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what the two initializations must show."""
    flat, sharp = mechanisms.flat(runs), mechanisms.sharp(runs)
    return [
        mechanisms.rises("μP, η = 1/λ₀", flat),
        _hovers(flat),
        mechanisms.diverges("SP, η = 32/λ₀", sharp),
        mechanisms.trains("SP, η = 32/λ₀", sharp),
        mechanisms.falls("SP", sharp),
    ]


def _hovers(runs: list[Run]) -> Claim:
    products = [at_edge(run, "sharpness") for run in runs]
    low, high = min(p.min() for p in products), max(p.max() for p in products)
    return Claim(
        text="μP: η·λ reaches 2 and hovers there to the end (last third)",
        expected="1.7–2.6: 0.85 to 1.3 times 2, our bounds",
        measured=f"{number(low)}–{number(high)}",
        holds=bool(low >= 1.7 and high <= 2.6),
    )


RECIPE = Recipe(
    id="fig1",
    title="Two ways to start: flat and sharp",
    finding="Full-batch gradient descent. From a flat start (μP) the sharpness rises on its own until it meets "
    "2/η_t, and stays there. From a sharp start (SP) a rate of 32/λ₀ diverges at once; with warmup the loss "
    "catapults early, at a small rate, the sharpness falls, and the same target rate is stable.",
    configs=configs,
    claims=claims,
    layout=SGD_CURVES,
)
