"""Processes on this machine, one thread each, so that a run's numbers do not depend on how many there are."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from edgewise.lab.configs import RunConfig
from edgewise.lab.engines import worker
from edgewise.lab.errors import RecipeError, StoreError, WorkerError
from edgewise.lab.ladders import Work
from edgewise.lab.results import run_folder
from edgewise.lab.results.files import Folder
from edgewise.lab.results.store import Store

_POLL_SECONDS = 0.2

# In a worker, set once:
_steps_done: Any = None  # shared counters, one a config
_results: Folder  # where the runs are stored
_recipe_error: RecipeError | None = None  # what its recipe raised


def run(
    work: Work,
    store: Store,
    workers: int,
    on_progress: Callable[[dict[str, int]], None],
) -> None:
    """Train and store what there is to do; `on_progress` gets run id → steps done, of the runs that have begun.

    Raises:
        Exception: the first error of a run, with its run id noted, once the others are finished and stored.
        StoreError: results cannot be written.
        RecipeError: the recipe raises in the processes.
        WorkerError: a process was killed.
        KeyboardInterrupt: Ctrl-C, which the terminal sends to the workers as well.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    index = {config.run_id: i for i, config in enumerate(work.configs)}
    counters = context.Array("q", max(1, len(index)), lock=False)
    pending: dict[Future[None], RunConfig] = {}
    begun: list[str] = []
    started: set[BaseProcess] = set()
    with ProcessPoolExecutor(
        min(workers, max(1, len(index))),
        mp_context=context,
        initializer=_start_worker,
        initargs=(counters, store.path, store.recipe_file),
    ) as pool:

        def submit(configs: list[RunConfig]) -> None:
            for config in configs:
                with _ctrl_c_blocked():  # a process inherits that, and imports torch undisturbed
                    future = pool.submit(_train_and_store, index[config.run_id], config)
                pending[future] = config
                begun.append(config.run_id)
            started.update(multiprocessing.active_children())

        submit(work.start())
        try:
            while pending:
                done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    config = pending.pop(future)
                    if (error := future.exception()) is None:
                        submit(work.after(config))
                    elif isinstance(error, Exception) and not isinstance(
                        error, BrokenProcessPool | StoreError | RecipeError
                    ):
                        work.fail(config, error)
                    else:
                        raise error
                on_progress({run_id: counters[index[run_id]] for run_id in begun})
        except BrokenProcessPool as error:
            if _ended_by_ctrl_c(started):  # and noticed before Ctrl-C here
                raise KeyboardInterrupt from None
            raise WorkerError(
                "a training process was killed, perhaps for want of memory: finished runs are kept; run the same "
                "command again to go on, with fewer --workers if memory is short."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    work.raise_first_error()


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Put off Ctrl-C, where the system can: it comes when this ends, in each process for itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended_by_ctrl_c(workers: set[BaseProcess]) -> bool:
    for process in workers:
        process.join(_POLL_SECONDS)
    return any(process.exitcode == -signal.SIGINT for process in workers)


def _start_worker(counters: Any, results: Path, recipe_file: Path | None) -> None:
    global _steps_done, _results, _recipe_error  # noqa: PLW0603 - a worker's only state, set once
    _steps_done, _results = counters, Folder(results)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C leave without a traceback
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        worker.prepare(recipe_file)
    except RecipeError as error:  # raised here it would look as if the process had been killed
        _recipe_error = error


def _end_with_parent() -> None:
    """Leave when the parent is gone, also when it was killed: no orphan trains on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _train_and_store(index: int, config: RunConfig) -> None:
    def count(step: int) -> None:
        _steps_done[index] = step

    if _recipe_error is not None:
        raise _recipe_error
    result = worker.trained(config, count)
    run_folder.save(_results, config, result.rows, result.outcome)
    _steps_done[index] = config.num_steps  # a diverged run is done early
