"""What a GPU does: the cost of following the edge of a GPT, figure 4 as one batch, and EdgeWarmup on the GPT.

    PYTHONPATH=src python benchmarks/gpu.py              # the GPT of 124 million parameters, on a CUDA device
    PYTHONPATH=src python benchmarks/gpu.py fig4         # both diagrams at the paper's size, and one cell alone
    PYTHONPATH=src python benchmarks/gpu.py edge --tokens train.bin  # EdgeWarmup beside linear warmups, 39 trainings
    PYTHONPATH=src python benchmarks/gpu.py fig4 --tiny  # anywhere, to see that it runs

Needs torch and NumPy only, and pyarrow for figure 4. The GPT's tokens are random, but for `edge`: a flat file of
uint16 or, without one, bytes of Python's own source text, few for this size. Its runs are rows of --out, so that an
interrupted comparison goes on. Figure 4 is LM-4-128 on those bytes, context 64, B = 64, 10,000 steps, 24 rates × 4
warmups for Adam and for GI-Adam; --out writes the losses of its cells.
Prints a Markdown table.
"""

# ruff: noqa: PLC0415 - the laboratory's engines bring pyarrow, which figure 4 alone has need of

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpu_edge import FULL, TINY, Setup, compare
from gpu_network import GPT, TINY_GPT, GPTSize, gpt, loss_fn
from torch import Tensor, nn

import edgewise as ew
from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.training import RunResult

Row = tuple[str, str]
REPEATS = 5
TRACKED_STEPS = 20
WARMUP_STEPS = 20  # before anything is timed; and P then rests on more than one gradient


@dataclass(frozen=True)
class DiagramSize:
    """How much of figure 4 is trained."""

    depth: int
    width: int
    context: int
    batch: int
    steps: int
    rates: int
    lengths: tuple[int, ...]
    alone_steps: int
    cells_at_once: int


DIAGRAM = DiagramSize(4, 128, 64, 64, 10_000, 24, (1, 100, 1000, 5000), 200, 96)
TINY_DIAGRAM = DiagramSize(1, 32, 8, 4, 20, 2, (1, 5), 10, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=("gpt", "fig4", "edge"), default="gpt")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--out", type=Path, help="JSON file for the losses of figure 4, csv file for the runs of edge"
    )
    for_edge = parser.add_argument_group("edge")
    for_edge.add_argument("--updates", type=int)
    for_edge.add_argument("--seeds", type=int, help="how many, from 0")
    for_edge.add_argument("--batch", type=int, help="sequences an update")
    for_edge.add_argument("--micro-batches", type=int, default=1)
    for_edge.add_argument(
        "--rate", type=float, help="the usual one; EdgeWarmup has 16 times as much for a ceiling"
    )
    for_edge.add_argument(
        "--tokens", type=Path, help="flat uint16 file, as nanoGPT's; its last twentieth is held out"
    )
    chosen = parser.parse_args()
    if chosen.what == "edge":
        compare(_setup(chosen), chosen.out or Path("gpu_edge.csv"))
        return
    if chosen.what == "gpt":
        follow_gpt(TINY_GPT if chosen.tiny else GPT)
        return
    losses = train_fig4(TINY_DIAGRAM if chosen.tiny else DIAGRAM)
    if chosen.out:
        chosen.out.write_text(json.dumps(losses, indent=1))


def _setup(chosen: argparse.Namespace) -> Setup:
    setup = TINY if chosen.tiny else FULL
    batch = chosen.batch or setup.size.batch
    if batch % chosen.micro_batches:
        raise SystemExit(f"--micro-batches {chosen.micro_batches} does not divide a batch of {batch}.")
    return replace(
        setup,
        size=replace(setup.size, batch=batch),
        num_updates=chosen.updates or setup.num_updates,
        num_seeds=chosen.seeds or setup.num_seeds,
        usual_rate=chosen.rate or setup.usual_rate,
        micro_batches=chosen.micro_batches,
        tokens=chosen.tokens,
    )


