"""Figures 23 to 25: Adam against GI-Adam on other data."""

from collections.abc import Sequence
from dataclasses import replace

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import fig4, settings
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe, number, optimizer_label
from edgewise.lab.results.phase_diagram import TEST_ACCURACY, TEST_LOSS, CellValue, phase_diagram
from edgewise.lab.results.runs import Run


def image_configs(scale: str, images: str) -> tuple[RunConfig, ...]:
    """Return η_trgt = η₀·2ˣ at each warmup length, for both optimizers."""
    smallest, num_rates, num_steps, batch_size, lengths = {
        "demo": (1e-3, 6, 100, 64, (1, 20)),
        "embedded": (1e-3, 10, 200, 64, (1, 40)),
        "desk": (2.5e-4, 12, 2000, 128, (1, 40, 200, 1000)),
        "paper": (1e-5, 16, 100_000, 128, (1, 500, 2000, 10_000, 50_000)),
    }[scale]
    return tuple(
        RunConfig(
            **settings.wrn(scale, "sp", images),
            optimizer=OptimizerConfig(name=optimizer, lr=smallest * 2**x),
            warmup=WarmupConfig(steps=warmup_steps, decay="cosine"),
            num_steps=num_steps,
            batch_size=batch_size,
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


def claims(runs: Sequence[Run], value: CellValue) -> list[Claim]:
    """Return what GI-Adam does for the boundary and for the best value, without warmup."""
    adam, gi_adam = (
        phase_diagram([run for run in runs if run.config.optimizer.name == name], value)
        for name in ("adam", "gi-adam")
    )
    boundaries = [diagram.boundary(1) for diagram in (adam, gi_adam)]
    best = [diagram.best(1) for diagram in (adam, gi_adam)]
    better = best[1][1] <= best[0][1] if value.lower_is_better else best[1][1] >= best[0][1]
    return [
        Claim(
            text="T_wrm = 1: the failure boundary of GI-Adam, beside Adam's",
            expected="at least Adam's",
            measured=f"{boundaries[1]:g} beside {boundaries[0]:g}",
            holds=boundaries[1] >= boundaries[0] > 0,
        ),
        Claim(
            text="T_wrm = 1: the best target rate of GI-Adam, beside Adam's",
            expected="larger than Adam's",
            measured=f"{best[1][0]:g} beside {best[0][0]:g}",
            holds=best[1][0] > best[0][0],
        ),
        Claim(
            text=f"T_wrm = 1: the best {value.label} of GI-Adam, beside Adam's",
            expected="as good at least",
            measured=f"{number(best[1][1])} beside {number(best[0][1])}",
            holds=better,
        ),
    ]


def _on_images(figure: str, images: str, name: str, stand_in: str) -> Recipe:
    return Recipe(
        id=figure,
        title=f"Adam and GI-Adam on {name}",
        finding="A wide residual network with cosine decay. Without warmup GI-Adam takes larger rates than Adam, "
        f"and reaches as good a result. At smaller scales {stand_in} stand in for {name}.",
        configs=lambda scale: image_configs(scale, images),
        claims=lambda runs: claims(runs, TEST_ACCURACY),
        layout=PhaseDiagrams(panel=optimizer_label, value=TEST_ACCURACY),
    )


FIG23 = _on_images("fig23", "cifar100", "CIFAR-100", "pairs of digits")
FIG24 = _on_images("fig24", "tiny-imagenet", "Tiny-ImageNet", "pairs of digits of twice the size")
FIG25 = Recipe(
    id="fig25",
    title="Adam and GI-Adam on WikiText-2",
    finding="Figure 4 on the other WikiText. Without warmup GI-Adam takes larger rates than Adam, at lower loss. At "
    "smaller scales one text stands in for both, and the runs are those of figure 4.",
    configs=text_configs,
    claims=lambda runs: claims(runs, TEST_LOSS),
    layout=PhaseDiagrams(panel=optimizer_label),
)
