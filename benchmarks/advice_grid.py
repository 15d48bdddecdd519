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
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from advice_tasks import PAIRS, Batch, Pair
from stored import Stored
from torch import Tensor

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


def recipe(update: int, num_warmup: int = NUM_WARMUP) -> float:
    """Return the factor on the rate of an update, counted from 0: linear warmup over a tenth, linear decay to 0."""
    warm = (update + 1) / num_warmup
    decay = (NUM_UPDATES - update) / (NUM_UPDATES - num_warmup)
    return min(warm, decay, 1.0)


def train(pair: Pair, lr: float, seed: int, num_warmup: int = NUM_WARMUP) -> Run:
    """Train by the recipe."""
    model, optimizer = pair.make(lr)
    targets = [group["lr"] for group in optimizer.param_groups]

    def step(update: int, _batch: Batch, _loss: Tensor) -> None:
        for group, target in zip(optimizer.param_groups, targets, strict=True):
            group["lr"] = recipe(update, num_warmup) * target
        optimizer.step()

    initial = evaluate(pair, model)
    final = train_by(step, pair, model, seed)
    return Run(pair=pair.name, lr=lr, seed=seed, initial=initial, final=final)


def train_by(
    step: Callable[[int, Batch, Tensor], None], pair: Pair, model: torch.nn.Module, seed: int
) -> float:
    """Train by a step, which gets the number of an update, its batch and loss; return the final loss."""
    torch.manual_seed(seed)  # of the dropout masks
    for update, batch in zip(range(NUM_UPDATES), pair.batches(seed), strict=False):
        model.zero_grad()
        loss = pair.network.loss(model, batch)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        step(update, batch, loss)
    return evaluate(pair, model)


def evaluate(pair: Pair, model: torch.nn.Module) -> float:
    """Return the loss on the fixed samples, infinite where it is not finite."""
    model.eval()
    with torch.no_grad():
        loss = pair.network.loss(model, pair.evaluation_batch()).item()
    model.train()
    return loss if math.isfinite(loss) else math.inf


class Runs(Stored[Run]):
    """The runs in a file, trained where they are missing."""

    def __init__(self, path: Path) -> None:
        super().__init__(Run, path)

    def get(self, pair: Pair, lr: float, seed: int) -> Run:
        """Return the run, trained if it is not in the file."""
        for run in self.read():
            if run.pair == pair.name and run.seed == seed and math.isclose(run.lr, lr, rel_tol=1e-6):
                return run
        run = train(pair, lr, seed)
        self.append(run)
        print(
            f"{run.pair:30} {run.lr:10.3g} seed {run.seed}: {run.initial:.4f} → {run.final:.4f}", flush=True
        )
        return run


def trains(untrained: float, final: float, best: float) -> bool:
    """Whether a loss ends finite, and at least half as far below the untrained one as the best of the grid."""
    return math.isfinite(final) and untrained - final >= 0.5 * (untrained - best)


def best_rate(pair: Pair, runs: Sequence[Run]) -> tuple[float, list[float]]:
    """Return the octave with the lowest mean loss of those trained with all seeds, and its losses, a seed each."""
    finals: dict[float, dict[int, float]] = {}
    for run in runs:
        if run.pair == pair.name and is_octave(pair, run.lr):
            finals.setdefault(run.lr, {})[run.seed] = run.final
    complete = {
        lr: [found[seed] for seed in SEEDS] for lr, found in finals.items() if len(found) == len(SEEDS)
    }
    best = min(complete, key=lambda lr: sum(complete[lr]))
    return best, complete[best]


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


def add_part(parser: argparse.ArgumentParser) -> None:
    """Add the option that shares the work among processes: (i, n), the i-th of n, counted from 0."""
    parser.add_argument(
        "--part",
        type=lambda text: tuple(map(int, text.split("/"))),
        default=(0, 1),
        metavar="0/1",
        help="which of how many processes this is",
    )


def add_halves(parser: argparse.ArgumentParser) -> None:
    """Add the options that leave one half out: `held_out` is True or False, or `None` for both."""
    halves = parser.add_mutually_exclusive_group()
    halves.add_argument("--held-out", dest="held_out", action="store_true", default=None)
    halves.add_argument("--development", dest="held_out", action="store_false")


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_part(parser)
    part, parts = parser.parse_args().part
    torch.set_num_threads(1)
    runs = Runs(RUNS / "grid.csv")
    for pair in PAIRS[part::parts]:
        search(pair, runs, SEEDS[0])
        for seed in SEEDS[1:]:
            repeat(pair, runs, seed)


if __name__ == "__main__":
    main()
