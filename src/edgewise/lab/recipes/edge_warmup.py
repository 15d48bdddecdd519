"""EdgeWarmup beside every linear length: optimizers × target rates × tasks × seeds. Beyond the paper.

Its constants were chosen on the tasks of `DEVELOPMENT` and then left alone; `HELD_OUT` shows what that was worth.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes.recipe import Claim, PhaseDiagrams, Recipe, number, optimizer_label
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.results.runs import Run

LENGTHS = (1, 8, 32, 64, 128, 200)
NUM_STEPS = 400
OCTAVES = (-1.5, -0.75, 0.0, 0.75, 1.5)  # of the target rates, around a rough best
TOO_HIGH = (2, 4)  # octaves above the largest rate that trains
_CLOSE = 0.01  # relative gap that counts as a tie, or one deviation over the seeds if that is larger
SEEDS = range(3)
OTHER_SEEDS = range(3, 6)  # on which the lengths that were best on the first are tried, beside EdgeWarmup
_SEEDS_AT = {"demo": range(1), "embedded": SEEDS, "paper": range(OTHER_SEEDS.stop)}
EDGE, LINEAR = "edge", "linear"


def _digits(model: str, parameterization: str, depth: int, width: int) -> dict[str, Any]:
    return {
        "data": DataConfig(name="digits"),
        "model": ModelConfig(name=model, depth=depth, width=width, parameterization=parameterization),
        "batch_size": 64,
    }


def _lm(batch_size: int, *, final_norm: bool = True) -> dict[str, Any]:
    return {
        "data": DataConfig(name="stdlib-text", context=16),
        "model": ModelConfig(name="lm", depth=1, width=32, parameterization="sp", final_norm=final_norm),
        "batch_size": batch_size,
    }


DEVELOPMENT = {
    "FCN, SP, MSE": _digits("fcn", "sp", 3, 64) | {"loss": "mse"},
    "conv net, BatchNorm": _digits("cnn", "sp", 3, 16),
    "LM, B = 16": _lm(16),
}
HELD_OUT = {
    "FCN, μP": _digits("fcn", "mup", 3, 64),
    "LM, B = 64": _lm(64),
    "LM, no final LayerNorm": _lm(16, final_norm=False),
}
TASKS = DEVELOPMENT | HELD_OUT

_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"name": "sgd"},
    "SGD-M": {"name": "sgd", "momentum": 0.9},
    "Adam": {"name": "adam"},
    "AdamW": {"name": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.1},
    "GI-AdamW": {"name": "gi-adamw", "weight_decay": 0.1},
    "NAdam": {"name": "nadam"},
    "Lion": {"name": "lion", "betas": (0.9, 0.99)},
}
# log₂ of a rough best rate, and of the largest that trains, from one run an octave (seed 10, T_wrm = 32 and 128).
_BEST_AND_LARGEST: dict[str, tuple[tuple[float, int], ...]] = {
    "FCN, SP, MSE": ((0, 0), (-1.5, 0), (-4, -2), (-5, -2), (-3, 0), (-4.5, -3), (-9, -6)),
    "conv net, BatchNorm": ((1, 3), (-2, 3), (-3, -1), (-4, -1), (-7, 0), (-4, -1), (-8, -4)),
    "LM, B = 16": ((0.5, 1), (-1, 0), (-5, -2), (-5, -1), (-4, 0), (-5, -2), (-8, -4)),
    "FCN, μP": ((0, 2), (-2, -1), (-3, -1), (-2, -1), (-1, 0), (-2.5, -1), (-6, -4)),
    "LM, B = 64": ((0.5, 1), (0.5, 1), (-4, -1), (-4, -1), (-3, 0), (-4.5, -2), (-8, -4)),
    "LM, no final LayerNorm": ((-1, -1), (-2, -2), (-4, -3), (-5, -1), (-3.5, 0), (-4, -2), (-7, -6)),
}


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return every task, optimizer, rate, seed and warmup; the task is the same at every scale."""
    return tuple(
        config
        for task, settings in TASKS.items()
        for (name, optimizer), (best, largest) in zip(
            _OPTIMIZERS.items(), _BEST_AND_LARGEST[task], strict=True
        )
        for config in (
            *_grid(settings, name, optimizer, best, _SEEDS_AT[scale]),
            *_too_high(settings, optimizer, largest),
        )
    )


