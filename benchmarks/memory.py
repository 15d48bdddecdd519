"""Peak resident memory of one Hessian-vector product by each route, beside that of a plain gradient.

Each measurement runs in a process of its own, as the peak never goes down: Linux's VmHWM, as `getrusage` begins with
the peak of the process that started this one. The unit is one copy of the parameters.
"""

import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import edgewise as ew

Row = tuple[str, str, str]
WIDTH, DEPTH, SAMPLES = 2048, 4, 64
REPEATS = 3
KINDS = {
    "nothing": "the model, and a vector to multiply",
    "gradient": "a plain gradient: loss.backward()",
    "kept": 'hvp="reverse", one batch: the graph of the gradient is kept',
    "recomputed": 'hvp="reverse", two batches: recomputed for each product',
    "forward": 'hvp="forward"',
    "difference": 'hvp="difference"',
}


def rows() -> list[Row]:
    """Return peaks above that of the model and the vector alone, in parameter copies, and the kept graph's bytes."""
    peaks = {
        kind: statistics.median(_peak_of(kind) for _ in range(REPEATS)) - _peak_of("nothing")
        for kind in list(KINDS)[1:]
    }
    model, batch = _task()
    copy_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    what = f"MLP of {copy_bytes // 4:,} parameters, {SAMPLES} samples"
    table = []
    for kind, peak in peaks.items():
        above = (
            "" if kind == "gradient" else f" ({(peak - peaks['gradient']) / copy_bytes:+.1f} to a gradient)"
        )
        table.append((f"{what}: {KINDS[kind]}", "parameter copies", f"{peak / copy_bytes:.1f}{above}"))
    found = ew.sharpness(model, _loss_fn, [batch], max_hvps=1, max_graph_bytes=2**40)
    table.append((f"{what}: the kept graph", "bytes", f"{found.graph_bytes:,}"))
    return table


def _peak_of(kind: str) -> int:
    """Return the peak in bytes of a process that does `kind`."""
    output = subprocess.run(
        [sys.executable, __file__, kind], check=True, capture_output=True, text=True
    ).stdout
    return int(output)


def _do(kind: str) -> None:
    torch.set_num_threads(1)
    model, batch = _task()
    halves = [part.chunk(2) for part in batch]
    batches = [(halves[0][i], halves[1][i]) for i in range(2)] if kind == "recomputed" else [batch]
    vector = torch.randn(sum(p.numel() for p in model.parameters()))  # the caller's own
    if kind == "gradient":
        _loss_fn(model, batch).backward()
    elif kind != "nothing":
        route = kind if kind in ("forward", "difference") else "reverse"
        with ew.hessian(model, _loss_fn, batches, hvp=route) as operator:
            operator.matvec(vector)


def _task() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return nn.Sequential(*layers), (torch.randn(SAMPLES, WIDTH), torch.randn(SAMPLES, WIDTH))


def _loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _do(sys.argv[1])
        print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
    else:
        for row in rows():
            print(f"| {' | '.join(row)} |")
