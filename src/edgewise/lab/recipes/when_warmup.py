"""When warmup is needed: what the best length gains over none, over how far beyond the edge training would start."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgewise.lab.configs import RunConfig, WarmupConfig
from edgewise.lab.recipes import fig3, fig4, fig20, fig23
from edgewise.lab.recipes.fig15 import norm_label
from edgewise.lab.recipes.recipe import Claim, Gains, Recipe, number, optimizer_label
from edgewise.lab.results.gains import Gain, Rule, gains, out_of_reach, rule
from edgewise.lab.results.phase_diagram import CellValue
from edgewise.lab.results.runs import Run

_IMAGE_SEEDS = {"demo": 1, "embedded": 2, "desk": 1, "paper": 1}  # the embedded test set has 360 images
_ACCURACY, _LOSS = 0.01, 0.02  # what a gain must be above


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return phase diagrams that span the starts and the optimizers, and a run of one step at each start of Adam's."""
    cells = [
        replace(config, seed=seed, evaluate_every=None)  # what one is left with, not the best on the way
        for config in _diagrams(scale)
        if config.seed == 0
        for seed in range(1 if _is_lm(config) else _IMAGE_SEEDS[scale])
    ]
    starts = [start_of(config) for config in cells if config.optimizer.traits.adaptive]
    return (*cells, *dict.fromkeys(starts))


def _diagrams(scale: str) -> Iterable[RunConfig]:
    """Yield figures 3, 20, 4 and 23, and what 21 and 22 have with momentum alone."""
    yield from fig3.configs(scale)
    for parameterization in ("mup", "sp"):
        yield from fig3.grid(scale, parameterization, momentum=0.9)
    yield from fig20.configs(scale)
    yield from fig23.image_configs(scale, "cifar100")
    yield from fig4.configs(scale)


def start_of(config: RunConfig) -> RunConfig:
    """Return the run of one step that measures the preconditioned sharpness where a run of Adam's starts."""
    return replace(
        config,
        optimizer=replace(config.optimizer, lr=1e-3),  # of which the first P knows nothing
        warmup=WarmupConfig(),
        num_steps=1,
        measure=("preconditioned_sharpness",),
    )


def panel_label(config: RunConfig) -> str:
    """Return the optimizer's kind, and what the gain is in."""
    kind = "Adam" if config.optimizer.traits.adaptive else "SGD"
    return f"{kind}: {'test loss, language model' if _is_lm(config) else 'test accuracy, residual network'}"


def line_label(config: RunConfig) -> str:
    """Return network, start and optimizer."""
    parts = ["LM" if _is_lm(config) else "WRN"]
    if not config.optimizer.traits.adaptive:
        plain = replace(config, optimizer=replace(config.optimizer, momentum=0.0))
        parts.append(norm_label(config) if _is_lm(config) else fig3.panel_label(plain))
    return ", ".join([*parts, optimizer_label(config)])


def worth(run: Run) -> float:
    """Return the test accuracy, of a language model the test loss with a minus: the higher, the better."""
    return float(-run.outcome["test_loss"] if _is_lm(run.config) else run.outcome["test_accuracy"])


def tolerance(config: RunConfig) -> float:
    """Return what a gain must be above to count: 0.02 of test loss, 0.01 of test accuracy."""
    return _LOSS if _is_lm(config) else _ACCURACY


def _is_lm(config: RunConfig) -> bool:
    return config.model.name == "lm"


VALUE = CellValue(label="gain of the best length over none", of=worth, digits=3)


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return for each line how the rule fares: needed where training would start at the edge or beyond, else not."""
    lines: dict[str, list[Run]] = {}
    for run in runs:
        lines.setdefault(line_label(run.config), []).append(run)
    gained = {line: gains(its, VALUE) for line, its in lines.items()}
    found = []
    for line, its in lines.items():
        limit = tolerance(its[0].config)
        fares = rule(gained[line], limit)
        if fares.below:
            found.append(_not_needed(line, fares, limit))
        found.append(_needed(line, fares, limit, out_of_reach(its, VALUE)))
    return found + _repeated([gain for its in gained.values() for gain in its])


def _not_needed(line: str, fares: Rule, limit: float) -> Claim:
    return Claim(
        text=f"{line}: where training starts stable, warmup gains no more than {limit:g}",
        expected="at no rate more",
        measured=f"more at {fares.missed} of {fares.below}",
        holds=fares.missed == 0,
    )


def _needed(line: str, fares: Rule, limit: float, unreachable: int) -> Claim:
    onset = fares.onset
    since = (
        f"at all from {number(onset.distance)} times the limit on (η = {onset.target})"
        if onset
        else "not at the largest"
    )
    return Claim(
        text=f"{line}: where training starts at the edge or beyond, warmup gains more than {limit:g}",
        expected="at every rate that trains with some length",
        measured=f"at {fares.found} of {fares.beyond}, {since}; {fares.decided} train with warmup alone, "
        f"{unreachable} with no length",
        holds=fares.found == fares.beyond,
    )


def _repeated(found: Sequence[Gain]) -> list[Claim]:
    """Return what chance is worth, where the residual network was trained on several seeds."""
    at_rate: dict[RunConfig, list[float]] = {}
    for gain in found:
        if math.isfinite(gain.value) and not _is_lm(gain.config):
            at_rate.setdefault(replace(gain.config, seed=0), []).append(gain.value)
    spreads = [max(values) - min(values) for values in at_rate.values() if len(values) > 1]
    if not spreads:
        return []
    typical = statistics.median(spreads)
    return [
        Claim(
            text=f"the gain of the residual network at a rate is the same on two seeds, to {_ACCURACY:g}",
            expected="in the median",
            measured=f"apart by {number(typical)} in the median, {number(max(spreads))} at most, "
            f"over {len(spreads)} rates",
            holds=typical <= _ACCURACY,
        )
    ]


RECIPE = Recipe(
    id="when-warmup",
    title="When warmup is needed",
    finding="The gain of the best length over none at each target rate, over how far beyond the stability limit the "
    "first update would be: η_trgt·λ₀ ÷ 2, for Adam η_trgt times the initial preconditioned sharpness ÷ 38. The rule "
    "under test: left of the dashed line, where training starts stable, no warmup is needed. Right of it, it is.",
    configs=configs,
    claims=claims,
    layout=Gains(panel=panel_label, line=line_label, value=VALUE, tolerance=tolerance),
)
