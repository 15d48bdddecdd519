"""Figure 4 at the paper's size as one batch on a GPU: both diagrams, and one cell alone beside them.

    PYTHONPATH=src python benchmarks/gpu_fig4.py              # on a CUDA device
    PYTHONPATH=src python benchmarks/gpu_fig4.py --size tiny  # anywhere, to see that it runs

LM-4-128 on bytes of Python's own source text, context 64, B = 64, 10,000 steps, 24 rates × 4 warmups for Adam and for
GI-Adam. Needs torch and NumPy only. Prints a Markdown table and, with --out, writes the losses of the cells as JSON.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.engines.batched_training import train_together
from edgewise.lab.training import RunResult

WARM_UP_STEPS = 20  # of one cell, before it is timed


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    depth: int
    width: int
    context: int
    batch: int
    steps: int
    rates: int
    lengths: tuple[int, ...]
    alone_steps: int
    cells_at_once: int


SIZES = {
    "paper": Size(4, 128, 64, 64, 10_000, 24, (1, 100, 1000, 5000), 200, 96),
    "tiny": Size(1, 32, 8, 4, 20, 2, (1, 5), 10, 2),
}


def cells(size: Size, optimizer: str) -> list[RunConfig]:
    """Return the cells of one diagram."""
    return [
        RunConfig(
            data=DataConfig(name="stdlib-text", context=size.context),
            model=ModelConfig(name="lm", depth=size.depth, width=size.width, parameterization="sp"),
            optimizer=OptimizerConfig(name=optimizer, lr=1e-4 * 2 ** (k / 2)),
            warmup=WarmupConfig(steps=steps, decay="cosine"),
            num_steps=size.steps,
            batch_size=size.batch,
        )
        for steps in size.lengths
        for k in range(size.rates)
    ]


def diagram(size: Size, optimizer: str) -> tuple[float, list[tuple[RunConfig, RunResult]]]:
    """Return the seconds that a diagram takes, and its cells."""
    started = time.perf_counter()
    configs, done = cells(size, optimizer), []
    for i in range(0, len(configs), size.cells_at_once):
        chunk = configs[i : i + size.cells_at_once]
        done += zip(chunk, train_together(chunk), strict=True)
    return time.perf_counter() - started, done


def one_cell_seconds(size: Size) -> float:
    """Return the seconds of a whole run of one cell trained alone, from its first steps."""
    train_together(
        [replace(cells(size, "adam")[0], num_steps=WARM_UP_STEPS)]
    )  # reads the data, warms the device up
    times = []
    for steps in (WARM_UP_STEPS, WARM_UP_STEPS + size.alone_steps):
        config = replace(cells(size, "adam")[0], num_steps=steps)
        started = time.perf_counter()
        train_together([config])
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / size.alone_steps * size.steps


def main() -> None:
    """Train both diagrams and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="paper")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    size = SIZES[chosen.size]
    alone = one_cell_seconds(size)
    print("| what | measured |\n| --- | --- |")
    print(
        f"| one cell alone, {size.steps:,} steps | {alone:.0f} s, {3600 / alone:.1f} cells an hour |",
        flush=True,
    )
    losses = {}
    total = 0.0
    for optimizer in ("adam", "gi-adam"):
        seconds, done = diagram(size, optimizer)
        total += seconds
        rate = 3600 * len(done) / seconds
        print(f"| {optimizer}: {len(done)} cells | {seconds:.0f} s, {rate:.0f} cells an hour |", flush=True)
        losses |= {
            f"{c.optimizer.name} {c.optimizer.lr:g} {c.warmup.steps}": r.outcome["test_loss"] for c, r in done
        }
    print(f"| both diagrams | {total / 60:.1f} minutes |")
    if torch.cuda.is_available():
        print(f"| peak memory | {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB |")
    if chosen.out:
        chosen.out.write_text(json.dumps(losses, indent=1))


if __name__ == "__main__":
    main()
