"""EdgeWarmup with the recipes that people use, beside the whole grid of rates and lengths, for 1,000 to 4,000 updates.

    OMP_NUM_THREADS=1 python benchmarks/long_runs.py {search,grid,edge,plane} [--held-out | --development] [--part 0/2]

`search` looks for the octave that is best with a warmup of a tenth of the run, with one seed. `grid` trains that rate,
half, twice and four times of it with every length and seed, `edge` with EdgeWarmup at ceilings from half of it to 64
times as much. Tasks are those of `long_tasks.py`. Each training is a row of `edge_runs/long.csv`; what is there is
not trained again, so that an interrupted run goes on. `plane` trains one seed at more rates, for the pictures of
`PICTURED`. `long_peers.py` adds what else promises no tuning, `long_tables.py` says what it all comes to.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from advice_grid import add_halves, add_part
from long_tasks import TASKS, Task, trained
from stored import Stored
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

import edgewise as ew

LONG_RUNS = Path(__file__).with_name("edge_runs") / "long.csv"
LENGTHS = (0.0, 0.02, 0.1, 0.3, 0.5)  # of linear warmup, in shares of the run; 0 is one update
MULTIPLES = (0.5, 1.0, 2.0, 4.0)  # of the best rate, which the grid trains at
CEILINGS = (0.5, 1.0, 2.0, 4.0, 16.0, 64.0)
PICTURED = ("GPT, AdamW, B = 8", "GroupNorm ResNet, Nesterov")  # tasks
PLANE = tuple(2.0**octave for octave in range(-3, 7))  # of the best rate
_SEARCHED_WITH = 0.1  # length
_WORSE, _FARTHEST = 1.03, 12  # factor on the best loss, and octaves from the middle rate
_STABLE = 0.8  # share of the run after which WSD decays
EDGE, LINEAR = "EdgeWarmup", "linear"


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """One training; what ended not finite has an infinite loss."""

    task: str
    way: str  # EDGE, LINEAR, or the name of a peer
    lr: float  # target, of the first optimizer
    share: float = 0.0  # of the run that linear warmup takes
    seed: int
    final: float
    held: float = math.nan  # rate that EdgeWarmup ended at; NaN: training ended before, or another way
    length: int = 0  # updates of EdgeWarmup
    forwards: int = 0
    step_backs: int = 0
    seconds: float


def seeds(task: Task) -> range:
    """Return the seeds of network and batches: those held out have their own."""
    return range(3, 6) if task.held_out else range(3)


Step = Callable[[int, Tensor, Callable[[], Tensor]], None]  # of an update, its loss and its closure


def train_by(
    step: Step, task: Task, model: nn.Module, seed: int, before_evaluation: Callable[[], None] = lambda: None
) -> float:
    """Train by a step, which finds the gradients clipped; return the final loss."""
    torch.manual_seed(seed)  # of the dropout masks
    for update, batch in enumerate(task.batches(seed)):
        model.zero_grad()
        loss = task.loss(model, batch)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(trained(model), task.clip)
        step(update, loss, lambda batch=batch: task.loss(model, batch))
    before_evaluation()
    return evaluate(task, model)


def evaluate(task: Task, model: nn.Module) -> float:
    """Return the loss on the fixed samples, infinite where it is not finite."""
    model.eval()
    with torch.no_grad():
        loss = task.loss(model, task.evaluation_batch()).item()
    model.train()
    return loss if math.isfinite(loss) else math.inf


def decay_factor(task: Task, update: int, num_warmup: int) -> float:
    """Return the factor that the task's decay has at an update, counted from 0."""
    stable = int(_STABLE * task.num_updates) if task.decay == "wsd" else num_warmup
    if update < stable:
        return 1.0
    progress = (update - stable) / (task.num_updates - stable)
    return 0.5 * (1 + math.cos(math.pi * progress)) if task.decay == "cosine" else 1 - progress


def train_linear(task: Task, lr: float, share: float, seed: int) -> LongRun:
    """Train with linear warmup over a share of the run."""
    model, optimizers = task.make(lr, seed)
    num_warmup = max(1, round(share * task.num_updates))
    targets = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(update: int, _loss: Tensor, _closure: Callable[[], Tensor]) -> None:
        factor = min(1.0, (update + 1) / num_warmup) * decay_factor(task, update, num_warmup)
        for optimizer, rates in zip(optimizers, targets, strict=True):
            for group, target in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = factor * target
            optimizer.step()

    started = time.perf_counter()
    final = train_by(step, task, model, seed)
    seconds = time.perf_counter() - started
    return LongRun(task=task.name, way=LINEAR, lr=lr, share=share, seed=seed, final=final, seconds=seconds)


def train_edge(task: Task, ceiling: float, seed: int) -> LongRun:
    """Train with EdgeWarmup up to a ceiling: one for each optimizer."""
    model, optimizers = task.make(ceiling, seed)
    warmups = [ew.EdgeWarmup(optimizer, num_steps=task.num_updates) for optimizer in optimizers]
    schedules = [_schedule(task, warmup) for warmup in warmups]

    def step(_update: int, loss: Tensor, closure: Callable[[], Tensor]) -> None:
        for warmup in warmups:
            warmup.observe(closure, loss=loss)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()

    started = time.perf_counter()
    final = train_by(step, task, model, seed)
    seconds = time.perf_counter() - started
    first = warmups[0]
    held = first.lr_held if first.lr_held is not None else ceiling
    return LongRun(
        task=task.name,
        way=EDGE,
        lr=ceiling,
        seed=seed,
        final=final,
        seconds=seconds,
        held=held if first.finished else math.nan,
        length=first.length,
        forwards=sum(warmup.num_forwards for warmup in warmups),
        step_backs=sum(warmup.report().num_step_backs for warmup in warmups),
    )


