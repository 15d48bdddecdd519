"""From recipes to stored results: what is asked for, what is missing, and running it."""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from edgewise.arguments import known_name, positive_count
from edgewise.lab.data.sources import check_prepared
from edgewise.lab.engines import engine as engine_of
from edgewise.lab.ladders import Ladder, Work
from edgewise.lab.recipes import SCALES, recipe
from edgewise.lab.report import presentation
from edgewise.lab.results import progress
from edgewise.lab.results.files import Folder
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.lock import locked
from edgewise.lab.results.store import Store

_NOTE_SECONDS = 2.0  # between two records of the progress in the folder


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a sweep is."""

    steps: dict[str, int]  # run id → steps behind it; all of them, where it is finished or beyond
    finished: frozenset[str]
    failed: frozenset[str]
    beyond: frozenset[str]


Progress = Callable[[State], None]


def plan(figures: Sequence[str], scale: str) -> dict[str, list[Ladder]]:
    """Return figure id → its runs, those of a ladder in their order.

    Raises:
        UnknownNameError: an unknown figure or scale.
    """
    known_name("scale", scale, SCALES)
    return {figure: recipe(figure).ladders(scale) for figure in figures}


def run(
    planned: dict[str, list[Ladder]],
    scale: str,
    out: Path,
    *,
    engine: str = "local",
    slurm: Sequence[str] = (),
    workers: int | None = None,
    recipe_file: Path | None = None,
    not_judged: str = "",
    on_progress: Progress = lambda state: None,
    on_notice: Callable[[str], None] = warnings.warn,
) -> Store:
    """Train what is missing from the folder, judge the claims on what is there, and return the complete store.

    One sweep at a time is at work in a folder. What is damaged there is moved aside and trained again.

    Args:
        planned: from `plan`.
        scale: the scale it was planned at.
        out: the results folder; made if absent, continued if it holds the same sweep.
        engine: one of `edgewise.lab.engines.ENGINES`.
        slurm: settings of the jobs of engine "slurm", NAME=VALUE each.
        workers: processes; all cores if not given.
        recipe_file: where the recipe is, if it is none of the paper's.
        not_judged: why claims are not judged, if they are not.
        on_progress: called often.
        on_notice: called with a sentence for each thing that is wrong with the folder and was mended.

    Raises:
        UnknownNameError: an unknown engine or setting of its jobs, or a figure that is in no recipe.
        WorkerError: the engine cannot run here.
        MissingLibraryError: the engine's library is not installed.
        RecipeError: the recipe file has no label for a run.
        DataError: a data set is not prepared.
        StoreError: the folder holds other results or a symlink, another sweep is at work there, or it cannot be
            written to.
        Exception: the first error that a run raised, once the others are finished.
    """
    execute = engine_of(engine, slurm)
    configs = {figure: list(chain.from_iterable(ladders)) for figure, ladders in planned.items()}
    for name in {config.data.name for config in chain.from_iterable(configs.values())}:
        check_prepared(name)
    recipes = [recipe(figure, recipe_file) for figure in planned]
    workers = os.cpu_count() or 1 if workers is None else positive_count("workers", workers)
    figures = _figures(planned, scale)
    Store.check(out, figures)  # a folder that is refused is left without a lock
    with locked(Folder(out)) as holder:
        store = Store.create(out, figures, recipe_file)
        store.holder = holder
        for notice in store.notices():
            on_notice(notice)
        work = Work(list(chain.from_iterable(planned.values())), store)
        presentation.write(store, recipes, work.configs)
        if missing := [config.num_steps for config in work.configs if not store.runs.has(config.run_id)]:
            store.runs.check_room(max(missing))
        notes = _Notes(work, store, on_progress)
        try:
            execute(work, store, workers, notes.take)
        finally:
            notes.finish()
            store.leave_out(work.beyond())
            presentation.judge(store, recipes, not_judged)
    return store


def finished(planned: dict[str, list[Ladder]], scale: str, out: Path) -> set[str]:
    """Return the ids of the planned runs that the folder has, if it is there.

    Raises:
        StoreError: it holds something else.
    """
    Store.check(out, _figures(planned, scale))
    if not (out / "sweep.json").exists():
        return set()
    wanted = {run_id for figure in _figures(planned, scale) for run_id in figure.run_ids}
    return Store.open(out).runs.finished() & wanted


def _figures(planned: dict[str, list[Ladder]], scale: str) -> list[FigureRuns]:
    return [
        FigureRuns(figure=figure, scale=scale, run_ids=tuple(c.run_id for c in chain.from_iterable(ladders)))
        for figure, ladders in planned.items()
    ]


class _Notes:
    """Tells of the progress, and now and then writes it into the folder, for `edgewise status`."""

    def __init__(self, work: Work, store: Store, on_progress: Progress) -> None:
        self._work, self._store, self._on_progress = work, store, on_progress
        self._lengths = {config.run_id: config.num_steps for config in work.configs}
        stored = store.runs.finished()
        self._steps = {run_id: n if run_id in stored else 0 for run_id, n in self._lengths.items()}
        self._written = time.monotonic()
        self._tell()

    def take(self, begun: dict[str, int]) -> None:
        """Take in run id → steps, of the runs that have begun."""
        self._steps.update(begun)
        if time.monotonic() - self._written > _NOTE_SECONDS:
            progress.write(self._store.folder, self._under_way())
            self._written = time.monotonic()
        self._tell()

    def finish(self) -> None:
        """Record that nothing is under way any longer."""
        if progress.read(self._store.folder)[1]:
            progress.write(self._store.folder, {})

    def _under_way(self) -> dict[str, int]:
        return {
            run_id: n
            for run_id, n in self._steps.items()
            if 0 < n < self._lengths[run_id] and run_id not in self._work.failed
        }

    def _tell(self) -> None:
        beyond = self._work.beyond()
        finished = frozenset(run_id for run_id, n in self._steps.items() if n == self._lengths[run_id])
        state = State(
            steps=self._steps | {run_id: self._lengths[run_id] for run_id in beyond},
            finished=finished,
            failed=frozenset(self._work.failed),
            beyond=frozenset(beyond),
        )
        self._on_progress(state)
