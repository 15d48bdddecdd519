"""What else promises no rate or no warmup to tune, on the tasks of `long_tasks.py`, each as its authors recommend it.

    OMP_NUM_THREADS=1 python benchmarks/long_peers.py train [--held-out | --development] [--part 0/2]

Needs prodigyopt, dadaptation, schedulefree and transformers (GreedyLR). They stand in place of a task's optimizer, with
its weight decay, which DoWG has none of, and its clipping. Those that need a rate have their default: a tuned one is
what they are to spare. The rows go where `long_runs.py` keeps its own. `memory` prints how many numbers each keeps for
one of the parameters.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from long_runs import LongRun, LongRuns, arguments, chosen_tasks, decay_factor, seeds, train_by
from long_tasks import TASKS, Task, trained
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, RAdam

Groups = list[dict[str, Any]]
AfterUpdate = Callable[[int, Tensor], None]  # gets its number and its loss
Schedule = Callable[[Optimizer, Task], AfterUpdate]
_DEFAULT_RATE, _SCHEDULE_FREE_RATE = 1e-3, 2.5e-3
_WARMUP_SHARE = 0.1  # of the run, where a warmup is recommended and no length
_NUM_RECALIBRATED = (
    50  # batches for BatchNorm's averages, which schedule-free learning leaves at other parameters
)


class DoWG(Optimizer):
    """Gradient descent with η = r²/√v, r the farthest distance from the start, v = Σ r²‖g‖².

    Reference: Khaled, Mishchenko & Jin, "DoWG Unleashed", NeurIPS 2023, algorithm 1, r₀ = 10⁻⁴.
    """

    def __init__(self, params: Groups) -> None:
        super().__init__(params, {"lr": 1.0})
        self._parameters = [p for group in self.param_groups for p in group["params"]]
        self.start = [p.detach().clone() for p in self._parameters]
        self._farthest, self._sum = 1e-4, 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make one update."""
        moved = [p - start for p, start in zip(self._parameters, self.start, strict=True)]
        self._farthest = max(self._farthest, nn.utils.get_total_norm(moved).item())
        gradients = [p.grad for p in self._parameters]
        self._sum += self._farthest**2 * nn.utils.get_total_norm(gradients).item() ** 2
        lr = self.param_groups[0]["lr"] * self._farthest**2 / math.sqrt(self._sum)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.add_(gradient, alpha=-lr)


def _prodigy(groups: Groups, task: Task) -> Optimizer:
    from prodigyopt import Prodigy  # noqa: PLC0415 - each peer needs its own library alone

    return Prodigy(groups)


def _d_adaptation(groups: Groups, task: Task) -> Optimizer:
    from dadaptation import DAdaptAdam  # noqa: PLC0415

    return DAdaptAdam(groups, decouple=True)


def _schedule_free(groups: Groups, task: Task, warmup_share: float = 0.0) -> Optimizer:
    from schedulefree import AdamWScheduleFree  # noqa: PLC0415

    optimizer = AdamWScheduleFree(
        groups, lr=_SCHEDULE_FREE_RATE, warmup_steps=round(warmup_share * task.num_updates)
    )
    optimizer.train()
    return optimizer


def _schedule_free_with_warmup(groups: Groups, task: Task) -> Optimizer:
    return _schedule_free(groups, task, _WARMUP_SHARE)


def _greedy(optimizer: Optimizer, task: Task) -> AfterUpdate:
    from transformers import GreedyLR  # noqa: PLC0415

    schedule = GreedyLR(optimizer)
    return lambda update, loss: schedule.step(loss.item())


def _factor(optimizer: Optimizer, factor_at: Callable[[int], float]) -> AfterUpdate:
    """Return what writes the rates after an update, and write those of the first."""
    targets = [group["lr"] for group in optimizer.param_groups]

    def write(update: int) -> None:
        for group, target in zip(optimizer.param_groups, targets, strict=True):
            group["lr"] = target * factor_at(update)

    write(0)
    return lambda update, loss: write(update + 1)


def _adamw(groups: Groups, task: Task) -> Optimizer:
    return AdamW(groups, lr=_DEFAULT_RATE)


