"""Figure 20: the phase diagram of a language model with SGD, with and without the final LayerNorm."""

from collections.abc import Sequence

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import settings
from edgewise.lab.recipes.fig15 import norm_label
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe
from edgewise.lab.results.phase_diagram import PhaseDiagram, phase_diagram
from edgewise.lab.results.runs import Run


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return η_trgt = 2ˣ/λ₀ for x = 0, 1, … at each warmup length, for both architectures."""
    num_steps, lengths, largest = {
        "demo": (100, (1, 40), 8),
        "embedded": (300, (1, 32, 128), 12),
        "desk": (2000, (1, 20, 200, 1000), 12),
        "paper": (10_000, (1, 100, 1000, 5000), 12),
    }[scale]
    return tuple(
        RunConfig(
            **settings.lm(scale, final_norm=final_norm),
            optimizer=OptimizerConfig(name="sgd", lr=2.0**x, lr_unit="1/sharpness"),
            warmup=WarmupConfig(steps=warmup_steps, decay="cosine"),
            num_steps=num_steps,
            batch_size=64 if scale == "paper" else 16,
            seed=seed,
        )
        for final_norm in (True, False)
        for warmup_steps in lengths
        for x in range(largest + 1)
        for seed in settings.seeds(scale)
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what warmup does for either architecture."""
    normed, free = (
        phase_diagram([run for run in runs if run.config.model.final_norm is final_norm])
        for final_norm in (True, False)
    )
    return [
        _not_lowered("final LayerNorm", normed),
        _gains_more(normed, free),
    ]


def _not_lowered(name: str, diagram: PhaseDiagram) -> Claim:
    first, last = (diagram.boundary(diagram.warmups[i]) for i in (0, -1))
    return Claim(
        text=f"{name}: warmup does not lower the largest stable rate",
        expected=f"η_trgt·λ₀ at T_wrm = {diagram.warmups[-1]} at least that at 1",
        measured=f"{first:g} → {last:g}",
        holds=last >= first,
    )


def _gains_more(normed: PhaseDiagram, free: PhaseDiagram) -> Claim:
    gains = [_ratio(diagram) for diagram in (normed, free)]
    return Claim(
        text="the sharp start gains more by warmup: largest stable rate, longest warmup ÷ none",
        expected="larger without the final LayerNorm than with it",
        measured=f"{gains[1]:g} without, {gains[0]:g} with",
        holds=gains[1] > gains[0],
    )


def _ratio(diagram: PhaseDiagram) -> float:
    first, last = (diagram.boundary(diagram.warmups[i]) for i in (0, -1))
    return last / first if first else float("inf")


FIG20 = Recipe(
    id="fig20",
    title="Phase diagrams of a Transformer with SGD",
    finding="A Pre-LN language model, rates in units of 1/λ₀. Without the final LayerNorm the start is sharp, and "
    "warmup lets the rate grow. With it the start is flat, and there is less to gain.",
    configs=configs,
    claims=claims,
    layout=PhaseDiagrams(panel=norm_label),
)
