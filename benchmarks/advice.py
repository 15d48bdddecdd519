"""How good advice on rates is: suggestions beside the best of a grid, and beside those of other finders.

    OMP_NUM_THREADS=1 python benchmarks/advice.py

First `advice_grid.py` trains the grid. This asks each method for each pair, trains at what it suggests by the recipe of
the grid, keeps both in `advice_runs`, and writes the tables of docs/inspect-evidence.md, between its marks. Pairs of
development were looked at while the rules of `edgewise.advice.rates` were chosen; held-out pairs were not.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import advice_peers
import torch
from advice_grid import NUM_UPDATES, RUNS, SEEDS, Run, Runs, best_rate, trains
from advice_tasks import PAIRS, Pair
from stored import Stored

from edgewise.advice.rates import suggest
from edgewise.advice.trial import run_trial

PAGE = Path(__file__).parents[1] / "docs" / "inspect-evidence.md"
SEED = 77  # of the batches that methods are given
_NEAR = 2.0  # factor of a suggestion
_CLOSE = 1.02  # of a loss
_BOUNDARY = 1.5  # factor of a largest rate


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a method says of a pair; NaN: nothing."""

    pair: str
    method: str
    lr: float
    largest: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the grid says of a pair."""

    best: float
    loss: float
    untrained: float
    highest_good: float
    """The highest rate that trains …"""
    lowest_bad: float
    """… and the lowest above that does not."""

    @property
    def learns(self) -> bool:
        """Whether the best rate ends below the best constant output: else no rate trains."""
        return self.loss < self.untrained

    @property
    def boundary(self) -> float:
        """The middle of the two."""
        return math.sqrt(self.highest_good * self.lowest_bad)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An answer beside the grid."""

    pair: Pair
    answer: Answer
    truth: Truth
    final: float
    """The loss after training at the suggested rate; infinite where there is none."""

    @property
    def is_near(self) -> bool:
        """Whether the suggestion is within a factor of two of the best of the grid."""
        return 1 / _NEAR - 1e-9 <= self.answer.lr / self.truth.best <= _NEAR + 1e-9

    @property
    def is_close(self) -> bool:
        """Whether the loss is within 2 % of the best of the grid."""
        return self.final <= _CLOSE * self.truth.loss

    @property
    def has_boundary(self) -> bool:
        """Whether the predicted largest rate is within a factor of 1.5."""
        return 1 / _BOUNDARY <= self.answer.largest / self.truth.boundary <= _BOUNDARY

    @property
    def fails(self) -> bool:
        """Whether a rate is suggested that is too high to train."""
        return (
            self.answer.lr > self.truth.best
            and self.truth.learns
            and not trains(self.truth.untrained, self.final, self.truth.loss)
        )


def read_truth(pair: Pair, runs: Sequence[Run]) -> Truth:
    """Return what the grid says: the boundary by the first seed, the best rate by the means of all."""
    first = {run.lr: run.final for run in runs if run.pair == pair.name and run.seed == SEEDS[0]}
    best, losses = best_rate(pair, runs)
    untrained, lowest = pair.constant_loss(), min(first.values())
    bad = min(lr for lr in first if lr > best and not trains(untrained, first[lr], lowest))
    good = max(lr for lr in first if lr < bad)
    return Truth(
        best=best, loss=sum(losses) / len(losses), untrained=untrained, highest_good=good, lowest_bad=bad
    )


def by_trial(pair: Pair) -> Answer:
    """Ask `edgewise.advice`, with the optimizer as its users would have it: at the middle of the grid."""
    model, optimizer = pair.make(pair.middle_rate)
    torch.manual_seed(SEED)
    batches = list(itertools.islice(pair.batches(SEED), 200))
    trial = run_trial(model, optimizer, pair.network.loss, batches)
    found = suggest(trial)
    return Answer(
        pair=pair.name,
        method="inspect",
        lr=math.nan if found.lr is None else found.lr,
        largest=math.nan if found.lr_largest is None else found.lr_largest,
        cost=trial.cost,
    )


def _by_peer(name: str, find: Callable[[Pair], float | None]) -> Callable[[Pair], Answer]:
    def ask(pair: Pair) -> Answer:
        lr = find(pair)
        return Answer(
            pair=pair.name,
            method=name,
            lr=math.nan if lr is None else lr,
            largest=math.nan,
            cost=advice_peers.NUM_UPDATES,
        )

    return ask


METHODS = {
    "inspect": by_trial,
    "LRFinder": _by_peer("LRFinder", advice_peers.lr_finder),
    "steepest point": _by_peer("steepest point", advice_peers.steepest),
}