def _untuned_length(task: Task) -> int:
    """2/(1 − β₂) updates (Ma & Yarats 2021), half of the run at most."""
    return min(task.num_updates // 2, round(2 / (1 - 0.999)))


def _decay(optimizer: Optimizer, task: Task) -> AfterUpdate:
    return _factor(optimizer, lambda update: decay_factor(task, update, 0))


def _cosine(optimizer: Optimizer, task: Task) -> AfterUpdate:
    return _factor(optimizer, lambda update: 0.5 * (1 + math.cos(math.pi * update / task.num_updates)))


def _untuned(optimizer: Optimizer, task: Task) -> AfterUpdate:
    length = _untuned_length(task)
    return _factor(
        optimizer, lambda update: min(1.0, (update + 1) / length) * decay_factor(task, update, length)
    )


def _none(optimizer: Optimizer, task: Task) -> AfterUpdate:
    return lambda update, loss: None


# Each with its schedule.
PEERS: dict[str, tuple[Callable[[Groups, Task], Optimizer], Schedule]] = {
    "Prodigy": (_prodigy, _cosine),
    "D-Adaptation": (_d_adaptation, _decay),
    "schedule-free": (_schedule_free, _none),
    "schedule-free, warmup": (_schedule_free_with_warmup, _none),
    "DoWG": (lambda groups, task: DoWG(groups), _decay),
    "RAdam": (lambda groups, task: RAdam(groups, lr=_DEFAULT_RATE, decoupled_weight_decay=True), _decay),
    "untuned linear": (_adamw, _untuned),
    "GreedyLR": (_adamw, _greedy),
    "AdamW, no warmup": (_adamw, _decay),
}


def _made(task: Task, name: str, seed: int) -> tuple[nn.Module, Optimizer, AfterUpdate]:
    model, optimizers = task.make(task.middle_rate, seed)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    make, schedule = PEERS[name]
    optimizer = make(groups, task)
    return model, optimizer, schedule(optimizer, task)


def numbers_kept(task: Task, name: str) -> float:
    """Return how many numbers a peer keeps, after an update, for one of the parameters."""
    model, optimizer, _ = _made(task, name, 0)
    task.loss(model, next(task.batches(0))).backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    kept += getattr(optimizer, "start", [])
    numbers = sum(value.numel() for value in kept if isinstance(value, Tensor))
    return numbers / sum(parameter.numel() for parameter in trained(model))


def train_peer(task: Task, name: str, seed: int) -> LongRun:
    """Train with a peer."""
    model, optimizer, schedule_step = _made(task, name, seed)

    def step(update: int, loss: Tensor, _closure: Callable[[], Tensor]) -> None:
        optimizer.step()
        schedule_step(update, loss)

    def before_evaluation() -> None:
        if hasattr(optimizer, "eval"):  # schedule-free: from the parameters with gradients to their averages
            optimizer.eval()
            with torch.no_grad():
                for _update, batch in zip(range(_NUM_RECALIBRATED), task.batches(seed), strict=False):
                    model(batch[0])

    started = time.perf_counter()
    final = train_by(step, task, model, seed, before_evaluation)
    seconds = time.perf_counter() - started
    return LongRun(task=task.name, way=name, lr=0.0, seed=seed, final=final, seconds=seconds)


def peers(tasks: Sequence[Task]) -> Iterator[tuple[Task, str, int]]:
    """Yield the tasks, peers and seeds."""
    for task in tasks:
        for seed, name in itertools.product(seeds(task), PEERS):
            yield task, name, seed


def main() -> None:
    """Train what is missing."""
    given = arguments(__doc__, "train", "memory")
    torch.set_num_threads(1)
    if given.what == "memory":
        for name in PEERS:
            print(f"{name:22} {numbers_kept(TASKS[0], name):.2f}")
        return
    runs, (part, parts) = LongRuns(given.file), given.part
    for task, name, seed in itertools.islice(peers(chosen_tasks(given)), part, None, parts):
        runs.get(lambda t=task, n=name, s=seed: train_peer(t, n, s), task, name, 0.0, 0.0, seed)


if __name__ == "__main__":
    main()
