"""Ray tasks, on this machine or on a cluster: RAY_ADDRESS says which, as `ray.init` reads it.

A task whose worker dies is tried again. Results come back here and are stored here, so that workers need no common
file system; a recipe of one's own must lie at the same path on each machine.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgewise.lab import plugins
from edgewise.lab.configs import RunConfig
from edgewise.lab.store import Store
from edgewise.lab.training import RunResult, train
from edgewise.lab.work import Work

_RETRIES = 3  # of a run whose worker dies
_POLL_SECONDS = 0.5


def run(work: Work, store: Store, workers: int, on_progress: Callable[[dict[str, int]], None]) -> None:
    """Train and store what there is to do; `on_progress` gets run id → steps, of the runs that are finished.

    Args:
        work: what there is to do.
        store: where it goes.
        workers: cores to use, where Ray is started here; a cluster has its own.
        on_progress: called often.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        Exception: the first error of a run, once the others are finished and stored.
    """
    ray = _started(workers)
    train_there = ray.remote(num_cpus=1, max_retries=_RETRIES)(_train)
    pending: dict[Any, RunConfig] = {}
    steps: dict[str, int] = {}

    def submit(configs: list[RunConfig]) -> None:
        for config in configs:
            pending[train_there.remote(config, store.recipe_file, sys.path)] = config

    submit(work.start())
    try:
        while pending:
            done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
            for reference in done:
                config = pending.pop(reference)
                try:
                    result = ray.get(reference)
                except Exception as error:  # of the run, or of a worker that died too often
                    work.fail(config, getattr(error, "cause", None) or error)
                    continue
                store.save(config, result.rows, result.outcome)
                steps[config.run_id] = config.num_steps
                submit(work.after(config))
            on_progress(dict(steps))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
    work.raise_first_error()


def _started(workers: int) -> Any:
    """Return Ray, connected."""
    try:
        import ray  # noqa: PLC0415 - only who chooses this engine needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"engine 'ray' needs Ray ({error}): pip install 'edgewise[ray]', or choose engine 'local'."
        ) from error
    if not ray.is_initialized():
        own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
        ray.init(
            log_to_driver=False, logging_level=logging.ERROR, **{} if "RAY_ADDRESS" in os.environ else own
        )
    return ray


def _train(config: RunConfig, recipe_file: Path | None, path: list[str]) -> RunResult:
    """Train in a worker, with one thread, as the local engine does."""
    sys.path[:] = path  # finds what the driver finds, also without an installation
    torch.set_num_threads(1)
    if recipe_file is not None:
        plugins.execute(recipe_file)
    return train(config)
