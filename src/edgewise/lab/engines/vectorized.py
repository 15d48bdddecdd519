"""Cells of one architecture trained as one batch: stacked parameters, a rate and a warmup for each cell.

The numbers are those of the other engines up to the rounding of batched arithmetic, which training amplifies: losses
agree to 1e-5 over the first steps, ever less later, and where a run is chaotic they go apart. What cannot be batched
(measured curvature, warmups that look at the loss, augmentation, RI-Adam, CNNs with their BatchNorm, networks of one's
own) is trained one run after the other.

A phase diagram is trained whole: rates beyond its boundary cost little in a batch. Its figures leave them out all the
same, as the other engines do.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from edgewise.lab.configs import RunConfig, WarmupConfig
from edgewise.lab.engines.batched_training import is_batchable, train_together
from edgewise.lab.engines.worker import as_exception
from edgewise.lab.ladders import Work
from edgewise.lab.results.store import Store
from edgewise.lab.training import RunResult, train

_CELLS_ON_CPU = 16  # of a chunk: more do not stay in the cache


def run(work: Work, store: Store, workers: int, on_progress: Callable[[dict[str, int]], None]) -> None:
    """Train and store what there is to do in this process, on the GPU if there is one.

    Args:
        work: what there is to do.
        store: where it goes.
        workers: threads on the CPU.
        on_progress: called with run id → steps done.

    Raises:
        Exception: the first error of a batch, all of whose runs failed, once the others are finished and stored.
        StoreError: results cannot be written.
    """
    torch.set_num_threads(workers)
    missing = [config for config in work.configs if not store.runs.has(config.run_id)]
    for chunk in chunks(missing):
        try:
            trained = _train_what_fits(chunk, on_progress)
        except (Exception, SystemExit) as error:
            for config in chunk:
                work.fail(config, as_exception(error))
            continue
        for config, result in trained:
            store.runs.save(config, result.rows, result.outcome)
    work.start()  # climb the ladders, to see what lies beyond
    work.raise_first_error()


def chunks(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Return runs that can be trained as one batch together; a run that cannot be batched is alone."""
    groups: dict[Any, list[RunConfig]] = {}
    for config in configs:
        groups.setdefault(_kind(config) if is_batchable(config) else config, []).append(config)
    size = len(configs) if torch.cuda.is_available() else _CELLS_ON_CPU
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _kind(config: RunConfig) -> RunConfig:
    """Return the config with what may differ within a batch at fixed values."""
    optimizer = replace(config.optimizer, lr=1.0, lr_unit="absolute")
    return replace(config, optimizer=optimizer, warmup=WarmupConfig(), seed=0)


def _train_what_fits(
    chunk: list[RunConfig], on_progress: Callable[[dict[str, int]], None]
) -> list[tuple[RunConfig, RunResult]]:
    """Train the chunk, in halves where it does not fit the memory."""

    def report(steps: int) -> None:
        on_progress({config.run_id: steps for config in chunk})

    if not is_batchable(chunk[0]):
        results = [train(chunk[0], report)]
    else:
        try:
            results = train_together(chunk, report)
        except torch.OutOfMemoryError:
            if len(chunk) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(chunk) // 2
            return [
                done for part in (chunk[:half], chunk[half:]) for done in _train_what_fits(part, on_progress)
            ]
    report(chunk[0].num_steps)
    return list(zip(chunk, results, strict=True))
