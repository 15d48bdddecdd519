"""What warmups come to: linear, from the critical rate, and catapults without a length, on the digits and the LM.

Run alone, `python benchmarks/warmups.py`, it prints the table; the warmups' defaults were chosen on seeds 10 and 11.
"""

import statistics
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

import edgewise as ew
from edgewise.lab.configs import OptimizerConfig, RunConfig
from edgewise.lab.recipes import recipe
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.training import train

SEEDS = range(5)
LONGEST = 200
LENGTHS = (64, LONGEST)
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run's end and its warmup's report."""

    trained: bool
    final_loss: float  # of the digits: training loss, mean over the last tenth; of the LM: test loss
    report: ew.WarmupReport


def digits(seed: int) -> Iterator[RunConfig]:
    """SP FCN-4-256 on the digits, MSE, gradient descent with and without momentum: η = 4 … 32 over the sharpness."""
    base = next(c for c in recipe("fig1").configs("demo") if c.model.parameterization == "sp")
    for momentum in (0.0, 0.9):
        for rate in (4.0, 8.0, 16.0, 32.0):
            optimizer = replace(base.optimizer, lr=rate, momentum=momentum)
            yield replace(base, optimizer=optimizer, measure=(), seed=seed)


def language_model(seed: int) -> Iterator[RunConfig]:
    """Figure 4's LM-2-64 on bytes, batches of 16, cosine decay, with Adam and GI-Adam."""
    base = recipe("fig4").configs("demo")[0]
    for name in ("adam", "gi-adam"):
        for rate in (0.001, 0.004, 0.016, 0.064, 0.256):
            yield replace(base, optimizer=OptimizerConfig(name=name, lr=rate), seed=seed)


def run(config: RunConfig) -> Result:
    """Train as configured."""
    torch.set_num_threads(1)
    done = train(config)
    last = [row["train_loss"] for row in done.rows[-config.num_steps // 10 :]]
    return Result(
        trained=cell_of(done.outcome) is Cell.TRAINED,
        final_loss=statistics.fmean(last) if config.model.name == "fcn" else done.outcome["test_loss"],
        report=ew.WarmupReport(**done.outcome["warmup"]),
    )


def compared(config: RunConfig) -> dict[str, RunConfig]:
    """Return the warmups that are compared, by name."""
    changes: dict[str, dict[str, Any]] = {"catapults": {"kind": "catapult"}}
    for length in LENGTHS:
        changes[f"linear {length}"] = {"steps": length}
        changes[f"critical {length}"] = {"steps": length, "lr_init": "critical"}
    return {
        name: replace(config, warmup=replace(config.warmup, **change)) for name, change in changes.items()
    }


def rows() -> list[Row]:
    """Return a row for each optimizer and target rate, over all seeds."""
    cells: dict[str, list[dict[str, Future[Result]]]] = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for seed in SEEDS:
            for config in (*digits(seed), *language_model(seed)):
                futures = {name: pool.submit(run, each) for name, each in compared(config).items()}
                cells.setdefault(_name(config), []).append(futures)
        return [
            _row(name, [{key: future.result() for key, future in seed.items()} for seed in seeds])
            for name, seeds in cells.items()
        ]


COLUMNS = (
    "training",
    "trained: linear 64, 200, catapults",
    "final loss: linear 64, 200, catapults",
    "critical start ÷ linear 64 and 200: final loss, worst seed",
    "critical start: updates to the target of 64, 200; T_save",
    "catapults: updates to the target, rises, taken back, overhead, fallbacks",
)


def _name(config: RunConfig) -> str:
    task = "digits" if config.model.name == "fcn" else "LM"
    optimizer = {"sgd": "SGD", "adam": "Adam", "gi-adam": "GI-Adam"}[config.optimizer.name]
    unit = "/λ₀" if config.optimizer.lr_unit == "1/sharpness" else ""
    return (
        f"{task}, {optimizer}{'-M' if config.optimizer.momentum else ''}, η = {config.optimizer.lr:g}{unit}"
    )


def _row(name: str, seeds: list[dict[str, Result]]) -> Row:
    compared = [f"linear {length}" for length in LENGTHS] + ["catapults"]
    trained = [sum(seed[key].trained for seed in seeds) for key in compared]
    losses = [statistics.median(seed[key].final_loss for seed in seeds) for key in compared]
    ratios = [
        max(seed[f"critical {length}"].final_loss / seed[f"linear {length}"].final_loss for seed in seeds)
        for length in LENGTHS
    ]
    starts = [[seed[f"critical {length}"].report for seed in seeds] for length in LENGTHS]
    reach = [statistics.median(report.steps_to_target for report in reports) for reports in starts]
    saved = [statistics.median(report.steps_saved or 0.0 for report in reports) for reports in starts]
    caught = [seed["catapults"].report for seed in seeds]
    reached = [report.steps_to_target for report in caught if report.steps_to_target is not None]
    return (
        name,
        ", ".join(f"{count}/{len(seeds)}" for count in trained),
        ", ".join(f"{loss:.4g}" for loss in losses),
        ", ".join(f"{ratio:.3f}" for ratio in ratios),
        f"{', '.join(f'{updates:g}' for updates in reach)}; {', '.join(f'{updates:.1f}' for updates in saved)}",
        f"{statistics.median(reached):g}, "
        f"{statistics.median(report.num_catapults for report in caught):g}, "
        f"{statistics.median(report.num_step_backs for report in caught):g}, "
        f"{statistics.median(report.overhead for report in caught):.1%}, "
        f"{sum(report.fallback is not None for report in caught)}",
    )


if __name__ == "__main__":
    for line in (COLUMNS, ["---"] * len(COLUMNS), *rows()):
        print("| " + " | ".join(line) + " |", flush=True)
