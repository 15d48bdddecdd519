"""A GIAdamW step over a torch AdamW step.

Rounds of short bursts, the optimizers taking turns in a rotating order; medians of the rounds' ratios, so that
what slows a whole round down does not count. A second AdamW beside the first tells what is noise.
"""

import statistics
import time
from collections.abc import Callable

import torch

import edgewise as ew

Row = tuple[str, str, str]
ROUNDS = 81
SIZES = (  # parameters, tensors, rounds, steps in a burst
    (1_000, 10, ROUNDS, 100),
    (100_000, 10, ROUNDS, 40),
    (1_000_000, 1_000, ROUNDS, 3),
    (10_000_000, 10, ROUNDS, 1),
    (100_000_000, 10, 25, 1),
)


def rows() -> list[Row]:
    """Return a row for each kernel and size; as many again with `per_entry`."""
    torch.set_num_threads(1)
    found = []
    for kernel in ("foreach", "fused"):
        for num, tensors, rounds, burst in SIZES:
            seconds, (ours, per_entry, again) = ratios(kernel, num, tensors, rounds, burst)
            what = f"{kernel}, {num:,} parameters in {tensors:,} tensors, {1e6 * seconds:,.0f} µs"
            value = f"{ours:.3f} (a second AdamW {again:.3f})"
            found.append((f"GIAdamW step ÷ AdamW step, {what}", "ratio", value))
            found.append((f"the same with per_entry=True, {what}", "ratio", f"{per_entry:.2f}"))
    return found


def ratios(kernel: str, num: int, tensors: int, rounds: int, burst: int) -> tuple[float, list[float]]:
    """Return AdamW's seconds a step, and over it GIAdamW's, those with `per_entry`, and a second AdamW's."""
    parameters = [torch.nn.Parameter(torch.randn(num // tensors)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    options = {kernel: True, "lr": 1e-6}
    steps = [
        torch.optim.AdamW(parameters, **options).step,
        ew.GIAdamW(parameters, **options).step,
        ew.GIAdamW(parameters, per_entry=True, **options).step,
        torch.optim.AdamW(parameters, **options).step,
    ]
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    for i in range(rounds):
        for j in range(len(steps)):
            index = (i + j) % len(steps)
            times[index].append(seconds_of(steps[index], burst))
    base, *others = times
    medians = [statistics.median(a / b for a, b in zip(other, base, strict=True)) for other in others]
    return statistics.median(base) / burst, medians


def seconds_of(step: Callable[[], object], burst: int) -> float:
    start = time.perf_counter()
    for _ in range(burst):
        step()
    return time.perf_counter() - start


if __name__ == "__main__":
    for row in rows():
        print("| " + " | ".join(row) + " |")
