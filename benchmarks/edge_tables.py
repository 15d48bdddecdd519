"""What is stored of the runs of `edge_ceilings.py`, and the tables of it."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from advice_grid import NUM_UPDATES, SEEDS, Run, best_rate, trains
from advice_tasks import PAIRS, Pair
from stored import Stored

EDGE_RUNS = Path(__file__).with_name("edge_runs")
CEILINGS = (1, 4, 16, 64)  # in best rates
LENGTHS, LENGTH_CEILINGS = (1, 20, 100, 300), (1, 4)
_UPDATE_COST = 3  # forwards: one, and a backward of two
HALVES = {"development": False, "held out": True}
_WITHIN, _LOOSELY_WITHIN, _TIES = 1.02, 1.05, 1.01  # factors on a loss


@dataclass(frozen=True, kw_only=True)
class EdgeRun:
    """One training run with EdgeWarmup; what ended not finite has an infinite loss."""

    pair: str
    ceiling: int
    seed: int
    final: float
    held: float  # rate that the warmup ended at, in best rates; NaN: training ended before
    status: str
    length: int  # updates of the warmup
    forwards: int
    step_backs: int


@dataclass(frozen=True, kw_only=True)
class LengthRun:
    """One training run with linear warmup."""

    pair: str
    ceiling: int
    length: int
    seed: int
    final: float


def edge_runs(folder: Path = EDGE_RUNS) -> Stored[EdgeRun]:
    """Return the stored runs with EdgeWarmup."""
    return Stored(EdgeRun, folder / "ceilings.csv")


def length_runs(folder: Path = EDGE_RUNS) -> Stored[LengthRun]:
    """Return the stored runs with linear warmup."""
    return Stored(LengthRun, folder / "lengths.csv")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The losses of one pair and recipe, a seed each, in the order of the seeds."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean; infinite where one is."""
        return statistics.fmean(self.losses)

    @property
    def deviation(self) -> float:
        """Their standard deviation, 0 where they are not finite."""
        return statistics.stdev(self.losses) if math.isfinite(self.mean) else 0.0

    def over(self, other: "Outcome") -> float:
        """Return its mean over another's, minus 1."""
        return self.mean / other.mean - 1

    def is_within(self, factor: float, other: "Outcome", *, or_deviation: bool = False) -> bool:
        """Whether its mean is finite and at most a factor times another's, or one deviation of the other above."""
        limit = max(factor * other.mean, other.mean + other.deviation * or_deviation)
        return math.isfinite(self.mean) and self.mean <= limit


def outcomes(runs: Iterable[EdgeRun | LengthRun], *keys: str) -> dict[tuple, Outcome]:
    """Return the outcomes of the pairs and recipes that have all seeds, by the named fields."""
    found: dict[tuple, dict[int, float]] = {}
    for run in runs:
        found.setdefault(tuple(getattr(run, key) for key in keys), {})[run.seed] = run.final
    return {
        key: Outcome(losses=tuple(finals[seed] for seed in SEEDS))
        for key, finals in found.items()
        if len(finals) == len(SEEDS)
    }


def fails(pair: Pair, outcome: Outcome, best: Outcome) -> bool:
    """Whether a loss is not finite, or a rate does not train where the best rate does."""
    if not math.isfinite(outcome.mean):
        return True
    untrained = pair.constant_loss()
    return best.mean < untrained and not all(trains(untrained, loss, best.mean) for loss in outcome.losses)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def pairs_table(pairs: Sequence[Pair], best: dict[str, Outcome], runs: Sequence[EdgeRun]) -> str:
    """Return a row a pair: how far the loss is above that of the best rate, and in brackets the rates held."""
    edge = outcomes(runs, "pair", "ceiling")

    def cell(pair: Pair, ceiling: int) -> str:
        outcome = edge.get((pair.name, ceiling))
        if outcome is None:
            return "–"
        own = sorted((r for r in runs if (r.pair, r.ceiling) == (pair.name, ceiling)), key=lambda r: r.seed)
        held = [f"{run.held:.2g}" for run in own]
        return f"{100 * outcome.over(best[pair.name]):+.1f} % ({', '.join(held)})"

    rows = [[pair.name, *(cell(pair, ceiling) for ceiling in CEILINGS)] for pair in pairs]
    return table(["pair", *(f"×{ceiling}" for ceiling in CEILINGS)], rows)


