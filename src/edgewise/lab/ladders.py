"""What is left to train, in an order that depends on results: rates are climbed until training fails."""

import itertools
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgewise.lab.configs import RunConfig
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.results.store import Store

Ladder = tuple[RunConfig, ...]  # to be trained in this order, up to the first that does not train


def ladders(configs: Sequence[RunConfig]) -> list[Ladder]:
    """Return the runs that differ in nothing but the target rate together, the lowest first."""
    rungs: dict[RunConfig, list[RunConfig]] = {}
    for config in configs:
        same = replace(config, optimizer=replace(config.optimizer, lr=1.0))
        rungs.setdefault(same, []).append(config)
    return [tuple(sorted(ladder, key=lambda config: config.optimizer.lr)) for ladder in rungs.values()]


def run_of(error: BaseException) -> str | None:
    """Return the id of the run that raised an error, as `Work.fail` noted it; None if it is of no run."""
    found = (re.match(r"in run (\w+): ", note) for note in getattr(error, "__notes__", []))
    return next((match[1] for match in found if match), None)


def leads_on(cell: Cell, trained_below: bool) -> bool:
    """Whether the rung above is to be trained: this one trained, or failed before any did."""
    return cell is Cell.TRAINED or (cell is Cell.FAILED and not trained_below)


@dataclass(frozen=True, kw_only=True)
class Climb:
    """A ladder from one rung on, for whoever climbs it without asking after each rung."""

    rungs: Ladder
    trained_below: bool  # whether a rung below the first of these did


class Work:
    """Hands out configs to train, each once, as those they wait for are finished.

    A rate far above the failure boundary costs as much as one below it and says nothing more. So a ladder ends at
    its first run that diverged, or that failed where a smaller rate trained; the rungs above are `beyond`.
    """

    def __init__(self, ladders: Sequence[Ladder], store: Store) -> None:
        self.configs = tuple({c.run_id: c for c in itertools.chain.from_iterable(ladders)}.values())
        self._ladders, self._store = ladders, store
        self._rung = [0] * len(ladders)  # the one that each ladder is at
        self._trained, self._ended = ([False] * len(ladders) for _ in range(2))
        self._begun: set[str] = set()
        self._errors: dict[str, Exception] = {}  # run id → what it raised
        self._ladders_with: dict[str, list[int]] = {}
        for i, ladder in enumerate(ladders):
            for config in ladder:
                self._ladders_with.setdefault(config.run_id, []).append(i)

    def start(self) -> list[RunConfig]:
        """Return what may be trained now."""
        return self._ready(range(len(self._ladders)))

    def after(self, finished: RunConfig) -> list[RunConfig]:
        """Return what may be trained now that this run is stored."""
        return self._ready(self._ladders_with[finished.run_id])

    def climb(self, config: RunConfig) -> Climb:
        """Return a run that was handed out, and what may be to be trained above it."""
        for i in self._ladders_with[config.run_id]:
            if self._ladders[i][self._rung[i]] == config:
                return Climb(rungs=self._ladders[i][self._rung[i] :], trained_below=self._trained[i])
        return Climb(rungs=(config,), trained_below=False)  # finished by someone else since

    def fail(self, config: RunConfig, error: Exception) -> None:
        """Record that the run raised, in the store too; what waits for it is not trained."""
        error.add_note(f"in run {config.run_id}: {config}")
        self._store.failures.add(config.run_id, "".join(traceback.format_exception(error)))
        self._errors[config.run_id] = error

    @property
    def failed(self) -> set[str]:
        """Ids of the runs that raised."""
        return set(self._errors)

    def raise_first_error(self) -> None:
        """Raise what the first run that failed raised, if any did."""
        for error in self._errors.values():
            raise error

    def beyond(self) -> set[str]:
        """Return the ids of runs above the failure boundary, which nothing else needs: they are not trained."""
        wanted, above = set(), set()
        for ladder, rung, ended in zip(self._ladders, self._rung, self._ended, strict=True):
            reached = rung + 1 if ended else len(ladder)
            wanted |= {config.run_id for config in ladder[:reached]}
            above |= {config.run_id for config in ladder[reached:]}
        return above - wanted

    def _ready(self, ladders: Iterable[int]) -> list[RunConfig]:
        found = []
        for i in ladders:
            self._climb(i)
            config = self._ladders[i][self._rung[i]]
            if not self._ended[i] and config.run_id not in self._begun:
                self._begun.add(config.run_id)
                found.append(config)
        return found

    def _climb(self, i: int) -> None:
        """Go past the rungs that trained, or that failed before any did; end at the top, or where training fails."""
        ladder = self._ladders[i]
        while not self._ended[i] and self._store.runs.has(ladder[self._rung[i]].run_id):
            cell = cell_of(self._store.runs.outcome(ladder[self._rung[i]].run_id))
            if leads_on(cell, self._trained[i]) and self._rung[i] + 1 < len(ladder):
                self._rung[i] += 1
            else:
                self._ended[i] = True
            self._trained[i] |= cell is Cell.TRAINED
