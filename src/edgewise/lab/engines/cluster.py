"""Ray tasks, on this machine or on a cluster: RAY_ADDRESS says which, as `ray.init` reads it.

A task whose worker dies is tried again. A worker that sees the results folder stores its run there itself, so that
nothing is lost with the driver; from a machine without that folder the run comes here and is stored. A recipe of one's
own must lie at the same path on each machine.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgewise.lab.configs import RunConfig
from edgewise.lab.engines import worker
from edgewise.lab.errors import RecipeError, StoreError, WorkerError
from edgewise.lab.ladders import Work
from edgewise.lab.results import lock, run_folder
from edgewise.lab.results.files import Folder
from edgewise.lab.results.store import Store
from edgewise.lab.training import RunResult

LIBRARY = ("ray", "ray")  # and the extra that it is in
_POLL_SECONDS = 0.5


def run(work: Work, store: Store, workers: int, on_progress: Callable[[dict[str, int]], None]) -> None:
    """Train and store what there is to do; `on_progress` gets run id → steps, of the runs that are finished.

    Args:
        work: what there is to do.
        store: where it goes.
        workers: cores to use, where Ray is started here; a cluster has its own.
        on_progress: called often.

    Raises:
        MissingLibraryError: Ray is not installed.
        WorkerError: Ray cannot be started or reached.
        StoreError: results cannot be written.
        RecipeError: the recipe raises in the workers.
        Exception: the first error of a run, once the others are finished and stored.
    """
    ray = _started(workers)
    train_there = ray.remote(num_cpus=1, max_retries=worker.RETRIES)(_train)
    pending: dict[Any, RunConfig] = {}
    steps: dict[str, int] = {}

    def submit(configs: list[RunConfig]) -> None:
        for config in configs:
            reference = train_there.remote(
                config, store.recipe_file, sys.path, store.path.absolute(), store.holder
            )
            pending[reference] = config

    submit(work.start())
    try:
        while pending:
            done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
            for reference in done:
                config = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except Exception as error:  # of the run, or of a worker that died too often
                    cause = getattr(error, "cause", None) or error
                    if isinstance(cause, RecipeError):
                        raise cause from None
                    work.fail(config, cause)
                    continue
                if not store.runs.has(config.run_id):
                    store.runs.save(config, result.rows, result.outcome)
                steps[config.run_id] = config.num_steps
                submit(work.after(config))
            on_progress(dict(steps))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
    work.raise_first_error()


def _started(workers: int) -> Any:
    """Return Ray, connected."""
    ray = worker.library(*LIBRARY)
    if not ray.is_initialized():
        # "local", as Ray would otherwise join whatever cluster happens to run on this machine.
        own: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(
                log_to_driver=False, logging_level=logging.ERROR, **{} if "RAY_ADDRESS" in os.environ else own
            )
        except Exception as error:
            where = os.environ.get("RAY_ADDRESS", "this machine")
            raise WorkerError(
                f"Ray cannot be started or reached on {where} ({type(error).__name__}: {error}): see RAY_ADDRESS, or "
                "choose engine 'local'."
            ) from error
    return ray


def _train(
    config: RunConfig, recipe_file: Path | None, path: list[str], results: Path, holder: str
) -> RunResult:
    """Train in a worker, with one thread, as the local engine does, and store the run if the folder is here."""
    sys.path[:] = path  # finds what the driver finds, also without an installation
    worker.prepare(recipe_file)
    result = worker.trained(config)
    folder = Folder(results)
    if lock.holds(folder, holder):  # the very folder, and not another one of the same path on another machine
        with contextlib.suppress(StoreError):  # then the driver tries
            run_folder.save(folder, config, result.rows, result.outcome)
    return result
