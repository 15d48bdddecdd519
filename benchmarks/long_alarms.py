"""How often EdgeWarmup would halve a rate that is right: 102 runs of 4,000 updates at a quarter of the best one.

    OMP_NUM_THREADS=1 python benchmarks/long_alarms.py [--part 0/2]

Needs the search of `long_runs.py`. The six quickest tasks of `long_tasks.py` are trained with linear warmup and then a
constant rate, so that no instability is to be expected. Alarm, surge and overflow see every loss, also long after a
warmup would have let go of them. A row a run goes to `edge_runs/alarms.csv`; at the end, all of them are counted.
"""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from long_runs import LONG_RUNS, LongRuns, arguments, best_rate, chosen_tasks, train_by
from long_tasks import Task
from stored import Stored
from torch import Tensor

from edgewise.warmup.watch import LossWatch

_TASKS = ("GroupNorm ResNet", "GRU", "regression", "Llama", "BatchNorm ResNet", "autoencoder")
_SEEDS = range(10, 27)
_NUM_UPDATES, _NUM_WARMUP = 4000, 400
_SHARE = 0.25  # of the best rate


@dataclass(frozen=True, kw_only=True)
class AlarmRun:
    """One training at a constant rate."""

    task: str
    seed: int
    final: float
    rises: int  # how often the rate would have been halved
    first: int  # update of the first; -1: never
    spikes: int  # updates that would have been held back


def train_watched(task: Task, lr: float, seed: int) -> AlarmRun:
    """Train, and let the watch of EdgeWarmup see the losses."""
    task = dataclasses.replace(task, num_updates=_NUM_UPDATES)
    model, (optimizer,) = task.make(lr, seed)
    targets = [group["lr"] for group in optimizer.param_groups]
    watch, rises = LossWatch(), []

    def step(update: int, loss: Tensor, _closure: Callable[[], Tensor]) -> None:
        watch.add(loss.item(), update, recovery=0.1)
        if watch.rises:
            rises.append(update)
        for group, target in zip(optimizer.param_groups, targets, strict=True):
            group["lr"] = target * min(1.0, (update + 1) / _NUM_WARMUP)
        optimizer.step()

    final = train_by(step, task, model, seed)
    return AlarmRun(
        task=task.name,
        seed=seed,
        final=final,
        rises=len(rises),
        first=rises[0] if rises else -1,
        spikes=watch.guard.num_spikes,
    )


def main() -> None:
    """Train what is missing, and count."""
    given = arguments(__doc__)
    torch.set_num_threads(1)
    stored = Stored(AlarmRun, LONG_RUNS.with_name("alarms.csv"))
    searched = LongRuns(given.file).read()
    known = {(run.task, run.seed) for run in stored.read()}
    tasks = [task for task in chosen_tasks(given) if task.name.startswith(_TASKS)]
    part, parts = given.part
    for seed, task in itertools.islice(itertools.product(_SEEDS, tasks), part, None, parts):
        if (task.name, seed) not in known:
            run = train_watched(task, _SHARE * best_rate(task, searched), seed)
            stored.append(run)
            print(f"{run.task:28} seed {seed}: {run.final:.4f}, {run.rises} rises", flush=True)
    runs = stored.read()
    print(f"{sum(run.rises > 0 for run in runs)} of {len(runs)} runs would have been halved")


if __name__ == "__main__":
    main()