def _grid(
    settings: dict[str, Any], name: str, optimizer: dict[str, Any], best: float, seeds: Iterable[int]
) -> Iterable[RunConfig]:
    for octave in OCTAVES:
        its = OptimizerConfig(**optimizer, lr=2.0 ** (best + octave))
        for seed in seeds:
            for warmup in _warmups(its):
                in_grid = warmup.kind == LINEAR and warmup.steps in LENGTHS
                if seed in SEEDS or in_grid or warmup.kind == EDGE:
                    yield _run(settings, its, warmup, seed)
            if name == "Adam" and seed in SEEDS:
                yield _run(settings, replace(its, name="radam"), WarmupConfig(decay="cosine"), seed)


def _too_high(settings: dict[str, Any], optimizer: dict[str, Any], largest: int) -> Iterable[RunConfig]:
    """Return runs at rates that no length should train at, and the longest length at the lower one, to see that."""
    for octaves in TOO_HIGH:
        its = OptimizerConfig(**optimizer, lr=2.0 ** (largest + octaves))
        yield _run(settings, its, WarmupConfig(kind=EDGE, decay="cosine"), 0)
        yield _run(settings, its, WarmupConfig(steps=LENGTHS[-1], decay="cosine"), 0)


def _warmups(optimizer: OptimizerConfig) -> list[WarmupConfig]:
    """Return EdgeWarmup, catapults, the grid of lengths, and the rule of thumb 2/(1 − β₂) where there is a β₂."""
    lengths = list(LENGTHS)
    if optimizer.name != "sgd":
        lengths.append(min(NUM_STEPS, round(2 / (1 - optimizer.betas[1]))))
    linear = [WarmupConfig(steps=steps, decay="cosine") for steps in dict.fromkeys(lengths)]
    return [*(WarmupConfig(kind=kind, decay="cosine") for kind in (EDGE, "catapult")), *linear]


def _run(settings: dict[str, Any], optimizer: OptimizerConfig, warmup: WarmupConfig, seed: int) -> RunConfig:
    return RunConfig(**settings, optimizer=optimizer, warmup=warmup, num_steps=NUM_STEPS, seed=seed)


def task_of(config: RunConfig) -> str:
    """Return the name of a run's task."""
    same = {"data": config.data, "model": config.model, "batch_size": config.batch_size}
    return next(
        name
        for name, settings in TASKS.items()
        if same == {key: settings[key] for key in same} and settings.get("loss", "xent") == config.loss
    )


def is_edge(config: RunConfig) -> bool:
    """Whether the run is one of EdgeWarmup."""
    return config.warmup.kind == EDGE


def key_of(config: RunConfig) -> tuple[str, str, float]:
    """Return a run's cell: task, optimizer and target rate."""
    optimizer = config.optimizer
    return task_of(config), "sgd-m" if optimizer.momentum else optimizer.name, optimizer.lr


def row_of(config: RunConfig) -> str | int:
    """Return what a run's cell is trained with: the length of a linear warmup, or the kind of another."""
    return config.warmup.steps if config.warmup.kind == LINEAR else config.warmup.kind


def panel_label(config: RunConfig) -> str:
    """Return task and optimizer."""
    return f"{task_of(config)}; {optimizer_label(config)}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One task, optimizer and target rate: final test losses over the seeds, by warmup."""

    task: str
    optimizer: str
    lr: float
    edge: tuple[float, ...]  # infinite where a seed did not train
    linear: dict[int, tuple[float, ...]]  # by length
    overhead: float  # of EdgeWarmup, the mean over the seeds

    @property
    def key(self) -> tuple[str, str, float]:
        """The cell, as `key_of` says it of a run."""
        return self.task, self.optimizer, self.lr

    @property
    def best_length(self) -> int:
        """The length with the smallest mean loss."""
        return min(LENGTHS, key=lambda steps: statistics.fmean(self.linear[steps]))

    @property
    def trainable(self) -> bool:
        """Whether any length trains every seed."""
        return math.isfinite(statistics.fmean(self.linear[self.best_length]))

    def gap(self, length: int) -> float:
        """Return mean loss over that of a linear length, minus 1."""
        other = statistics.fmean(self.linear[length])
        mine = statistics.fmean(self.edge)
        return mine / other - 1 if math.isfinite(other) else -math.inf if math.isfinite(mine) else 0.0

    def ties(self, length: int) -> bool:
        """Whether the gap is at most 1 %, or one deviation over the seeds if that is larger."""
        others = self.linear[length]
        if not math.isfinite(statistics.fmean(others)):
            return True
        deviation = statistics.stdev(others) / statistics.fmean(others) if len(others) > 1 else 0.0
        return self.gap(length) <= max(_CLOSE, deviation)


