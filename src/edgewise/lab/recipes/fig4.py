"""Figure 4: the phase diagrams of Adam and GI-Adam on a language model."""

import math
from collections.abc import Sequence

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import rates, settings
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe, number, optimizer_label
from edgewise.lab.results.phase_diagram import PhaseDiagram, phase_diagram
from edgewise.lab.results.runs import Run


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the grid of target rates and warmup lengths for both optimizers."""
    targets, lengths, seeds, num_steps, batch_size = {
        "demo": ([1e-3 * 4**k for k in range(6)], (1, 32, 128), (0,), 400, 16),
        "embedded": ([1e-3 * 2**k for k in range(11)], (1, 8, 32, 128), (0, 1, 2), 400, 16),
        "desk": ([2.5e-4 * 2**k for k in range(13)], (1, 20, 200, 1000), (0, 1), 2000, 16),
        "paper": ([1e-4 * 2 ** (k / 2) for k in range(30)], (1, 100, 1000, 5000), (0,), 10_000, 64),
    }[scale]
    return tuple(
        RunConfig(
            **settings.lm(scale),
            optimizer=OptimizerConfig(name=optimizer, lr=lr),
            warmup=WarmupConfig(steps=warmup_steps, decay="cosine"),
            num_steps=num_steps,
            batch_size=batch_size,
            seed=seed,
        )
        for optimizer in ("adam", "gi-adam")
        for warmup_steps in lengths
        for lr in targets
        for seed in seeds
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what warmup does for Adam, what GI-Adam does without, and that the rate decides."""
    adam = phase_diagram([run for run in runs if run.config.optimizer.name == "adam"])
    gi_adam = phase_diagram([run for run in runs if run.config.optimizer.name == "gi-adam"])
    return [
        _falls_and_rises("Adam", adam),
        _falls_and_rises("GI-Adam", gi_adam),
        _best_rate(adam, gi_adam),
        _at_the_boundary(adam, gi_adam),
        _warmup_helps(adam),
        rates.decide("Adam", adam),
        rates.decide("GI-Adam", gi_adam),
    ]


def _falls_and_rises(name: str, diagram: PhaseDiagram) -> Claim:
    """Return that the best rate lies between others that train."""
    trained = diagram.trained(1)
    ends = [trained[0], diagram.best(1)[0], trained[-1]] if trained else []
    losses = [diagram.at(rate, 1) for rate in ends]
    return Claim(
        text=f"{name}, T_wrm = 1: the test loss falls with the target rate, and rises again before training fails",
        expected="lowest at a rate between the smallest and the largest that train",
        measured=" → ".join(f"{loss:.2f} at {rate:g}" for rate, loss in zip(ends, losses, strict=True))
        or "none trains",
        holds=len(set(ends)) == 3,
    )


def _best_rate(adam: PhaseDiagram, gi_adam: PhaseDiagram) -> Claim:
    best, best_gi = adam.best(1)[0], gi_adam.best(1)[0]
    return Claim(
        text="T_wrm = 1: best target rate, GI-Adam ÷ Adam",
        expected="≥ 4: as far as the paper's failure boundary moves on CIFAR-10",
        measured=f"{best_gi / best:g} ({best_gi:g} ÷ {best:g})",
        holds=best_gi >= 4 * best,
    )


def _at_the_boundary(adam: PhaseDiagram, gi_adam: PhaseDiagram) -> Claim:
    """Return that GI-Adam ends lower where Adam is about to fail, by more than chance."""
    rate = adam.boundary(1)
    gain = adam.at(rate, 1) - gi_adam.at(rate, 1)
    chance = math.hypot(adam.deviation_at(rate, 1), gi_adam.deviation_at(rate, 1))
    return Claim(
        text="T_wrm = 1, at the largest rate that trains with Adam: test loss, Adam − GI-Adam",
        expected="above 0"
        + ("" if math.isnan(chance) else f", by more than its deviation over seeds, {number(chance)}")
        + " (paper, CIFAR-10: accuracy 0.894 with Adam, 0.924 with GI-Adam)",
        measured=f"{gain:.2f} at {rate:g}",
        holds=gain > (0.0 if math.isnan(chance) else chance),
    )


def _warmup_helps(adam: PhaseDiagram) -> Claim:
    longest = adam.warmups[-1]
    (rate, _), (warmed_rate, warmed_loss) = adam.best(1), adam.best(longest)
    return Claim(
        text=f"Adam, T_wrm = {longest}: warmup lets it use a larger rate",
        expected="a larger one than without",
        measured=f"best {number(warmed_loss)} at {warmed_rate:g}, without warmup at {rate:g}",
        holds=warmed_rate > rate,
    )


RECIPE = Recipe(
    id="fig4",
    title="The phase diagram: target rate × warmup length",
    finding="A byte-level language model, cosine decay. Longer warmup lets Adam use larger rates at lower loss. "
    "GI-Adam reaches them without: its whole diagram is shifted towards larger rates.",
    configs=configs,
    claims=claims,
    layout=PhaseDiagrams(panel=optimizer_label),
)
