"""The grid of rates that advice is held against: each pair trained at octaves of the rate, 1,000 updates each.

Run it in an environment with transformers:

    OMP_NUM_THREADS=1 python benchmarks/advice_grid.py [--part 0/2]

What is in `advice_runs/grid.csv` is not trained again, so that an interrupted grid goes on. The recipe is what people
use: linear warmup over a tenth of the run, linear decay to 0. The final loss is that of fixed samples of the same
kind which no batch held, in evaluation mode.

A rate *trains* if the loss ends finite, and at least half as far below that of the best constant output as at the
best rate of the grid. (That it ends below its start is not enough: so it does where all but the last bias is dead.)
Above the middle rate the grid ends after two failures, below after two losses that are clearly worse; between the
highest rate that trains and the failure above it, the rate half an octave higher is trained too. The best rate and
its neighbours are trained once more, on other batches: their losses are means of two runs.
"""

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from advice_tasks import PAIRS, Pair

RUNS = Path(__file__).with_name("advice_runs")
NUM_UPDATES, NUM_WARMUP = 1000, 100
_WORSE = 1.03  # factor on the best loss
_FARTHEST = 16  # octaves from the middle rate
SEEDS = (1, 2)  # of the batches; the network's is 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run; what ended not finite has an infinite loss."""

    pair: str
    lr: float
    seed: int
    initial: float
    final: float


def recipe(update: int) -> float:
    """Return the factor on the rate of an update, counted from 0: linear warmup over a tenth, linear decay to 0."""
    warm = (update + 1) / NUM_WARMUP
    decay = (NUM_UPDATES - update) / (NUM_UPDATES - NUM_WARMUP)
    return min(warm, decay, 1.0)


def train(pair: Pair, lr: float, seed: int) -> Run:
    """Train by the recipe."""
    model, optimizer = pair.make(lr)
    targets = [group["lr"] for group in optimizer.param_groups]
    initial = evaluate(pair, model)
    final = math.inf
    torch.manual_seed(seed)  # of the dropout masks
    for update, batch in zip(range(NUM_UPDATES), pair.batches(seed), strict=False):
        optimizer.zero_grad()
        loss = pair.network.loss(model, batch)
        if not math.isfinite(loss.item()):
            break
        loss.backward()
        for group, target in zip(optimizer.param_groups, targets, strict=True):
            group["lr"] = recipe(update) * target
        optimizer.step()
    else:
        final = evaluate(pair, model)
    return Run(pair=pair.name, lr=lr, seed=seed, initial=initial, final=final)


def evaluate(pair: Pair, model: torch.nn.Module) -> float:
    """Return the loss on the fixed samples, infinite where it is not finite."""
    model.eval()
    with torch.no_grad():
        loss = pair.network.loss(model, pair.evaluation_batch()).item()
    model.train()
    return loss if math.isfinite(loss) else math.inf


class Runs:
    """The runs in a file, one a line, appended as they are trained."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = [field.name for field in fields(Run)]

    def read(self) -> list[Run]:
        """Return all runs in the file."""
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return [
                Run(
                    pair=row["pair"],
                    lr=float(row["lr"]),
                    seed=int(row["seed"]),
                    initial=float(row["initial"]),
                    final=float(row["final"]),
                )
                for row in csv.DictReader(file)
            ]

    def get(self, pair: Pair, lr: float, seed: int) -> Run:
        """Return the run, trained if it is not in the file."""
        for run in self.read():
            if run.pair == pair.name and run.seed == seed and math.isclose(run.lr, lr, rel_tol=1e-6):
                return run
        run = train(pair, lr, seed)
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._names)
            if is_new:
                writer.writeheader()
            writer.writerow(asdict(run))
        print(
            f"{run.pair:30} {run.lr:10.3g} seed {run.seed}: {run.initial:.4f} → {run.final:.4f}", flush=True
        )
        return run


def trains(untrained: float, final: float, best: float) -> bool:
    """Whether a loss ends finite, and at least half as far below the untrained one as the best of the grid."""
    return math.isfinite(final) and untrained - final >= 0.5 * (untrained - best)


def search(pair: Pair, runs: Runs, seed: int) -> None:
    """Train a pair's grid with one seed, from its middle rate outwards."""
    found: dict[float, float] = {}  # exponents: final losses

    def at(exponent: float) -> None:
        found[exponent] = runs.get(pair, pair.middle_rate * 2.0**exponent, seed).final

    untrained = pair.constant_loss()
    at(0)
    top = bottom = 0
    while top < _FARTHEST and not all(_fails(untrained, found, top - i) for i in (0, 1)):
        top += 1
        at(top)
    while bottom > -_FARTHEST and not all(_is_worse(found, bottom + i) for i in (0, 1)):
        bottom -= 1
        at(bottom)
    for exponent in _boundary(untrained, found):
        at(exponent + 0.5)


def is_octave(pair: Pair, lr: float) -> bool:
    """Whether a rate is whole octaves from the middle of the grid."""
    octaves = math.log2(lr / pair.middle_rate)
    return abs(octaves - round(octaves)) < 0.01


def repeat(pair: Pair, runs: Runs, seed: int) -> None:
    """Train at the best rate of the first seed, and an octave above and below, with another."""
    finals = {run.lr: run.final for run in runs.read() if run.pair == pair.name and run.seed == SEEDS[0]}
    best = min((lr for lr in finals if is_octave(pair, lr)), key=finals.__getitem__)
    for lr in (best / 2, best, 2 * best):
        runs.get(pair, lr, seed)


def _fails(untrained: float, found: dict[float, float], exponent: float) -> bool:
    """Whether a rate above the best does not train."""
    best = min(found, key=lambda other: found[other])
    return exponent > best and exponent in found and not trains(untrained, found[exponent], found[best])


def _is_worse(found: dict[float, float], exponent: float) -> bool:
    best = min(found, key=lambda other: found[other])
    return exponent < best and found[exponent] > _WORSE * found[best]


def _boundary(untrained: float, found: dict[float, float]) -> Iterator[float]:
    """Yield the highest exponent, from the best on, below which nothing fails, if there is a failure above it."""
    failures = [exponent for exponent in found if _fails(untrained, found, exponent)]
    if failures:
        yield min(failures) - 1


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="0/1", help="which of how many processes this is")
    part, parts = map(int, parser.parse_args().part.split("/"))
    torch.set_num_threads(1)
    runs = Runs(RUNS / "grid.csv")
    for pair in PAIRS[part::parts]:
        search(pair, runs, SEEDS[0])
        for seed in SEEDS[1:]:
            repeat(pair, runs, seed)


if __name__ == "__main__":
    main()
