"""What EdgeWarmup costs by the clock: whole runs with it and without, in turn, update by update.

Both train the same network from the same start, on the same batches, at the rates of the run with EdgeWarmup. Each is
repeated from the same start, and what counts is the median over the repeats of an update's difference in processor
time, so that what other processes do in the meantime counts for little.
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
REPEATS = 3
_PHASES = ("start", "climb", "creep", "after")


def rows() -> Iterator[Row]:
    """Return a row for each task and optimizer."""
    for task in (fcn_task(), lm_task(), conv_task()):
        for name, make in (("SGD", SGD), ("AdamW", AdamW)):
            yield _row(task, name, make)


def _row(task: Task, name: str, make: type[Optimizer]) -> Row:
    repeats = [_run(task, make) for _ in range(REPEATS)]
    phases = repeats[0][0]
    extra = [statistics.median(times) for times in zip(*(extra for _, extra, _ in repeats), strict=True)]
    plain = [statistics.median(times) for times in zip(*(plain for _, _, plain in repeats), strict=True)]
    parts = []
    for phase in _PHASES:
        updates = [i for i, each in enumerate(phases) if each == phase]
        if updates:
            own, bare = sum(extra[i] for i in updates), sum(plain[i] for i in updates)
            parts.append(f"{phase} {own / sum(plain):.1%} ({own / bare:.1%} of its {len(updates)})")
    return (
        f"{task.name}, {name}, batches of {BATCH_SIZE}",
        f"share of the processor time of {NUM_STEPS} updates, median of {REPEATS} runs",
        f"{sum(extra) / sum(plain):.1%}: {', '.join(parts)}; {statistics.median(plain) * 1e3:.1f} ms an update",
    )


def _run(task: Task, make: type[Optimizer]) -> tuple[list[str], list[float], list[float]]:
    """Return of each update its phase, the seconds that it takes longer with EdgeWarmup, and those without."""
    models = [copy.deepcopy(task.model) for _ in range(2)]
    optimizers = [make(model.parameters(), lr=1.0) for model in models]  # far too high
    warmup = ew.EdgeWarmup(optimizers[0], num_steps=NUM_STEPS)
    phases, extra, plain = [], [], []
    for step in range(NUM_STEPS):
        phases.append(_phase(warmup))
        with_it = _seconds(task, models[0], optimizers[0], warmup, step)
        optimizers[1].param_groups[0]["lr"] = warmup.report().lr_target * warmup.factor_at(step)
        plain.append(_seconds(task, models[1], optimizers[1], None, step))
        extra.append(with_it - plain[-1])
    return phases, extra, plain


def _phase(warmup: ew.EdgeWarmup) -> str:
    if warmup.found is None:
        return "start"
    if warmup.finished:
        return "after"
    return "climb" if warmup._climb.is_on else "creep"


def _seconds(
    task: Task, model: nn.Module, optimizer: Optimizer, warmup: ew.EdgeWarmup | None, step: int
) -> float:
    """Return the processor time of an update."""
    start = time.process_time()
    batch = tuple(part[_chosen(step, len(part))] for part in task.batch)
    optimizer.zero_grad()
    loss = task.loss_fn(model, batch)
    loss.backward()
    if warmup is not None:
        warmup.observe(lambda: task.loss_fn(model, batch), loss=loss)
    optimizer.step()
    if warmup is not None:
        warmup.step()
    return time.process_time() - start


def _chosen(step: int, size: int) -> torch.Tensor:
    return torch.randint(size, (min(BATCH_SIZE, size),), generator=torch.Generator().manual_seed(step))