def follow_gpt(size: GPTSize) -> None:
    """Time products, and follow the preconditioned sharpness at every step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = gpt(size).to(device)
    batch = torch.randint(size.vocabulary, (size.batch, size.context + 1), device=device)
    optimizer = ew.GIAdamW(model.parameters(), lr=3e-4, fused=True)
    for _ in range(WARMUP_STEPS):
        _train_step(model, optimizer, batch)

    num = sum(p.numel() for p in model.parameters())
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{num:,} parameters, {size.batch} × {size.context} tokens, {name}, torch {torch.__version__}\n")
    _print_header()
    step = _seconds(lambda: _train_step(model, optimizer, batch))
    _print("training step (bfloat16 autocast, fused GI-AdamW)", f"{1e3 * step:.1f} ms")
    for row in _products(model, batch, step):
        _print(*row)
    for row in _tracked(model, optimizer, batch, step):
        _print(*row)


def _train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    optimizer.zero_grad()
    with torch.autocast(batch.device.type, dtype=torch.bfloat16):
        loss = loss_fn(model, batch)
    loss.backward()
    optimizer.step()


def _products(model: nn.Module, batch: Tensor, step: float) -> list[Row]:
    """Time a product by each route; measurements are in float32 whatever training does."""
    rows = []
    for route in ("reverse", "forward", "difference"):
        _reset_peak()
        try:
            with ew.hessian(model, loss_fn, [batch], hvp=route) as operator:
                vector = torch.randn(operator.size, device=operator.device)
                operator.matvec(vector)
                seconds = _seconds(lambda: operator.matvec(vector))  # noqa: B023
        except ew.SecondDerivativeError as error:
            rows.append((f"product, {route}", f"none: {error}"))
            continue
        memory = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if batch.is_cuda else ""
        rows.append((f"product, {route}", f"{1 / seconds:.2f} a second, {seconds / step:.2f} steps{memory}"))
    return rows


def _tracked(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor, step: float) -> list[Row]:
    """Follow the preconditioned sharpness at every step of a training."""
    start: ew.SharpnessResult | None = None
    products, seconds = [], []
    for _ in range(TRACKED_STEPS + 1):
        started = _now()
        start = ew.preconditioned_sharpness(model, loss_fn, [batch], optimizer, rtol=1e-2, start=start)
        seconds.append(_now() - started)
        products.append(start.num_hvps)
        _train_step(model, optimizer, batch)
    warm = statistics.median(seconds[1:])
    return [
        (
            "preconditioned sharpness, cold, rtol 1e-2",
            f"{products[0]} products, {seconds[0] / step:.1f} steps",
        ),
        (
            "preconditioned sharpness, followed every step, rtol 1e-2",
            f"{statistics.median(products[1:]):.0f} products (median), {statistics.mean(products[1:]):.1f} (mean), "
            f"{warm / step:.1f} steps; every 100 steps: {warm / step / 100:.1%} of the run's time",
        ),
    ]


def train_fig4(size: DiagramSize) -> dict[str, float]:
    """Train both diagrams, and return the test loss of each cell."""
    alone = _one_cell_seconds(size)
    _print_header()
    _print(f"one cell alone, {size.steps:,} steps", f"{alone:.0f} s, {3600 / alone:.1f} cells an hour")
    losses = {}
    total = 0.0
    for optimizer in ("adam", "gi-adam"):
        seconds, done = _diagram(size, optimizer)
        total += seconds
        _print(
            f"{optimizer}: {len(done)} cells",
            f"{seconds:.0f} s, {3600 * len(done) / seconds:.0f} cells an hour",
        )
        losses |= {
            f"{c.optimizer.name} {c.optimizer.lr:g} {c.warmup.steps}": r.outcome["test_loss"] for c, r in done
        }
    _print("both diagrams", f"{total / 60:.1f} minutes")
    if torch.cuda.is_available():
        _print("peak memory", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return losses


def _cells(size: DiagramSize, optimizer: str) -> list[RunConfig]:
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


def _diagram(size: DiagramSize, optimizer: str) -> tuple[float, list[tuple[RunConfig, RunResult]]]:
    """Return the seconds that a diagram takes, and its cells."""
    from edgewise.lab.engines.batched_training import train_together

    started = time.perf_counter()
    configs, done = _cells(size, optimizer), []
    for i in range(0, len(configs), size.cells_at_once):
        chunk = configs[i : i + size.cells_at_once]
        done += zip(chunk, train_together(chunk), strict=True)
    return time.perf_counter() - started, done


def _one_cell_seconds(size: DiagramSize) -> float:
    """Return the seconds of a whole run of one cell trained alone, from its first steps."""
    from edgewise.lab.engines.batched_training import train_together

    train_together(
        [replace(_cells(size, "adam")[0], num_steps=WARMUP_STEPS)]
    )  # reads the data, warms the device up
    times = []
    for steps in (WARMUP_STEPS, WARMUP_STEPS + size.alone_steps):
        config = replace(_cells(size, "adam")[0], num_steps=steps)
        started = time.perf_counter()
        train_together([config])
        times.append(time.perf_counter() - started)
    return (times[1] - times[0]) / size.alone_steps * size.steps


def _seconds(call: Callable[[], object]) -> float:
    """Return the median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(REPEATS):
        started = _now()
        call()
        times.append(_now() - started)
    return statistics.median(times)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _print_header() -> None:
    print("| what | measured |\n|---|---|")


def _print(what: str, measured: str) -> None:
    print(f"| {what} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
