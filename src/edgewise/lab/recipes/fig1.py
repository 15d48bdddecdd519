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
    return [_rises(flat), _hovers(flat), *_without_warmup(sharp), *_with_warmup(sharp)]


def _rises(runs: list[Run]) -> Claim:
    first = runs[0].measured("sharpness")[1][0]
    largest = [run.measured("sharpness")[1].max() for run in runs]
    return Claim(
        text="μP, η = 1/λ₀: sharpness first rises",
        expected="by half at least",
        measured=f"{number(first)} → {', '.join(map(number, largest))} at T_wrm {mechanisms.lengths(runs)}",
        holds=bool(min(largest) > 1.5 * first),
    )


def _hovers(runs: list[Run]) -> Claim:
    products = [at_edge(run, "sharpness") for run in runs]
    low, high = min(p.min() for p in products), max(p.max() for p in products)
    return Claim(
        text="μP: η·λ reaches 2 and hovers there to the end (last third)",
        expected="1.7–2.6",
        measured=f"{number(low)}–{number(high)}",
        holds=bool(low >= 1.7 and high <= 2.6),
    )


def _without_warmup(runs: list[Run]) -> list[Claim]:
    return [
        Claim(
            text="SP, η = 32/λ₀, T_wrm = 1: diverges",
            expected="within ten steps (λ₀ ≈ 390)",
            measured=f"{'diverged' if run.outcome['diverged'] else 'trained'} after "
            f"{run.outcome['num_steps']} updates (λ₀ = {number(run.measured('sharpness')[1][0])})",
            holds=run.outcome["diverged"] and run.outcome["num_steps"] <= 10,
        )
        for run in mechanisms.unwarmed(runs)
    ]


def _with_warmup(runs: list[Run]) -> list[Claim]:
    warmed = mechanisms.warmed(runs)
    lengths = mechanisms.lengths(warmed)
    losses = [run.outcome["train_loss"] for run in warmed]
    curves = [run.measured("sharpness")[1] for run in warmed]
    falls = [curve[0] / curve.min() for curve in curves]
    return [
        Claim(
            text=f"SP, η = 32/λ₀, T_wrm = {lengths}: trains",
            expected="training loss < 0.15",
            measured=", ".join(map(number, losses)),
            holds=all(loss < 0.15 for loss in losses),
        ),
        Claim(
            text=f"SP, T_wrm = {lengths}: a catapult takes the sharpness down",
            expected="5× at least",
            measured=", ".join(f"{fall:.0f}×" for fall in falls),
            holds=all(fall >= 5 for fall in falls),
        ),
    ]


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
