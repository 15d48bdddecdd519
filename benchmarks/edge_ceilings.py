"""EdgeWarmup at ceilings of 1 to 64 times the best rate, beside the grid of rates and linear warmups of four lengths.

Run it in an environment with transformers:

    OMP_NUM_THREADS=1 python benchmarks/edge_ceilings.py [--lengths] [--part 0/2] [--held-out | --development]
    python benchmarks/edge_ceilings.py --table

Pairs, batches and recipe are those of `advice_grid.py`: a ceiling is the rate that EdgeWarmup is to rise to, in best
rates of the pair's grid, and linear decay to 0 follows. `--lengths` trains with linear warmup instead. Both keep a row
a run in `edge_runs`; what is there is not trained again, and `--table` reads nothing else but the grid.
"""

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from advice_grid import NUM_UPDATES, RUNS, SEEDS, Run, Runs, add_halves, add_part, best_rate, train, train_by
from advice_tasks import PAIRS, Batch, Pair
from edge_tables import (
    CEILINGS,
    EDGE_RUNS,
    LENGTH_CEILINGS,
    LENGTHS,
    EdgeRun,
    LengthRun,
    edge_runs,
    length_runs,
    print_tables,
)
from torch import Tensor

import edgewise as ew


def train_edge(pair: Pair, best: float, ceiling: int, seed: int) -> EdgeRun:
    """Train with EdgeWarmup up to a ceiling, and linear decay to 0."""
    model, optimizer = pair.make(ceiling * best)
    warmup = ew.EdgeWarmup(optimizer, num_steps=NUM_UPDATES)
    schedule = warmup.then_until(NUM_UPDATES, "linear")

    def step(_update: int, batch: Batch, loss: Tensor) -> None:
        warmup.observe(lambda: pair.network.loss(model, batch), loss=loss)
        optimizer.step()
        schedule.step()

    final = train_by(step, pair, model, seed)
    share = 1.0 if warmup.lr_held is None else warmup.lr_held / float(warmup.base_lrs[0])
    return EdgeRun(
        pair=pair.name,
        ceiling=ceiling,
        seed=seed,
        final=final,
        held=ceiling * share if warmup.finished else math.nan,
        status=warmup.status.name,
        length=warmup.length,
        forwards=warmup.num_forwards,
        step_backs=warmup.report().num_step_backs,
    )


def train_length(pair: Pair, best: float, ceiling: int, length: int, seed: int) -> LengthRun:
    """Train with linear warmup of a length to a ceiling, and linear decay to 0."""
    final = train(pair, ceiling * best, seed, length).final
    return LengthRun(pair=pair.name, ceiling=ceiling, length=length, seed=seed, final=final)


def train_ceilings(pairs: Sequence[Pair], grid: Sequence[Run], part: tuple[int, int], folder: Path) -> None:
    """Train what is missing with EdgeWarmup, of one part of all runs."""
    stored = edge_runs(folder)
    known = {(run.pair, run.ceiling, run.seed) for run in stored.read()}
    runs = itertools.product(pairs, CEILINGS, SEEDS)
    for pair, ceiling, seed in itertools.islice(runs, part[0], None, part[1]):
        if (pair.name, ceiling, seed) not in known:
            run = train_edge(pair, best_rate(pair, grid)[0], ceiling, seed)
            stored.append(run)
            print(f"{run.pair:30} ×{ceiling} seed {seed}: {run.final:.4f}, held {run.held:.3g}", flush=True)


def train_lengths(pairs: Sequence[Pair], grid: Sequence[Run], part: tuple[int, int], folder: Path) -> None:
    """Train what is missing with linear warmup, of one part of all runs."""
    stored = length_runs(folder)
    known = {(run.pair, run.ceiling, run.length, run.seed) for run in stored.read()}
    runs = itertools.product(pairs, LENGTH_CEILINGS, LENGTHS, SEEDS)
    for pair, ceiling, length, seed in itertools.islice(runs, part[0], None, part[1]):
        if (pair.name, ceiling, length, seed) not in known:
            run = train_length(pair, best_rate(pair, grid)[0], ceiling, length, seed)
            stored.append(run)
            print(f"{run.pair:30} ×{ceiling} length {length} seed {seed}: {run.final:.4f}", flush=True)


def main() -> None:
    """Train what is missing, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print tables of what is stored, train nothing")
    parser.add_argument("--lengths", action="store_true", help="train with linear warmup of several lengths")
    parser.add_argument("--pair", help="train this pair only")
    parser.add_argument("--folder", type=Path, default=EDGE_RUNS, help="of the stored runs")
    add_part(parser)
    add_halves(parser)
    given = parser.parse_args()
    grid = Runs(RUNS / "grid.csv").read()
    if given.table:
        print_tables(grid, given.folder)
        return
    torch.set_num_threads(1)
    given.folder.mkdir(exist_ok=True)
    pairs = [
        pair for pair in PAIRS if given.held_out in (None, pair.held_out) and given.pair in (None, pair.name)
    ]
    (train_lengths if given.lengths else train_ceilings)(pairs, grid, given.part, given.folder)


if __name__ == "__main__":
    main()
