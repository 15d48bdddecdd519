"""What a warmup without a length must show."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgewise.lab.recipes.edge_warmup.cells import (
    CellResult,
    cell_results,
    fixed_length,
    is_edge,
    panel_label,
    task_of,
)
from edgewise.lab.recipes.edge_warmup.grid import DEVELOPMENT, HELD_OUT, LENGTHS, LINEAR, OTHER_SEEDS, SEEDS
from edgewise.lab.recipes.recipe import Claim, number
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.results.runs import Run


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
    fails = [sum(not math.isfinite(sum(cell.edge)) for cell in side) for side in (own, tuned)]
    fixed = fixed_length(cells)
    found = []
    for words, lengths in (
        ("the best of six lengths", [cell.best_length for cell in own]),
        (f"T_wrm = {fixed}", [fixed] * len(own)),
    ):
        ties = [sum(map(CellResult.ties, side, lengths)) for side in (own, tuned)]
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
