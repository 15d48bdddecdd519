"""From figure names to stored results: what is asked for, what is missing, and running it."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edgewise.errors import known_name, positive_count
from edgewise.lab.configs import RunConfig
from edgewise.lab.engines import engine as engine_of
from edgewise.lab.recipes import SCALES, recipe
from edgewise.lab.store import FigureRuns, Store

Progress = Callable[[dict[str, int]], None]  # run id → steps behind it


def plan(figures: Sequence[str], scale: str) -> dict[str, tuple[RunConfig, ...]]:
    """Return figure id → its runs.

    Raises:
        UnknownNameError: an unknown figure or scale.
    """
    known_name("scale", scale, SCALES)
    return {figure: recipe(figure).configs(scale) for figure in figures}


def run(
    planned: dict[str, tuple[RunConfig, ...]],
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
        on_progress: called often, with run id → steps done, for all runs.

    Raises:
        UnknownNameError: an unknown engine.
        StoreError: the folder holds other results.
    """
    execute = engine_of(engine)
    workers = os.cpu_count() or 1 if workers is None else positive_count("workers", workers)
    figures = [
        FigureRuns(figure=figure, scale=scale, run_ids=tuple(config.run_id for config in configs))
        for figure, configs in planned.items()
    ]
    store = Store.create(out, figures)
    unique = {config.run_id: config for configs in planned.values() for config in configs}
    missing = [config for run_id, config in unique.items() if not store.has(run_id)]
    done = {run_id: c.num_steps if store.has(run_id) else 0 for run_id, c in unique.items()}
    on_progress(done)
    if missing:
        ids = [config.run_id for config in missing]
        execute(missing, store, workers, lambda steps: on_progress(done | dict(zip(ids, steps, strict=True))))
    return store
