"""From figure names to stored results: what is asked for, what is missing, and running it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgewise.errors import known_name, positive_count
from edgewise.lab.data.sources import check_prepared
from edgewise.lab.engines import engine as engine_of
from edgewise.lab.recipes import SCALES, recipe
from edgewise.lab.store import FigureRuns, Store
from edgewise.lab.work import Ladder, Work

Progress = Callable[[dict[str, int]], None]  # run id → steps behind it


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
    workers: int | None = None,
    on_progress: Progress = lambda steps: None,
) -> Store:
    """Train what is missing from the folder and return the complete store.

    Args:
        planned: from `plan`.
        scale: the scale it was planned at.
        out: the results folder; made if absent, continued if it holds the same sweep.
        engine: one of `edgewise.lab.engines.ENGINES`.
        workers: processes; all cores if not given.
        on_progress: called often, with run id → steps behind it, all of them for a run that need not be trained.

    Raises:
        UnknownNameError: an unknown engine.
        DataError: a data set is not prepared.
        StoreError: the folder holds other results.
    """
    for name in {config.data.name for its in planned.values() for ladder in its for config in ladder}:
        check_prepared(name)
    execute = engine_of(engine)
    workers = os.cpu_count() or 1 if workers is None else positive_count("workers", workers)
    figures = [
        FigureRuns(
            figure=figure, scale=scale, run_ids=tuple(c.run_id for ladder in its_ladders for c in ladder)
        )
        for figure, its_ladders in planned.items()
    ]
    store = Store.create(out, figures)
    work = Work([ladder for its_ladders in planned.values() for ladder in its_ladders], store)
    behind = {c.run_id: c.num_steps if store.has(c.run_id) else 0 for c in work.configs}

    def report_progress(begun: dict[str, int]) -> None:
        behind.update(begun)
        beyond = work.beyond()
        on_progress(behind | {c.run_id: c.num_steps for c in work.configs if c.run_id in beyond})

    report_progress({})
    execute(work, store, workers, report_progress)
    store.leave_out(work.beyond())
    return store
