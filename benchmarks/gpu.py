"""Products per second, and the cost of following the edge, for a GPT of 124 million parameters on a GPU.

    PYTHONPATH=src python benchmarks/gpu.py              # on a CUDA device
    PYTHONPATH=src python benchmarks/gpu.py --size tiny  # anywhere, to see that it runs

Needs torch and NumPy only; tokens are random. Prints a Markdown table.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgewise as ew
from edgewise.lab.models.lm import LM

Row = tuple[str, str]
REPEATS = 5
TRACKED_STEPS = 20
WARMUP_STEPS = 20  # of training before following: P then rests on more than one gradient


@dataclass(frozen=True)
class Size:
    """A network and its batch."""

    vocabulary: int
    context: int
    depth: int
    width: int
    batch: int


SIZES = {
    "124M": Size(vocabulary=50304, context=1024, depth=12, width=768, batch=4),
    "tiny": Size(vocabulary=256, context=32, depth=2, width=64, batch=4),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="124M")
    size = SIZES[parser.parse_args().size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = _gpt(size).to(device)
    batch = torch.randint(size.vocabulary, (size.batch, size.context + 1), device=device)
    optimizer = ew.GIAdamW(model.parameters(), lr=3e-4, fused=True)
    for _ in range(WARMUP_STEPS):
        _train_step(model, optimizer, batch)

    num = sum(p.numel() for p in model.parameters())
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{num:,} parameters, {size.batch} × {size.context} tokens, {name}, torch {torch.__version__}\n")
    print("| what | measured |\n|---|---|")
    step = _seconds(lambda: _train_step(model, optimizer, batch))
    _print("training step (bfloat16 autocast, fused GI-AdamW)", f"{1e3 * step:.1f} ms")
    for row in _products(model, batch, step):
        _print(*row)
    for row in _tracked(model, optimizer, batch, step):
        _print(*row)


def _gpt(size: Size) -> LM:
    model = LM(
        vocabulary=size.vocabulary,
        context=size.context,
        depth=size.depth,
        width=size.width,
        parameterization="sp",
    )
    model.head.weight = model.embedding.weight  # as in GPT-2
    nn.init.normal_(model.embedding.weight, std=0.02)
    return model


def loss_fn(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


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


def _print(what: str, measured: str) -> None:
    print(f"| {what} | {measured} |", flush=True)


if __name__ == "__main__":
    main()
