"""The tables of what `long_runs.py` and `long_peers.py` have trained.

    python benchmarks/long_tables.py [--held-out | --development]

A *cell* is a task and a target rate. A way *ties* if its mean over the seeds is within 1 % of the best length's, or one
deviation of that over the seeds; the count at plain 1 % stands beside it.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from advice_grid import trains
from edge_tables import Outcome, table
from long_peers import PEERS
from long_runs import (
    CEILINGS,
    EDGE,
    LENGTHS,
    LINEAR,
    MULTIPLES,
    LongRun,
    LongRuns,
    arguments,
    best_rate,
    chosen_tasks,
    seeds,
)
from long_tasks import Task

_TIES, _WITHIN = 1.01, 1.02
_NOBODY_KNOWS = 16.0  # the ceiling, in best rates, at which EdgeWarmup is held against the peers
_UPDATE_COST = 3  # forwards
_LANGUAGE_MODELS = ("GPT", "Llama")


class Results:
    """The outcomes of the tasks, by way, rate and length."""

    def __init__(self, runs: Sequence[LongRun], tasks: Iterable[Task]) -> None:
        self.runs = runs
        self.tasks = [task for task in tasks if self._has_grid(task)]

    def _has_grid(self, task: Task) -> bool:
        return (
            self._outcome(task, LINEAR, best_rate(task, self.runs) * MULTIPLES[-1], LENGTHS[-1]) is not None
        )

    def _outcome(self, task: Task, way: str, lr: float, share: float = 0.0) -> Outcome | None:
        """Return the losses, a seed each, if all seeds are there."""
        found = {
            run.seed: run.final
            for run in self.runs
            if (run.task, run.way, run.share) == (task.name, way, share)
            and math.isclose(run.lr, lr, rel_tol=1e-6)
        }
        if not set(seeds(task)) <= set(found):
            return None
        return Outcome(losses=tuple(found[seed] for seed in seeds(task)))

    def linear(self, task: Task, multiple: float, share: float) -> Outcome:
        """Return what a length comes to."""
        outcome = self._outcome(task, LINEAR, multiple * best_rate(task, self.runs), share)
        assert outcome is not None
        return outcome

    def edge(self, task: Task, ceiling: float) -> Outcome | None:
        """Return what EdgeWarmup comes to."""
        return self._outcome(task, EDGE, ceiling * best_rate(task, self.runs))

    def peer(self, task: Task, name: str) -> Outcome | None:
        """Return what a peer comes to."""
        return self._outcome(task, name, 0.0)

    def best_length(self, task: Task, multiple: float) -> Outcome:
        """Return the outcome of the length with the lowest mean at a rate."""
        return min((self.linear(task, multiple, share) for share in LENGTHS), key=lambda found: found.mean)

    def best_cell(self, task: Task) -> tuple[float, float]:
        """Return rate, in those of the search, and length of the best cell of the whole grid."""
        return min(itertools.product(MULTIPLES, LENGTHS), key=lambda cell: self.linear(task, *cell).mean)

    def best(self, task: Task) -> Outcome:
        """Return the outcome of that."""
        return self.linear(task, *self.best_cell(task))

    def fails(self, task: Task, outcome: Outcome) -> bool:
        """Whether a seed is not finite, or not half as far below the best constant output as the best cell."""
        untrained, best = task.constant_loss(), self.best(task).mean
        return not all(trains(untrained, loss, best) for loss in outcome.losses)


def ceilings_table(results: Results) -> str:
    """Return a row a task: the best cell, and how far above it EdgeWarmup ends at each ceiling, with the rates held."""
    rows = []
    for task in results.tasks:
        best, (multiple, share) = results.best(task), results.best_cell(task)
        row = [task.name, f"{best.mean:.4g} ± {best.deviation:.2g}", f"{multiple:g}; {share:.0%}"]
        for ceiling in CEILINGS[1:]:
            outcome = results.edge(task, ceiling)
            row.append("–" if outcome is None else f"{_gap(outcome, best)} ({_held(results, task, ceiling)})")
        rows.append(row)
    return table(
        ["task", "best cell", "its rate, length", *(f"×{ceiling:g}" for ceiling in CEILINGS[1:])], rows
    )


def _gap(outcome: Outcome, other: Outcome) -> str:
    return f"{outcome.over(other):+.1%}" if math.isfinite(outcome.mean) else "fails"


def _held(results: Results, task: Task, ceiling: float) -> str:
    """Return the rates that EdgeWarmup ended at, in those of the search."""
    best = best_rate(task, results.runs)
    held = [
        run.held / best
        for run in results.runs
        if (run.task, run.way) == (task.name, EDGE) and math.isclose(run.lr, ceiling * best, rel_tol=1e-6)
    ]
    return ", ".join(f"{each:.2g}" for each in held)


def counts_table(results: Results) -> str:
    """Return a row a ceiling: how many tasks come how near to the best cell of the whole grid."""
    rows = []
    for ceiling in CEILINGS[1:]:
        found = [
            (task, outcome) for task in results.tasks if (outcome := results.edge(task, ceiling)) is not None
        ]
        if not found:
            continue
        pairs = [(outcome, results.best(task)) for task, outcome in found]
        rows.append(
            [
                f"×{ceiling:g}",
                f"{sum(own.is_within(_WITHIN, best, or_deviation=True) for own, best in pairs)} of {len(pairs)}",
                str(sum(own.is_within(_WITHIN, best) for own, best in pairs)),
                f"{statistics.median(own.over(best) for own, best in pairs):+.1%}",
                str(sum(results.fails(task, outcome) for task, outcome in found)),
            ]
        )
    return table(["ceiling", "within 2 % or a deviation", "2 %", "median", "fail"], rows)


def lengths_table(results: Results) -> str:
    """Return a row a way to warm up: how often it ties with the best length of its cell, and how often it fails."""
    cells = [
        (task, multiple, outcome)
        for task in results.tasks
        for multiple in MULTIPLES
        if (outcome := results.edge(task, multiple)) is not None
        and not results.fails(task, results.best_length(task, multiple))
    ]
    ways = {EDGE: [outcome for _, _, outcome in cells]} | {
        f"linear, {share:.0%}" if share else "linear, 1 update": [
            results.linear(task, m, share) for task, m, _ in cells
        ]
        for share in LENGTHS
    }
    best = [results.best_length(task, multiple) for task, multiple, _ in cells]
    rows = []
    for name, found in ways.items():
        pairs = list(zip(found, best, strict=True))
        tied = sum(own.is_within(_TIES, other, or_deviation=True) for own, other in pairs)
        plainly = sum(own.is_within(_TIES, other) for own, other in pairs)
        failed = sum(results.fails(task, own) for (task, _, _), own in zip(cells, found, strict=True))
        rows.append([name, f"{tied} of {len(cells)}", str(plainly), str(failed)])
    return table(["warmup", "ties: 1 % or a deviation", "plain 1 %", "cells it fails"], rows)


def misses_table(results: Results) -> str:
    """Return the cells in which EdgeWarmup does not tie with the best length."""
    rows = [
        [task.name, f"×{multiple:g}", _gap(own, best), f"± {best.deviation / best.mean:.1%}"]
        for task in results.tasks
        for multiple in MULTIPLES
        if (own := results.edge(task, multiple)) is not None
        for best in [results.best_length(task, multiple)]
        if not results.fails(task, best) and not own.is_within(_TIES, best, or_deviation=True)
    ]
    return table(["task", "target", "gap to the best length", "deviation of that"], rows)


def language_models_table(results: Results) -> str:
    """Return, for each language model, the gap to the best length at the best rate."""
    rows = []
    for task in results.tasks:
        own = results.edge(task, 1.0)
        if task.name.startswith(_LANGUAGE_MODELS) and own is not None:
            best = results.best_length(task, 1.0)
            rows.append(
                [task.name, str(task.num_updates), _gap(own, best), f"± {best.deviation / best.mean:.1%}"]
            )
    return table(["language model", "updates", "gap at the best rate", "deviation"], rows)


def peers_table(results: Results) -> str:
    """Return a row a peer: where EdgeWarmup with a ceiling that nobody tuned ends lower, and who fails."""
    rows = []
    for name in PEERS:
        found = [
            (task, own, other)
            for task in results.tasks
            if (own := results.edge(task, _NOBODY_KNOWS)) is not None
            and (other := results.peer(task, name)) is not None
        ]
        if not found:
            continue
        gaps = [own.mean / other.mean - 1 for _, own, other in found if math.isfinite(other.mean)]
        rows.append(
            [
                name,
                f"{sum(own.mean < other.mean for _, own, other in found)} of {len(found)}",
                str(sum(_TIES * own.mean < other.mean for _, own, other in found)),
                str(sum(_TIES * other.mean < own.mean for _, own, other in found)),
                f"{statistics.median(gaps):+.1%}" if gaps else "",
                str(sum(results.fails(task, own) for task, own, _ in found)),
                str(sum(results.fails(task, other) for task, _, other in found)),
            ]
        )
    head = [
        "beside",
        "EdgeWarmup lower",
        "by 1 %",
        "the other by 1 %",
        "median gap",
        "it fails",
        "the other fails",
    ]
    return table(head, rows)


def costs(results: Results) -> str:
    """Return the most forwards of a run with EdgeWarmup, and how many were halved at rates that train."""
    updates = {task.name: task.num_updates for task in results.tasks}
    rates = {task.name: best_rate(task, results.runs) for task in results.tasks}
    edge = [run for run in results.runs if run.way == EDGE and run.task in updates]
    if not edge:
        return ""
    share = max(run.forwards / (_UPDATE_COST * updates[run.task]) for run in edge)
    low = [run for run in edge if run.lr < 1.01 * rates[run.task]]
    halved = sum(run.step_backs > 0 for run in low)
    return (
        f"At most {max(run.forwards for run in edge)} forwards, {share:.2%} of a run; "
        f"{halved} of {len(low)} runs with a ceiling up to the best rate were halved."
    )


def main() -> None:
    """Print the tables."""
    given = arguments(__doc__)
    runs = LongRuns(given.file).read()
    known = {run.task for run in runs}
    for half, held_out in (("development", False), ("held out", True)):
        tasks = [t for t in chosen_tasks(given) if t.held_out == held_out and t.name in known]
        results = Results(runs, tasks)
        if results.tasks:
            print(f"## {half}\n")
            for made in (
                ceilings_table,
                counts_table,
                lengths_table,
                misses_table,
                language_models_table,
                peers_table,
                costs,
            ):
                print(f"{made(results)}\n")


if __name__ == "__main__":
    main()