def final_loss(outcome: dict[str, Any]) -> float:
    """Return the test loss at the end, infinite where the run did not train."""
    return float(outcome["test_loss"]) if cell_of(outcome) is Cell.TRAINED else math.inf


def cell_results(runs: Sequence[Run], seeds: Iterable[int] = SEEDS) -> list[CellResult]:
    """Return the cells of the grid, over some seeds."""
    losses: dict[tuple[str, str, float], dict[str | int, list[float]]] = {}
    overheads: dict[tuple[str, str, float], list[float]] = {}
    for run in runs:
        if run.config.seed not in seeds:
            continue
        key = key_of(run.config)
        losses.setdefault(key, {}).setdefault(row_of(run.config), []).append(final_loss(run.outcome))
        if is_edge(run.config):
            overheads.setdefault(key, []).append(run.outcome["warmup"]["overhead"])
    return [
        CellResult(
            task=task,
            optimizer=optimizer,
            lr=lr,
            edge=tuple(its[EDGE]),
            linear={steps: tuple(its[steps]) for steps in LENGTHS},
            overhead=statistics.fmean(overheads[task, optimizer, lr]),
        )
        for (task, optimizer, lr), its in losses.items()
        if {EDGE, *LENGTHS} <= set(its)
    ]


def fixed_length(cells: Sequence[CellResult]) -> int:
    """Return the one length that is best on average: fewest failures, then the smallest mean log loss."""

    def badness(steps: int) -> tuple[int, float]:
        means = [statistics.fmean(cell.linear[steps]) for cell in cells]
        finite = [math.log(mean) for mean in means if math.isfinite(mean)]
        return len(means) - len(finite), statistics.fmean(finite) if finite else math.inf

    return min(LENGTHS, key=badness)


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return what a warmup without a length must show, on both halves of the tasks."""
    found = []
    for half, tasks in (("held out", HELD_OUT), ("development", DEVELOPMENT)):
        cells = [cell for cell in cell_results(runs) if cell.task in tasks and cell.trainable]
        if cells:
            found += _claims(half, cells)
            found.append(_held(half, [run for run in runs if task_of(run.config) in tasks]))
            for first, second in ((SEEDS, OTHER_SEEDS), (OTHER_SEEDS, SEEDS)):
                found += _beside_tuned(half, tasks, runs, first, second)
    return found


def _claims(half: str, cells: list[CellResult]) -> list[Claim]:
    length = fixed_length(cells)
    ties = [cell.ties(cell.best_length) for cell in cells]
    fixed = [cell.ties(length) for cell in cells]
    gaps = [cell.gap(length) for cell in cells if math.isfinite(cell.gap(length))]
    failed = [cell for cell in cells if not math.isfinite(statistics.fmean(cell.edge))]
    overhead = max(cell.overhead for cell in cells)
    share = sum(ties) / len(ties)
    return [
        Claim(
            text=f"{half}: final loss within 1 % or a seed deviation of the best of six lengths",
            expected="in 90 % of the cells at least",
            measured=f"{sum(ties)} of {len(ties)} ({share:.0%})",
            holds=share >= 0.9,
        ),
        Claim(
            text=f"{half}: the same, against the one length that is best on average, T_wrm = {length}",
            expected="in every cell, and better in the mean",
            measured=f"{sum(fixed)} of {len(fixed)}, mean gap {statistics.fmean(gaps):+.1%}",
            holds=all(fixed) and statistics.fmean(gaps) < 0,
        ),
        Claim(
            text=f"{half}: cells that fail although some length trains",
            expected="none",
            measured=f"{len(failed)} of {len(cells)}",
            holds=not failed,
        ),
        Claim(
            text=f"{half}: forwards, as a share of the training's cost",
            expected="at most 3 %",
            measured=f"at most {overhead:.1%}",
            holds=overhead <= 0.03,
        ),
    ]


def _beside_tuned(
    half: str, tasks: Iterable[str], runs: Sequence[Run], first: range, second: range
) -> list[Claim]:
    """Return how often EdgeWarmup ties on the second seeds, and the length that was best on the first."""
    cells, others = (
        [cell for cell in cell_results(runs, seeds) if cell.task in tasks and cell.trainable]
        for seeds in (first, second)
    )
    if not cells or not others:
        return []
    best = {cell.key: cell.best_length for cell in cells}
    own = [cell for cell in others if cell.key in best]
    tuned = [replace(cell, edge=cell.linear[best[cell.key]]) for cell in own]
    fails = [sum(not math.isfinite(sum(cell.edge)) for cell in its) for its in (own, tuned)]
    fixed = fixed_length(cells)
    found = []
    for words, lengths in (
        ("the best of six lengths", [cell.best_length for cell in own]),
        (f"T_wrm = {fixed}", [fixed] * len(own)),
    ):
        ties = [sum(map(CellResult.ties, its, lengths)) for its in (own, tuned)]
        found.append(
            Claim(
                text=f"{half}, seeds {second[0]} to {second[-1]}: {words}, beside the length that was best "
                f"on seeds {first[0]} to {first[-1]}",
                expected="ties as often as that length, and fails no more",
                measured=f"{ties[0]} of {len(own)}, {fails[0]} fail; that length {ties[1]}, {fails[1]} fail",
                holds=ties[0] >= ties[1] and fails[0] <= fails[1],
            )
        )
    return found


def _held(half: str, runs: Sequence[Run]) -> Claim:
    """Return what becomes of targets at which the longest length does not train."""
    grid = {
        (task_of(run.config), run.config.optimizer)
        for run in runs
        if run.config.warmup.kind == LINEAR and run.config.warmup.steps == LENGTHS[0]
    }
    above = [run for run in runs if (task_of(run.config), run.config.optimizer) not in grid]
    too_high = {
        (task_of(run.config), run.config.optimizer)
        for run in above
        if run.config.warmup.kind == LINEAR and cell_of(run.outcome) is not Cell.TRAINED
    }
    edge = [
        run
        for run in above
        if is_edge(run.config) and (task_of(run.config), run.config.optimizer) in too_high
    ]
    trained = [run for run in edge if cell_of(run.outcome) is Cell.TRAINED]
    held = [run for run in trained if run.outcome["warmup"]["lr_held"] is not None]
    return Claim(
        text=f"{half}: targets 4 and 16 times too high, where T_wrm = {LENGTHS[-1]} fails",
        expected="all train, held below the target",
        measured=f"{len(trained)} of {len(edge)} train, {len(held)} of them held; loss in the median "
        f"{number(_over_best(trained, runs))} times that of the best rate with its best length",
        holds=bool(edge) and len(held) == len(edge),
    )


def _over_best(trained: Sequence[Run], runs: Sequence[Run]) -> float:
    """Return the median of the losses over the smallest that linear warmup reaches with the optimizer, on a seed."""
    best: dict[tuple[str, int], float] = {}
    for run in runs:
        if run.config.warmup.kind == LINEAR and cell_of(run.outcome) is Cell.TRAINED:
            key = panel_label(run.config), run.config.seed
            best[key] = min(best.get(key, math.inf), run.outcome["test_loss"])
    ratios = [run.outcome["test_loss"] / best[panel_label(run.config), run.config.seed] for run in trained]
    return statistics.median(ratios) if ratios else math.nan


RECIPE = Recipe(
    id="edge-warmup",
    title="One run instead of the warmup axis: EdgeWarmup beside every length",
    finding="Final test loss over target rate and warmup. The last rows are EdgeWarmup and persistent "
    "catapults, which have no length. Each panel is one optimizer on one task.",
    configs=configs,
    claims=claims,
    layout=PhaseDiagrams(panel=panel_label, columns=len(_OPTIMIZERS) + 1, climbs=False),  # RAdam beside Adam,
)