def ask_all(path: Path) -> list[Answer]:
    """Return all answers, asked for where they are not in the file."""
    stored = Stored(Answer, path)
    known = {(answer.pair, answer.method) for answer in stored.read()}
    for pair in PAIRS:
        for name, ask in METHODS.items():
            if (pair.name, name) not in known:
                stored.append(ask(pair))
    return stored.read()


def judge(pair: Pair, answer: Answer, truth: Truth, trained: Runs) -> Judged:
    """Train at the suggested rate and hold it against the grid."""
    final = math.inf
    if math.isfinite(answer.lr):
        final = sum(trained.get(pair, answer.lr, seed).final for seed in SEEDS) / len(SEEDS)
    return Judged(pair=pair, answer=answer, truth=truth, final=final)


def summary(judged: Sequence[Judged]) -> str:
    """Return the table of shares, a column for each method."""
    columns = {name: [j for j in judged if j.answer.method == name] for name in METHODS}

    def row(what: str, value: Callable[[list[Judged]], str], to_be: str) -> str:
        return f"| {what} | " + " | ".join(value(columns[name]) for name in METHODS) + f" | {to_be} |"

    def share(test: Callable[[Judged], bool]) -> Callable[[list[Judged]], str]:
        return lambda found: f"{sum(map(test, found))} of {len(found)}, {_percent(map(test, found))}"

    def boundary(found: list[Judged]) -> str:
        known = [j for j in found if j.truth.learns]
        return share(lambda j: j.has_boundary)(known) if found[0].answer.method == "inspect" else "–"

    return "\n".join(
        [
            "| what | " + " | ".join(METHODS) + " | to be |",
            "|---|" + "---|" * (len(METHODS) + 1),
            row(
                "suggested rate within a factor of 2 of the best of the grid",
                share(lambda j: j.is_near),
                "≥ 80 %",
            ),
            row("final loss there within 2 % of the best of the grid", share(lambda j: j.is_close), "≥ 70 %"),
            row("largest rate that trains within a factor of 1.5", boundary, "≥ 80 %"),
            row(
                "a rate that is too high to train is suggested",
                lambda found: str(sum(j.fails for j in found)),
                "0",
            ),
            row("no rate is suggested", lambda found: str(sum(math.isnan(j.answer.lr) for j in found)), "0"),
            row(
                "cost, in updates of training",
                lambda found: f"{max(j.answer.cost for j in found):.0f}",
                "≤ 200",
            ),
        ]
    )


def _percent(values: "map[bool]") -> str:
    listed = list(values)
    return f"{100 * sum(listed) / len(listed):.0f} %"


def details(judged: Sequence[Judged]) -> str:
    """Return the table of pairs: what `inspect` says beside the grid."""
    head = "| pair | best rate | suggested | ÷ best | loss ÷ best | largest | predicted | ÷ largest |"
    rows = [_detail(j) for j in judged if j.answer.method == "inspect"]
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])


def _detail(j: Judged) -> str:
    truth, answer = j.truth, j.answer
    cells = [
        j.pair.name,
        f"{truth.best:.3g}",
        f"{answer.lr:.3g}",
        _mark(answer.lr / truth.best, j.is_near),
        _mark(j.final / truth.loss, j.is_close, 3),
        f"{truth.highest_good:.3g}–{truth.lowest_bad:.3g}" if truth.learns else "–",
        f"{answer.largest:.3g}",
        _mark(answer.largest / truth.boundary, j.has_boundary) if truth.learns else "–",
    ]
    return f"| {' | '.join(cells)} |"


def _mark(value: float, is_met: bool, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if is_met else f"**{value:.{digits}f}**"


def _write(text: str, name: str, tables: str) -> str:
    """Return the text with tables between the marks of a name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def main() -> None:
    """Ask, train, and write the tables."""
    torch.set_num_threads(1)
    grid = Runs(RUNS / "grid.csv").read()
    trained = Runs(RUNS / "suggested.csv")
    answers = {(answer.pair, answer.method): answer for answer in ask_all(RUNS / "answers.csv")}
    judged = []
    for pair in PAIRS:
        truth = read_truth(pair, grid)
        judged += [judge(pair, answers[pair.name, name], truth, trained) for name in METHODS]
    text = PAGE.read_text(encoding="utf-8")
    for name, held_out in (("development", False), ("held out", True)):
        own = [j for j in judged if j.pair.held_out == held_out]
        text = _write(text, name, f"{summary(own)}\n\n{details(own)}")
        print(f"{name}\n\n{summary(own)}\n\n{details(own)}\n")
    PAGE.write_text(text, encoding="utf-8")
    print(f"{len(PAIRS)} pairs, {NUM_UPDATES} updates a run")


if __name__ == "__main__":
    main()
