"""What the laboratory costs: engines beside a plain loop, records, and results folders of many runs.

Each ratio is of two things timed in turn in one call, the median of `REPEATS`. Engines start their processes in the
time that is measured.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgewise.lab import data, models, report, sweep, terminal
from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import recipe
from edgewise.lab.report import presentation
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from edgewise.lab.training import batch_indices, loss_function, make_optimizer, make_schedule, train

Row = tuple[str, str, str]
REPEATS = 3
CELLS = 32
STORED_RUNS = 10_000
RECIPE = """
from edgewise.lab.configs import *

def configs():
    return [
        RunConfig(data=DataConfig(name="digits"),
                  model=ModelConfig(name="fcn", depth=4, width=32, parameterization="sp"),
                  optimizer=OptimizerConfig(name="sgd", lr=0.001 * 1.05**k),
                  warmup=WarmupConfig(steps=steps), num_steps=400, batch_size=32, seed=seed)
        for k in range(100) for steps in range(1, 51) for seed in (0, 1)
    ]
"""


def rows() -> Iterator[Row]:
    """Return the costs, one after the other."""
    fcn, lm = fcn_cells(), lm_cells()
    yield from speedups("32 cells of FCN-4-32, 2,000 steps", fcn, REPEATS)
    yield from speedups("32 cells of the demo's LM-2-64, once", lm, 1)
    yield "the demo's LM run: with a row a step ÷ without", "ratio", recording_cost(lm[0])
    yield "fig1 in SP after warmup, sharpness every step ÷ training alone", "ratio", tracking_cost()
    with tempfile.TemporaryDirectory() as folder:
        store, times = stored_runs(Path(folder))
        yield (
            "storing a run of 400 steps, until it is on the disk",
            "ms",
            f"{1e3 * statistics.median(times):.1f}",
        )
        yield (
            f"a folder of {STORED_RUNS:,} runs: status, with every checksum",
            "seconds",
            f"{seconds(lambda: show_status(store.path)):.2f}",
        )
        yield (
            f"a folder of {STORED_RUNS:,} runs: report",
            "seconds",
            f"{seconds(lambda: write_report(store.path)):.1f}",
        )


def fcn_cells() -> list[RunConfig]:
    """Return cells of a phase diagram of a small network, all of which train."""
    return [
        RunConfig(
            data=DataConfig(name="digits"),
            model=ModelConfig(name="fcn", depth=4, width=32, parameterization="sp"),
            optimizer=OptimizerConfig(name="sgd", lr=0.01 * 1.3**k),
            warmup=WarmupConfig(steps=steps, decay="cosine"),
            num_steps=2000,
            batch_size=32,
        )
        for k in range(CELLS // 4)
        for steps in (1, 8, 64, 512)
    ]


def lm_cells() -> list[RunConfig]:
    """Return cells of the demo's phase diagram, all of which train."""
    (first, *_) = recipe("fig4").configs("demo")
    return [
        replace(
            first,
            optimizer=replace(first.optimizer, lr=0.001 * 1.3**k),
            warmup=WarmupConfig(steps=steps, decay="cosine"),
        )
        for k in range(CELLS // 4)
        for steps in (1, 8, 16, 32)
    ]


def speedups(what: str, cells: list[RunConfig], repeats: int) -> Iterator[Row]:
    """Return the time of a plain loop over that of each engine on two cores, and both."""
    times: dict[str, list[float]] = {"plain": [], "local": [], "vectorized": []}
    for _ in range(repeats):
        times["plain"].append(seconds(lambda: [plain_loop(config) for config in cells]))
        for engine in ("local", "vectorized"):
            times[engine].append(seconds(lambda: sweep_with(engine, cells)))  # noqa: B023
    plain = statistics.median(times.pop("plain"))
    for engine, its in times.items():
        ours = statistics.median(its)
        yield (
            f"{what}: plain loop ÷ engine {engine}",
            "ratio",
            f"{plain / ours:.2f} ({plain:.1f} s ÷ {ours:.1f} s)",
        )


def sweep_with(engine: str, cells: list[RunConfig]) -> None:
    """Train the cells into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        planned = {"cells": [(config,) for config in cells]}
        sweep.run(planned, "bench", Path(folder) / "out", engine=engine, workers=2)


def plain_loop(config: RunConfig) -> None:
    """Train as one would by hand: torch alone, on both cores, no rows and no evaluation."""
    torch.set_num_threads(2)
    torch.manual_seed(config.seed)
    dataset = data.load(config.data)
    model = models.build(config.model, dataset)
    loss_fn = loss_function(config.loss)
    optimizer = make_optimizer(config.optimizer, model, config.optimizer.lr)
    _, scheduler = make_schedule(config.warmup, optimizer, config.num_steps)
    for indices in batch_indices(config, dataset):
        optimizer.zero_grad()
        loss_fn(model, dataset.train_batch(indices)).backward()
        optimizer.step()
        scheduler.step()


def recording_cost(config: RunConfig) -> str:
    """Return the time of a recorded run over that of a plain loop, without start and evaluation."""
    config, longer = (replace(config, num_steps=steps) for steps in (60, 400))
    ratios = []
    for _ in range(REPEATS):
        plain = seconds(lambda: plain_loop(longer)) - seconds(lambda: plain_loop(config))
        ours = seconds(lambda: train(longer)) - seconds(lambda: train(config))
        ratios.append(ours / plain)
    return f"{statistics.median(ratios):.3f}"


def tracking_cost() -> str:
    """Return the time of a trajectory with its sharpness at every step over that without."""
    config = next(
        c
        for c in recipe("fig1").configs("embedded")
        if c.warmup.steps > 1 and c.model.parameterization == "sp"
    )
    config = replace(config, num_steps=200)
    train(config)  # λ₀ is measured once a process
    ratios = []
    for _ in range(REPEATS):
        alone = seconds(lambda: train(replace(config, measure=())))
        ratios.append(seconds(lambda: train(config)) / alone)
    return f"{statistics.median(ratios):.1f}"


def stored_runs(folder: Path) -> tuple[Store, list[float]]:
    """Return a results folder of many made-up runs, as `edgewise sweep` would leave it, and the seconds each took."""
    file = folder / "many.py"
    file.write_text(RECIPE)
    its = recipe("many", file)
    configs = its.configs("own")
    assert len(configs) == STORED_RUNS
    figure = FigureRuns(figure=its.id, scale="own", run_ids=tuple(c.run_id for c in configs))
    store = Store.create(folder / "out", [figure], file)
    presentation.write(store, [its], configs)
    random, times = np.random.default_rng(0), []
    for config in configs:
        losses = np.linspace(2.3, 0.1, config.num_steps) + 0.1 * random.random(config.num_steps)
        rows = [
            {"step": step, "lr": config.optimizer.lr, "train_loss": float(loss)}
            for step, loss in enumerate(losses)
        ]
        outcome = {
            "diverged": False,
            "test_loss": 0.2,
            "test_accuracy": 0.9,
            "num_classes": 10,
            "guess_loss": 2.3,
        }
        outcome |= {"seconds": 1.0, "num_steps": config.num_steps}
        times.append(seconds(lambda: store.runs.save(config, rows, outcome)))  # noqa: B023
    presentation.judge(store, [its])
    return store, times


def show_status(path: Path) -> None:
    """Do what `edgewise status` does."""
    terminal.status(Store.open(path), time.time())


def write_report(path: Path) -> None:
    """Do what `edgewise report` does."""
    report.write_report(Store.open(path))


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
