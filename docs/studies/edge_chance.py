"""How far chance goes: runs of the recipe `edge-warmup` once more, at a rate that differs by a millionth.

Near the edge of stability the last bits of a rate decide what a run comes to, so that not even a length always ties
with itself. `edgewise figure edge-warmup --scale paper --out DIR`, then `python docs/studies/edge_chance.py DIR OUT`:
trains into OUT, on the same seeds, EdgeWarmup, the best length of each cell, and the best fixed length of each half of
the tasks; prints how often each of them ties with what those lengths came to in DIR. Continues where it was stopped.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from edgewise.lab import sweep, terminal
from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes.edge_warmup import RECIPE
from edgewise.lab.recipes.edge_warmup.cells import (
    CellResult,
    cell_results,
    final_loss,
    fixed_length,
    key_of,
    row_of,
)
from edgewise.lab.recipes.edge_warmup.grid import DEVELOPMENT, EDGE, HELD_OUT, SEEDS
from edgewise.lab.results.runs import Run
from edgewise.lab.results.store import Store

NUDGE = 1 + 2**-20  # factor on the rate, a millionth
Row = tuple[str, str, float, str | int]  # task, optimizer, rate, and what it is trained with
Half = tuple[str, list[CellResult], int]  # its name, its cells that some length trains, its best fixed length


def main(path: Path, out: Path) -> None:
    """Train what is missing, and print the table."""
    runs = stored_runs(path)
    halves = halves_of(cell_results(runs))
    configs = [nudged(run.config) for _, cells, fixed in halves for run in held(runs, cells, fixed)]
    planned = {RECIPE.id: [(config,) for config in configs]}
    with terminal.bars(planned, Console()) as move:
        store = sweep.run(planned, "paper", out, on_progress=move)
    again = [store.runs.load(config.run_id) for config in configs]
    print("| half | what | ties with the best length | with the best fixed one | fails |")
    print("|---|---|---|---|---|")
    for half in halves:
        for line in lines(half, again):
            print(line)


def stored_runs(path: Path) -> list[Run]:
    """Return the runs of the grid, on the first seeds."""
    store = Store.open(path)
    return [store.runs.load(c.run_id) for c in RECIPE.configs(store.figures[0].scale) if c.seed in SEEDS]


def halves_of(cells: Sequence[CellResult]) -> list[Half]:
    """Return both halves of the tasks."""
    halves = []
    for name, tasks in (("held out", HELD_OUT), ("development", DEVELOPMENT)):
        own = [cell for cell in cells if cell.task in tasks and cell.trainable]
        halves.append((name, own, fixed_length(own)))
    return halves


def held(runs: Sequence[Run], cells: Sequence[CellResult], fixed: int) -> list[Run]:
    """Return the runs of EdgeWarmup in these cells, and those of their best length and of the fixed one."""
    rows = {cell.key: {EDGE, cell.best_length, fixed} for cell in cells}
    return [run for run in runs if row_of(run.config) in rows.get(key_of(run.config), ())]


def nudged(config: RunConfig) -> RunConfig:
    """Return the same run at a rate that differs by a millionth."""
    return replace(config, optimizer=replace(config.optimizer, lr=config.optimizer.lr * NUDGE))


def lines(half: Half, again: Sequence[Run]) -> list[str]:
    """Return Markdown lines: EdgeWarmup as stored and again, and the lengths that it is held against again."""
    name, cells, fixed = half
    losses: dict[Row, list[float]] = {}
    for run in again:
        losses.setdefault((*key_of(run.config), row_of(run.config)), []).append(final_loss(run.outcome))
    made = []
    for what, own in (
        ("EdgeWarmup", cells),
        ("EdgeWarmup again", [_with(cell, losses, EDGE) for cell in cells]),
        ("best length again", [_with(cell, losses, cell.best_length) for cell in cells]),
        (f"T = {fixed} again", [_with(cell, losses, fixed) for cell in cells]),
    ):
        best = sum(cell.ties(cell.best_length) for cell in own)
        beside = sum(cell.ties(fixed) for cell in own)
        fails = sum(not math.isfinite(statistics.fmean(cell.edge)) for cell in own)
        made.append(f"| {name}, {len(cells)} cells | {what} | {best} | {beside} | {fails} |")
    return made


def _with(cell: CellResult, losses: dict[Row, list[float]], row: str | int) -> CellResult:
    """Return the cell with other runs in the place of EdgeWarmup's."""
    task, optimizer, lr = cell.key
    return replace(cell, edge=tuple(losses[task, optimizer, lr * NUDGE, row]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
