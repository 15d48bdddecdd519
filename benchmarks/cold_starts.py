"""Cold starts of `ew.sharpness`, hundreds of seeds: how often one is far below the top, and what it costs.

With parts of the samples and without them, from the same seeds. The top is the largest value that any start at rtol
1e-4 finds. `python benchmarks/cold_starts.py 500` takes as many seeds a task.
"""

import statistics
import sys
from collections.abc import Iterator
from unittest import mock

import torch
from tasks import Task, conv_task, digits_task, trained

import edgewise as ew
from edgewise.curvature import coarse

Row = tuple[str, str, str]
RTOL = 1e-2
NUM_SEEDS = 100
FAR = 0.05  # relative: what counts as far below


def rows(num_seeds: int = NUM_SEEDS) -> Iterator[Row]:
    """Yield for each task what its cold starts miss and cost, with parts of the samples and without."""
    for task in (digits_task(), trained(digits_task()), conv_task()):
        top = max(_measure(task, seed, rtol=1e-4).value for seed in range(3))
        for name, shares in (("by parts first", coarse._SHARES), ("the whole alone", ())):
            with mock.patch.object(coarse, "_SHARES", shares):
                results = [_measure(task, seed, rtol=RTOL) for seed in range(num_seeds)]
            errors = [1 - result.value / top for result in results]
            yield (
                task.name,
                f"{name}, {num_seeds} seeds, rtol={RTOL:g}",
                f"more than {FAR:.0%} low: {sum(error > FAR for error in errors)}; "
                f"largest error {max(errors):.1e}, median {statistics.median(errors):.1e}; "
                f"products {statistics.mean(result.num_hvps for result in results):.2f}, "
                f"with those of parts by their share {statistics.mean(result.cost for result in results):.2f}",
            )


def _measure(task: Task, seed: int, *, rtol: float) -> ew.SharpnessResult:
    return ew.sharpness(task.model, task.loss_fn, [task.batch], rtol=rtol, seed=seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_SEEDS):
        print(f"| {' | '.join(row)} |", flush=True)