def ceilings_table(pairs: Sequence[Pair], best: dict[str, Outcome], runs: Sequence[EdgeRun]) -> str:
    """Return a row a ceiling: how many pairs come how near to the best rate of the grid, and what they pay."""
    edge = outcomes(runs, "pair", "ceiling")
    rows = []
    for ceiling in CEILINGS:
        found = [(p, edge[p.name, ceiling], best[p.name]) for p in pairs if (p.name, ceiling) in edge]
        if not found:
            continue
        names = {pair.name for pair, _, _ in found}
        forwards = max(run.forwards for run in runs if run.pair in names and run.ceiling == ceiling)
        rows.append(
            [
                f"×{ceiling}",
                str(len(found)),
                str(sum(own.is_within(_WITHIN, grid, or_deviation=True) for _, own, grid in found)),
                str(sum(own.is_within(_WITHIN, grid) for _, own, grid in found)),
                str(sum(own.is_within(_LOOSELY_WITHIN, grid) for _, own, grid in found)),
                f"{100 * statistics.median(own.over(grid) for _, own, grid in found):+.1f} %",
                str(sum(fails(*each) for each in found)),
                f"{100 * forwards / (_UPDATE_COST * NUM_UPDATES):.1f} %",
            ]
        )
    head = ["ceiling", "pairs", "2 % or 1 deviation", "2 %", "5 %", "median", "fail", "most forwards"]
    return table(head, rows)


def lengths_table(pairs: Sequence[Pair], edge: dict[tuple, Outcome], linear: dict[tuple, Outcome]) -> str:
    """Return a row a way to warm up: how often it ties with the best of the lengths at the same target."""
    head, columns = ["warmup"], []
    for ceiling in LENGTH_CEILINGS:
        found = []  # the outcomes of all ways, and the best of the lengths'
        for pair in pairs:
            of_lengths = [linear.get((pair.name, ceiling, length)) for length in LENGTHS]
            ways = [edge.get((pair.name, ceiling)), *of_lengths]
            if None not in ways:
                found.append((ways, min(of_lengths, key=lambda outcome: outcome.mean)))
        head += [f"×{ceiling}: 1 % or 1 deviation", f"×{ceiling}: 1 %"]
        columns += [_ties(found, or_deviation=True), _ties(found, or_deviation=False)]
    names = ["EdgeWarmup", *(f"linear, {length}" for length in LENGTHS)]
    return table(head, zip(names, *columns, strict=True))


def _ties(found: Sequence[tuple[list[Outcome], Outcome]], *, or_deviation: bool) -> list[str]:
    """Return for each way how often it ties with the best."""
    return [
        f"{sum(ways[i].is_within(_TIES, best, or_deviation=or_deviation) for ways, best in found)} of {len(found)}"
        for i in range(1 + len(LENGTHS))
    ]


def print_tables(grid: Sequence[Run], folder: Path) -> None:
    """Print what the stored rows say, development and held out."""
    best = {pair.name: Outcome(losses=tuple(best_rate(pair, grid)[1])) for pair in PAIRS}
    edge, linear = edge_runs(folder).read(), length_runs(folder).read()
    by_ceiling = outcomes(edge, "pair", "ceiling")
    by_length = outcomes(linear, "pair", "ceiling", "length")
    for half, held_out in HALVES.items():
        pairs = [pair for pair in PAIRS if pair.held_out == held_out]
        print(f"## {half}\n\n{pairs_table(pairs, best, edge)}\n\n{ceilings_table(pairs, best, edge)}\n")
        print(f"{lengths_table(pairs, by_ceiling, by_length)}\n")
