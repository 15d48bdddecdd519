"""What EdgeWarmup costs by the clock: whole runs with it and without, in turn, update by update.

Both train the same network from the same start, on the same batches, at the rates of the run with EdgeWarmup.
"""

import copy
import statistics
import time
from collections.abc import Iterator

import torch
from tasks import Task, conv_task, fcn_task, lm_task
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import edgewise as ew

Row = tuple[str, str, str]
NUM_STEPS = 400
BATCH_SIZE = 64


def rows() -> Iterator[Row]:
    """Return a row for each task and optimizer."""
    for task in (fcn_task(), lm_task(), conv_task()):
        for name, make in (("SGD", SGD), ("AdamW", AdamW)):
            yield _row(task, name, make)


def _row(task: Task, name: str, make: type[Optimizer]) -> Row:
    models = [task.model, copy.deepcopy(task.model)]
    optimizers = [make(model.parameters(), lr=1.0) for model in models]  # far too high
    warmup = ew.EdgeWarmup(optimizers[0], num_steps=NUM_STEPS)
    with_it, without = [], []
    for step in range(NUM_STEPS):
        start = time.perf_counter()
        _update(task, models[0], optimizers[0], warmup, step)
        with_it.append(time.perf_counter() - start)
        optimizers[1].param_groups[0]["lr"] = warmup.report().lr_target * warmup.factor_at(step)
        start = time.perf_counter()
        _update(task, models[1], optimizers[1], None, step)
        without.append(time.perf_counter() - start)
    return (
        f"{task.name}, {name}, batches of {BATCH_SIZE}",
        f"share of the time of {NUM_STEPS} updates: measured, counted in forwards",
        f"{sum(with_it) / sum(without) - 1:.1%}, {warmup.num_forwards / (3 * NUM_STEPS):.1%} "
        f"({statistics.median(without) * 1e3:.1f} ms an update)",
    )


def _update(
    task: Task, model: nn.Module, optimizer: Optimizer, warmup: ew.EdgeWarmup | None, step: int
) -> None:
    batch = tuple(part[_chosen(step, len(part))] for part in task.batch)
    optimizer.zero_grad()
    loss = task.loss_fn(model, batch)
    loss.backward()
    if warmup is not None:
        warmup.observe(lambda: task.loss_fn(model, batch), loss=loss)
    optimizer.step()
    if warmup is not None:
        warmup.step()


def _chosen(step: int, size: int) -> torch.Tensor:
    return torch.randint(size, (min(BATCH_SIZE, size),), generator=torch.Generator().manual_seed(step))
