"""Figure 4: the phase diagrams of Adam and GI-Adam on a language model."""

from collections.abc import Sequence

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import settings
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe, number, optimizer_label
from edgewise.lab.results.phase_diagram import PhaseDiagram, phase_diagram
from edgewise.lab.results.runs import Run


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return the grid of target rates and warmup lengths for both optimizers."""
    rates, lengths, seeds, num_steps, batch_size = {
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
        for lr in rates
        for seed in seeds
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what warmup does for Adam, and what GI-Adam does without."""
    adam = phase_diagram([run for run in runs if run.config.optimizer.name == "adam"])
    gi_adam = phase_diagram([run for run in runs if run.config.optimizer.name == "gi-adam"])
    claims = [_best_rate(adam, gi_adam), _warmup_helps(adam)]
    first = runs[0].config
    if (first.data.name, first.num_steps) == ("stdlib-text", 400):  # of which the expected losses are
        claims = [*_losses(adam, gi_adam), claims[0], _at_064(adam, gi_adam), claims[1]]
    return claims


def _losses(adam: PhaseDiagram, gi_adam: PhaseDiagram) -> list[Claim]:
    rates = (0.001, 0.004, 0.016, 0.064, 0.256)
    expected = {"Adam": (2.45, 2.20, 2.25, 2.72, 3.03), "GI-Adam": (2.75, 2.41, 2.19, 2.13, 2.67)}
    measured = {
        name: [diagram.at(rate, 1) for rate in rates]
        for name, diagram in (("Adam", adam), ("GI-Adam", gi_adam))
    }
    return [
        Claim(
            text=f"{name}, T_wrm = 1: test loss at η = {', '.join(f'{rate:g}' for rate in rates)}",
            expected="each within 0.2 of " + ", ".join(f"{loss:.2f}" for loss in expected[name]),
            measured=", ".join(f"{loss:.2f}" for loss in measured[name]),
            holds=all(abs(m - e) < 0.2 for m, e in zip(measured[name], expected[name], strict=True)),
        )
        for name in expected
    ]


def _best_rate(adam: PhaseDiagram, gi_adam: PhaseDiagram) -> Claim:
    best, best_gi = adam.best(1)[0], gi_adam.best(1)[0]
    return Claim(
        text="T_wrm = 1: best target rate, GI-Adam ÷ Adam",
        expected="≥ 4",
        measured=f"{best_gi / best:g} ({best_gi:g} ÷ {best:g})",
        holds=best_gi >= 4 * best,
    )


def _at_064(adam: PhaseDiagram, gi_adam: PhaseDiagram) -> Claim:
    gain = adam.at(0.064, 1) - gi_adam.at(0.064, 1)
    return Claim(
        text="T_wrm = 1, η = 0.064: test loss, Adam − GI-Adam",
        expected="≥ 0.3",
        measured=f"{gain:.2f}",
        holds=gain >= 0.3,
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
