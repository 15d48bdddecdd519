"""Figures 23 to 25: Adam against GI-Adam on other data."""

from collections.abc import Sequence
from dataclasses import replace

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import fig4, rates, settings
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe, number, optimizer_label
from edgewise.lab.results.phase_diagram import (
    BEST_ACCURACY,
    TEST_LOSS,
    CellValue,
    PhaseDiagram,
    phase_diagram,
)
from edgewise.lab.results.runs import Run


def image_configs(scale: str, images: str) -> tuple[RunConfig, ...]:
    """Return η_trgt = η₀·2ˣ at each warmup length, for both optimizers."""
    smallest, num_rates, num_steps, batch_size, lengths, every = {
        "demo": (1e-3, 6, 100, 64, (1, 20), 10),
        "embedded": (1e-3, 10, 200, 64, (1, 40), 10),
        "desk": (2.5e-4, 12, 2000, 128, (1, 40, 200, 1000), 50),
        "paper": (1e-5, 16, 100_000, 128, (1, 500, 2000, 10_000, 50_000), 1000),
    }[scale]
    return tuple(
        RunConfig(
            **settings.wrn(scale, "sp", images),
            optimizer=OptimizerConfig(name=optimizer, lr=smallest * 2**x),
            warmup=WarmupConfig(steps=warmup_steps, decay="cosine"),
            num_steps=num_steps,
            batch_size=batch_size,
            evaluate_every=every,
            seed=seed,
        )
        for optimizer in ("adam", "gi-adam")
        for warmup_steps in lengths
        for x in range(num_rates)
        for seed in settings.seeds(scale)
    )


def text_configs(scale: str) -> tuple[RunConfig, ...]:
    """Return figure 4 on the other WikiText; at smaller scales one text stands in for both."""
    if scale != "paper":
        return fig4.configs(scale)
    return tuple(
        replace(config, data=replace(config.data, name="wikitext-2")) for config in fig4.configs(scale)
    )


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what GI-Adam does on images for the boundary and for the best accuracy, without warmup."""
    adam, gi_adam = _diagrams(runs, BEST_ACCURACY)
    expected = "4 times Adam's at least: two octaves, as in the paper's released table (CIFAR-10)"
    boundary = _boundary(adam, gi_adam, 4, expected)
    return [boundary, *_best(adam, gi_adam)]


def claims_on_rates(runs: Sequence[Run]) -> list[Claim]:
    """Return these claims, and that the rate decides for either optimizer."""
    adam, gi_adam = _diagrams(runs, BEST_ACCURACY)
    return [*claims(runs), rates.decide("Adam", adam), rates.decide("GI-Adam", gi_adam)]


def text_claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what GI-Adam does on text, for which the paper has no table."""
    adam, gi_adam = _diagrams(runs, TEST_LOSS)
    return [_boundary(adam, gi_adam, 1, "at least Adam's"), *_best(adam, gi_adam)]


def _diagrams(runs: Sequence[Run], value: CellValue) -> tuple[PhaseDiagram, PhaseDiagram]:
    adam, gi_adam = (
        phase_diagram([run for run in runs if run.config.optimizer.name == name], value)
        for name in ("adam", "gi-adam")
    )
    return adam, gi_adam


def _boundary(adam: PhaseDiagram, gi_adam: PhaseDiagram, least: float, expected: str) -> Claim:
    first, second = adam.boundary(1), gi_adam.boundary(1)
    return Claim(
        text="T_wrm = 1: the failure boundary of GI-Adam, beside Adam's",
        expected=expected,
        measured=f"{second:g} beside {first:g}",
        holds=second >= least * first > 0,
    )


def _best(adam: PhaseDiagram, gi_adam: PhaseDiagram) -> list[Claim]:
    (rate, best), (gi_rate, gi_best) = adam.best(1), gi_adam.best(1)
    value = adam.value
    return [
        Claim(
            text="T_wrm = 1: the best target rate of GI-Adam, beside Adam's",
            expected="larger than Adam's",
            measured=f"{gi_rate:g} beside {rate:g}",
            holds=gi_rate > rate,
        ),
        Claim(
            text=f"T_wrm = 1: the best {value.label.removeprefix('best ')} of GI-Adam, beside Adam's",
            expected="as good at least",
            measured=f"{number(gi_best)} beside {number(best)}",
            holds=gi_best <= best if value.lower_is_better else gi_best >= best,
        ),
    ]


def _on_images(figure: str, images: str, name: str, stand_in: str) -> Recipe:
    return Recipe(
        id=figure,
        title=f"Adam and GI-Adam on {name}",
        finding="A wide residual network with cosine decay. Without warmup GI-Adam takes larger rates than Adam, "
        f"and reaches as good a result. At smaller scales {stand_in} stand in for {name}.",
        configs=lambda scale: image_configs(scale, images),
        claims=claims,
        layout=PhaseDiagrams(panel=optimizer_label, value=BEST_ACCURACY),
    )


FIG23 = replace(_on_images("fig23", "cifar100", "CIFAR-100", "pairs of digits"), claims=claims_on_rates)
FIG24 = _on_images("fig24", "tiny-imagenet", "Tiny-ImageNet", "pairs of digits of twice the size")
FIG25 = Recipe(
    id="fig25",
    title="Adam and GI-Adam on WikiText-2",
    finding="Figure 4 on the other WikiText. Without warmup GI-Adam takes larger rates than Adam, at lower loss. At "
    "smaller scales one text stands in for both, and the runs are those of figure 4.",
    configs=text_configs,
    claims=text_claims,
    layout=PhaseDiagrams(panel=optimizer_label),
)
