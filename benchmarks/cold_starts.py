"""Cold starts of `ew.sharpness`, hundreds of seeds: how often one is far below the top, and what it costs.

With parts of the samples and without them, from the same seeds. The top is the largest value that any start at rtol
1e-4 finds. `python benchmarks/cold_starts.py 500` takes as many seeds a task. Of small networks, which have no parts,
the whole spectrum is known: what a random start finds depends on the eigenvalues alone.
"""

import statistics
import sys
from collections.abc import Iterator
from unittest import mock

import torch
from differences import FAMILIES, Case
from tasks import Task, conv_task, digits_task, trained
from torch import Tensor

import edgewise as ew
from edgewise.curvature import coarse
from edgewise.curvature.lanczos import random_directions, top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator

Row = tuple[str, str, str]
RTOL = 1e-2
NUM_SEEDS = 100
FAR = 0.05  # relative: what counts as far below
NUM_NETWORKS, NUM_STARTS = 240, 20
MOST_PARAMETERS = 1000


def rows(num_seeds: int = NUM_SEEDS) -> Iterator[Row]:
    """Yield for each task what its cold starts miss and cost, with parts of the samples and without."""
    yield from small_networks()
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


def small_networks() -> Iterator[Row]:
    """Yield what starts from one or two random vectors miss and cost, by the residual alone and by the chance, too."""
    spectra = list(_spectra())
    ways = [("one vector", 1, 1.0), ("two vectors", 2, 1.0)]
    ways += [(f"one vector, chance at most 1/{of}", 1, 1 / of) for of in (20, 40, 80)]
    for rtol in (1e-2, 1e-3):
        for name, num_vectors, chance in ways:
            found = [
                _start(spectrum, num_vectors, chance, rtol, NUM_STARTS * number + start)
                for number, spectrum in enumerate(spectra)
                for start in range(NUM_STARTS)
            ]
            far = sum(error > FAR for error, _ in found)
            yield (
                f"{len(spectra)} small networks of benchmarks/differences.py",
                f"{name}, {NUM_STARTS} starts each, rtol={rtol:g}",
                f"more than {FAR:.0%} low: {far} of {len(found)}, {2000 * far / len(found):.1f} of 2,000; "
                f"products {statistics.mean(products for _, products in found):.2f}",
            )


class _Diagonal(SymmetricOperator):
    def __init__(self, values: Tensor) -> None:
        self.values, self.size, self.dtype, self.device = values, len(values), values.dtype, values.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Return diag(values) · vector."""
        return self.values * vector


def _start(spectrum: Tensor, num_vectors: int, chance: float, rtol: float, seed: int) -> tuple[float, int]:
    """Return by how much the value is too low, relative, and the products."""
    operator, generator = _Diagonal(spectrum), torch.Generator().manual_seed(seed)
    start = random_directions(operator, num_vectors, generator)
    found = top_eigenpairs(
        operator,
        num=1,
        rtol=rtol,
        max_products=200,
        start=start,
        generator=generator,
        extra=0,
        most_chance=chance,
    )
    return 1 - found.value / float(spectrum.max()), found.num_products


def _spectra() -> Iterator[Tensor]:
    """Yield the eigenvalues of the first networks that have no parts, those of each family in turn."""
    families = [family for family in FAMILIES.values() if not family.sharded]
    for number in range(NUM_NETWORKS):
        case = families[number % len(families)].case(number // len(families))
        if sum(parameter.numel() for parameter in case.model.parameters()) >= MOST_PARAMETERS:
            continue
        values = torch.linalg.eigvalsh(_dense(case))
        if values[-1] > 0:
            yield values


def _dense(case: Case) -> Tensor:
    optimizer = None if case.adam is None else torch.optim.Adam(case.model.parameters(), eps=case.adam)
    with ew.hessian(
        case.model, case.loss_fn, [case.batch], optimizer=optimizer, dtype=torch.float64
    ) as operator:
        dense = torch.stack([operator.matvec(unit) for unit in torch.eye(operator.size, dtype=torch.float64)])
    return (dense + dense.T) / 2


def _measure(task: Task, seed: int, *, rtol: float) -> ew.SharpnessResult:
    return ew.sharpness(task.model, task.loss_fn, [task.batch], rtol=rtol, seed=seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_SEEDS):
        print(f"| {' | '.join(row)} |", flush=True)
