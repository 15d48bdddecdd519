"""Figures 3, 19, 21 and 22: phase diagrams of SGD on images."""

from collections.abc import Sequence
from dataclasses import replace

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import rates, settings
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe, number, parameterization_label
from edgewise.lab.results.phase_diagram import BEST_ACCURACY, Cell, PhaseDiagram, cell_of, phase_diagram
from edgewise.lab.results.runs import Run

_LOSS_NAMES = {"mse": "MSE", "xent": "cross-entropy"}
_DATA_NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny-ImageNet",
    "digits": "digits",
    "mnist1d": "MNIST-1D",
    "digit-pairs": "digit pairs",
    "digit-pairs-2x": "digit pairs, enlarged",
}


def grid(
    scale: str,
    parameterization: str,
    *,
    loss: str = "xent",
    images: str = "cifar10",
    momentum: float = 0.0,
    decay: str = "none",
    seeds: Sequence[int] | None = None,
) -> tuple[RunConfig, ...]:
    """Return η_trgt = 2ˣ/λ₀ for x = 0, 1, … at each warmup length, with the scale's seeds unless others are given."""
    num_steps, batch_size, lengths, largest, every = {
        "demo": (100, 64, (1, 40), 8, 10),
        "embedded": (200, 64, (1, 20, 80), 12, 10),
        "desk": (2000, 128, (1, 10, 40, 200, 1000), 12, 50),
        "paper": (100_000, 128, (1, 500, 2000, 10_000, 50_000), 12, 1000),
    }[scale]
    return tuple(
        RunConfig(
            **settings.wrn(scale, parameterization, images),
            optimizer=OptimizerConfig(name="sgd", lr=2.0**x, lr_unit="1/sharpness", momentum=momentum),
            warmup=WarmupConfig(steps=warmup_steps, decay=decay),
            loss=loss,
            num_steps=num_steps,
            batch_size=batch_size,
            evaluate_every=every,
            seed=seed,
        )
        for warmup_steps in lengths
        for x in range(largest + 1)
        for seed in (settings.seeds(scale) if seeds is None else seeds)
    )


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the diagrams of both parameterizations and both losses."""
    return tuple(
        config
        for parameterization in ("mup", "sp")
        for loss in ("mse", "xent")
        for config in grid(scale, parameterization, loss=loss)
    )


def hundred_class_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return SP with cross-entropy on CIFAR-100 and Tiny-ImageNet.

    One seed: the claims are figure 3's, which has more; these cells cost more.
    """
    return tuple(
        config
        for images in ("cifar100", "tiny-imagenet")
        for config in grid(scale, "sp", images=images, seeds=(0,))
    )


def momentum_and_decay_configs(scale: str, parameterization: str) -> tuple[RunConfig, ...]:
    """Return the diagrams plain, with momentum, with cosine decay, and with both."""
    return tuple(
        config
        for momentum in (0.0, 0.9)
        for decay in ("none", "cosine")
        for config in grid(scale, parameterization, momentum=momentum, decay=decay)
    )


def panel_label(config: RunConfig) -> str:
    """Return what tells the panels apart."""
    parts = [parameterization_label(config), _LOSS_NAMES[config.loss]]
    if config.data.name not in ("digits", "mnist1d", "cifar10"):
        parts = [_DATA_NAMES[config.data.name]]
    if config.optimizer.momentum:
        parts.append("momentum")
    if config.warmup.decay == "cosine":
        parts.append("cosine decay")
    return ", ".join(parts)


