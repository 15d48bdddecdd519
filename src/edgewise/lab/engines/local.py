"""Processes on this machine, one thread each, so that a run's numbers do not depend on how many there are."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from edgewise.lab.configs import RunConfig
from edgewise.lab.store import Store
from edgewise.lab.training import train

_POLL_SECONDS = 0.2

_steps_done: Any = None  # in a worker: shared counters, one a config


def run(
    configs: Sequence[RunConfig],
    store: Store,
    workers: int,
    on_progress: Callable[[list[int]], None],
) -> None:
    """Train every config and store it; `on_progress` gets the steps that each has behind it.

    Raises:
        Exception: the first error of a run, with its run id noted; finished runs stay stored.
        KeyboardInterrupt: Ctrl-C, which the terminal sends to the workers as well.
    """
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    counters = context.Array("q", max(1, len(configs)), lock=False)
    with ProcessPoolExecutor(
        min(workers, max(1, len(configs))),
        mp_context=context,
        initializer=_start_worker,
        initargs=(counters,),
    ) as pool:
        pending = {pool.submit(_train_and_store, i, config, store) for i, config in enumerate(configs)}
        workers_started = multiprocessing.active_children()
        try:
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                _raise_first_error(done)
                on_progress(list(counters[: len(configs)]))
        except BrokenProcessPool:
            if _ended_by_ctrl_c(workers_started):  # and noticed before Ctrl-C here
                raise KeyboardInterrupt from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _ended_by_ctrl_c(workers: list[BaseProcess]) -> bool:
    for worker in workers:
        worker.join(_POLL_SECONDS)
    return any(worker.exitcode == -signal.SIGINT for worker in workers)


def _start_worker(counters: Any) -> None:
    global _steps_done  # noqa: PLW0603 - a worker's only state, set once
    _steps_done = counters
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # on Ctrl-C leave without a traceback
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone, also when it was killed: no orphan trains on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _train_and_store(index: int, config: RunConfig, store: Store) -> None:
    def count(step: int) -> None:
        _steps_done[index] = step

    try:
        result = train(config, count)
        store.save(config, result.rows, result.outcome)
    except Exception as error:
        error.add_note(f"in run {config.run_id}: {config}")
        raise
    _steps_done[index] = config.num_steps  # a diverged run is done early


def _raise_first_error(done: set[Future[None]]) -> None:
    for future in done:
        future.result()