def _schedule(task: Task, warmup: ew.EdgeWarmup) -> LRScheduler:
    if task.decay == "wsd":
        return warmup.then_until(task.num_updates, lambda update, length: decay_factor(task, update, length))
    return warmup.then_until(task.num_updates, task.decay)


class LongRuns(Stored[LongRun]):
    """The rows in a file, trained where they are missing."""

    def __init__(self, path: Path = LONG_RUNS) -> None:
        super().__init__(LongRun, path)

    def get(
        self, train: Callable[[], LongRun], task: Task, way: str, lr: float, share: float, seed: int
    ) -> LongRun:
        """Return the row, trained if it is not in the file."""
        for run in self.read():
            same = (run.task, run.way, run.share, run.seed) == (task.name, way, share, seed)
            if same and math.isclose(run.lr, lr, rel_tol=1e-6):
                return run
        run = train()
        self.append(run)
        print(
            f"{run.task:28} {way:12} {lr:9.3g} {share:4} seed {seed}: {run.final:.4f}, {run.held:.3g}",
            flush=True,
        )
        return run

    def linear(self, task: Task, lr: float, share: float, seed: int) -> LongRun:
        """Return a run with linear warmup."""
        return self.get(lambda: train_linear(task, lr, share, seed), task, LINEAR, lr, share, seed)

    def edge(self, task: Task, ceiling: float, seed: int) -> LongRun:
        """Return a run with EdgeWarmup."""
        return self.get(lambda: train_edge(task, ceiling, seed), task, EDGE, ceiling, 0.0, seed)


def best_rate(task: Task, runs: Sequence[LongRun]) -> float:
    """Return the octave that was best in the search; the grid is built around it."""
    searched = [
        run
        for run in runs
        if (run.task, run.way, run.share, run.seed) == (task.name, LINEAR, _SEARCHED_WITH, seeds(task)[0])
    ]
    return min(searched, key=lambda run: run.final).lr


def search(task: Task, runs: LongRuns) -> None:
    """Train at octaves of the rate, outwards from the middle, until two are clearly worse on both sides."""
    found: dict[int, float] = {}

    def at(exponent: int) -> None:
        found[exponent] = runs.linear(
            task, task.middle_rate * 2.0**exponent, _SEARCHED_WITH, seeds(task)[0]
        ).final

    at(0)
    for side in (1, -1):
        exponent = 0
        while abs(exponent) < _FARTHEST and not _two_are_worse(found, exponent, side):
            exponent += side
            at(exponent)


def _two_are_worse(found: dict[int, float], exponent: int, side: int) -> bool:
    best = min(found, key=lambda other: found[other])
    last_two = (exponent, exponent - side)
    return all(
        side * (each - best) > 0 and not found[each] <= _WORSE * found[best]
        for each in last_two
        if each in found
    )


def grid(tasks: Sequence[Task], runs: Sequence[LongRun]) -> Iterator[tuple[Task, float, float, int]]:
    """Yield the tasks, rates, lengths and seeds of the grid."""
    for task in tasks:
        best = best_rate(task, runs)
        for seed, multiple, share in itertools.product(seeds(task), MULTIPLES, LENGTHS):
            yield task, multiple * best, share, seed


def plane(tasks: Sequence[Task], runs: Sequence[LongRun]) -> Iterator[tuple[Task, float, float, int]]:
    """Yield the tasks, rates, lengths and seeds of the picture."""
    for task in tasks:
        if task.name in PICTURED:
            for multiple, share in itertools.product(PLANE, LENGTHS):
                yield task, multiple * best_rate(task, runs), share, seeds(task)[0]


def ceilings(tasks: Sequence[Task], runs: Sequence[LongRun]) -> Iterator[tuple[Task, float, int]]:
    """Yield the tasks, ceilings and seeds of EdgeWarmup."""
    for task in tasks:
        best = best_rate(task, runs)
        multiples = {*CEILINGS, *PLANE} if task.name in PICTURED else CEILINGS
        for seed, multiple in itertools.product(seeds(task), sorted(multiples)):
            yield task, multiple * best, seed


def arguments(description: str | None, *words: str) -> argparse.Namespace:
    """Parse what is trained, of which tasks, and which part of it: (i, n), the i-th of n, counted from 0."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if words:
        parser.add_argument("what", choices=words)
    parser.add_argument("--task", help="train this one only")
    parser.add_argument("--file", type=Path, default=LONG_RUNS, help="of the stored runs")
    add_part(parser)
    add_halves(parser)
    return parser.parse_args()


def chosen_tasks(given: argparse.Namespace) -> list[Task]:
    """Return the tasks that the arguments name."""
    return [t for t in TASKS if given.held_out in (None, t.held_out) and given.task in (None, t.name)]


def main() -> None:
    """Train what is missing."""
    given = arguments(__doc__, "search", "grid", "edge", "plane")
    torch.set_num_threads(1)
    tasks, runs, (part, parts) = chosen_tasks(given), LongRuns(given.file), given.part
    if given.what == "search":
        for task in tasks[part::parts]:
            search(task, runs)
        return
    cells = {"grid": grid, "plane": plane, "edge": ceilings}[given.what](tasks, runs.read())
    for cell in itertools.islice(cells, part, None, parts):
        (runs.edge if given.what == "edge" else runs.linear)(*cell)


if __name__ == "__main__":
    main()