def diagrams(runs: Sequence[Run]) -> dict[str, PhaseDiagram]:
    """Return panel label → diagram."""
    names = dict.fromkeys(panel_label(run.config) for run in runs)
    return {
        name: phase_diagram([run for run in runs if panel_label(run.config) == name], BEST_ACCURACY)
        for name in names
    }


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what warmup does in each panel, and how SGD ends beyond the boundary."""
    return [
        claim
        for name, diagram in diagrams(runs).items()
        for claim in (_boundary_moves(name, diagram), _no_worse(name, diagram))
    ] + [_ends_by_diverging(runs)]


def claims_on_rates(runs: Sequence[Run]) -> list[Claim]:
    """Return these claims, and that the rate decides in each panel."""
    return claims(runs) + [rates.decide(name, diagram) for name, diagram in diagrams(runs).items()]


def _boundary_moves(name: str, diagram: PhaseDiagram) -> Claim:
    boundaries = [diagram.boundary(warmup) for warmup in diagram.warmups]
    return Claim(
        text=f"{name}: warmup moves the failure boundary to larger rates",
        expected=f"η_trgt·λ₀ larger at T_wrm = {diagram.warmups[-1]} than at 1",
        measured=", ".join(f"{b:g}" for b in boundaries)
        + f" at T_wrm {', '.join(map(str, diagram.warmups))}",
        holds=boundaries[-1] > boundaries[0],
    )


def _no_worse(name: str, diagram: PhaseDiagram) -> Claim:
    best = [diagram.best(warmup)[1] for warmup in diagram.warmups]
    return Claim(
        text=f"{name}: the best accuracy of all lengths is had with warmup",
        expected=f"at least {number(best[0])}, the best without",
        measured=", ".join(map(number, best[1:])),
        holds=max(best[1:]) >= best[0],
    )


def _ends_by_diverging(runs: Sequence[Run]) -> Claim:
    kinds = [cell_of(run.outcome) for run in runs]
    failed, diverged = kinds.count(Cell.FAILED), kinds.count(Cell.DIVERGED)
    return Claim(
        text="beyond the boundary SGD diverges, rather than failing at a finite loss",
        expected="more cells diverged than failed",
        measured=f"{diverged} diverged, {failed} failed",
        holds=diverged > failed,
    )


def momentum_and_decay_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return that momentum moves the boundary left, and whom decay helps."""
    plain, decayed, heavy, _ = diagrams(runs).values()
    return [_momentum_moves(plain, heavy), *_decay(plain, decayed)]


def _momentum_moves(plain: PhaseDiagram, heavy: PhaseDiagram) -> Claim:
    pairs = [(plain.boundary(warmup), heavy.boundary(warmup)) for warmup in plain.warmups]
    return Claim(
        text="momentum moves the failure boundary to smaller rates",
        expected="η_trgt·λ₀ smaller at each warmup length",
        measured=", ".join(f"{a:g} → {b:g}" for a, b in pairs),
        holds=all(b < a for a, b in pairs),
    )


def _decay(plain: PhaseDiagram, decayed: PhaseDiagram) -> list[Claim]:
    longest = plain.warmups[-1]
    smallest = plain.lr_targets[0]
    largest = min(plain.boundary(longest), decayed.boundary(longest))
    gains = [decayed.at(rate, longest) - plain.at(rate, longest) for rate in (smallest, largest)]
    return [
        Claim(
            text=f"cosine decay hurts at the smallest rate (accuracy with − without, T_wrm = {longest})",
            expected="below 0",
            measured=f"{gains[0]:+.3f} at η·λ₀ = {smallest:g}",
            holds=gains[0] < 0,
        ),
        Claim(
            text=f"cosine decay helps at the largest rate (accuracy with − without, T_wrm = {longest})",
            expected="above 0",
            measured=f"{gains[1]:+.3f} at η·λ₀ = {largest:g}",
            holds=gains[1] > 0,
        ),
    ]


_LAYOUT = PhaseDiagrams(panel=panel_label, value=BEST_ACCURACY)

FIG3 = Recipe(
    id="fig3",
    title="Phase diagrams of SGD",
    finding="A wide residual network, test accuracy over target rate × warmup length, rates in units of 1/λ₀. "
    "Longer warmup moves the boundary of failure to larger rates. The flat start (μP) reaches larger multiples of "
    "1/λ₀ in either loss.",
    configs=configs,
    claims=claims_on_rates,
    layout=_LAYOUT,
)

FIG19 = replace(
    FIG3,
    id="fig19",
    title="Phase diagrams of SGD with more classes",
    finding="Figure 3's SP with cross-entropy on CIFAR-100 and Tiny-ImageNet. Longer warmup moves the boundary to "
    "larger rates here too. At smaller scales pairs of digits stand in for both.",
    configs=hundred_class_configs,
    claims=claims,
)


def _with_momentum_and_decay(figure: str, parameterization: str, name: str) -> Recipe:
    return Recipe(
        id=figure,
        title=f"Phase diagrams with momentum and decay, {name}",
        finding=f"Figure 3's {name} with cross-entropy: plain, with cosine decay, with momentum 0.9, with both. "
        "Momentum moves the boundary to smaller rates. Decay costs at small rates and helps at large ones.",
        configs=lambda scale: momentum_and_decay_configs(scale, parameterization),
        claims=momentum_and_decay_claims,
        layout=_LAYOUT,
    )


FIG21 = _with_momentum_and_decay("fig21", "sp", "SP")
FIG22 = _with_momentum_and_decay("fig22", "mup", "μP")
