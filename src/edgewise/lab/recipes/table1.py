"""Table 1: Adam, Adam started at the critical rate, GI-Adam and RAdam, with and without warmup."""

import statistics
from collections.abc import Sequence

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import settings
from edgewise.lab.recipes.recipe import Claim, Recipe, Table, optimizer_label
from edgewise.lab.results.phase_diagram import TEST_ACCURACY
from edgewise.lab.results.runs import Run

_ADAM, _SAVE, _GI_ADAM, _RADAM = "Adam", "Adam from η_c", "GI-Adam", "RAdam"


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return each optimizer without warmup and with a long one, over the seeds."""
    lr, num_steps, batch_size, long, seeds = {
        "demo": (0.016, 40, 64, 20, 2),
        "embedded": (0.016, 200, 64, 50, 3),
        "desk": (0.016, 4000, 128, 400, 4),
        "paper": (0.01024, 100_000, 128, 10_000, 4),
    }[scale]
    return tuple(
        RunConfig(
            **settings.wrn(scale, "sp"),
            optimizer=OptimizerConfig(name=optimizer, lr=lr),
            warmup=WarmupConfig(steps=steps, lr_init="critical" if critical else 0.0, decay="cosine"),
            num_steps=num_steps,
            batch_size=batch_size,
            seed=seed,
        )
        for optimizer, critical, lengths in (
            ("adam", False, (1, long)),
            ("adam", True, (long,)),
            ("gi-adam", False, (1, long)),
            ("radam", False, (1, long)),
        )
        for steps in lengths
        for seed in range(seeds)
    )


def row(config: RunConfig) -> str:
    """Return the optimizer, with where it starts."""
    return _SAVE if config.warmup.lr_init == "critical" else optimizer_label(config)


def column(config: RunConfig) -> str:
    """Return the warmup length."""
    return f"T_wrm = {config.warmup.steps}"


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what warmup does for Adam, and which of the others does without."""
    accuracies: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        key = row(run.config), column(run.config)
        accuracies.setdefault(key, []).append(run.outcome["test_accuracy"])
    short, long = dict.fromkeys(length for _, length in accuracies)

    def beside(name: str, better: tuple[str, str], worse: tuple[str, str]) -> Claim:
        first, second = accuracies[better], accuracies[worse]
        return Claim(
            text=f"test accuracy: {name}",
            expected=f"at least that of {', '.join(worse)}: {_mean_and_deviation(second)}",
            measured=_mean_and_deviation(first),
            holds=statistics.fmean(first) >= statistics.fmean(second),
        )

    return [
        beside(f"{_ADAM}, {long}", (_ADAM, long), (_ADAM, short)),
        beside(f"{_GI_ADAM}, {short}", (_GI_ADAM, short), (_ADAM, short)),
        beside(f"{_RADAM}, {short}", (_RADAM, short), (_ADAM, short)),
        beside(f"{_SAVE}, {long}", (_SAVE, long), (_ADAM, short)),
    ]


def _mean_and_deviation(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"


TABLE1 = Recipe(
    id="table1",
    title="Adam, with and without what helps it start",
    finding="A wide residual network, test accuracy, mean and deviation over seeds. Without warmup Adam is worst. "
    "Warmup from 0 or from η_c, GI-Adam and RAdam all mend it.",
    configs=configs,
    claims=claims,
    layout=Table(row=row, column=column, value=TEST_ACCURACY),
)
