"""How often following the top of a matrix stays with an eigenvalue that another has overtaken.

    python benchmarks/crossings.py [NUM_PATHS]

Each path of 20 steps is drawn anew: one eigenvalue stays or falls, another rises beyond it, and below them is a bulk.
In coupled paths a random symmetric matrix turns into another meanwhile, so that the two eigenvectors turn into one
another. In isolated ones the eigenvectors turn slowly, all together, and the eigenvalues move alone. Each step starts
from the one before.
"""

import statistics
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from edgewise.curvature.operators import Evidence, SymmetricOperator
from edgewise.curvature.results import SharpnessResult
from edgewise.curvature.solve import top_of_spectrum

Row = tuple[str, str, str]
NUM_PATHS, NUM_STEPS, SIZE = 200, 20, 40
RTOL = 1e-2
FAR = 0.05  # relative: what counts as the lower one


class Matrix(SymmetricOperator):
    """A dense symmetric matrix that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.num = matrix, 0
        self.size, self.dtype, self.device = len(matrix), matrix.dtype, matrix.device

    @property
    def evidence(self) -> Evidence:
        """How many products there were."""
        return Evidence(num_products=self.num)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A · vector."""
        self.num += 1
        return self.matrix @ vector


def coupled(seed: int) -> Iterator[Tensor]:
    """Yield the matrices of a path on which two eigenvectors turn into one another."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (0.3 * _symmetric(generator) for _ in range(2))
    one, other = torch.linalg.qr(_normal(SIZE, 2, generator)).Q.T
    fall, low, high = _between(generator, (0, 0.6), (0.2, 0.9), (1.0, 1.6))
    for time in torch.linspace(0, 1, NUM_STEPS + 1, dtype=torch.float64):
        matrix = first + time * (second - first) + (1 - time * fall) * one.outer(one)
        yield matrix + (low + time * (high - low)) * other.outer(other)


def isolated(seed: int) -> Iterator[Tensor]:
    """Yield the matrices of a path on which eigenvalues move alone, and the eigenvectors turn all together."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.rand(SIZE - 2, generator=generator, dtype=torch.float64) - 0.5
    turn, low, high = _between(generator, (0, 0.1), (0.2, 0.9), (1.1, 1.6))
    skew = _normal(SIZE, SIZE, generator)
    rotation = torch.matrix_exp(turn * (skew - skew.T) / SIZE**0.5)
    vectors = torch.linalg.qr(_normal(SIZE, SIZE, generator)).Q
    for time in torch.linspace(0, 1, NUM_STEPS + 1).tolist():
        values = torch.cat([torch.tensor([1.0, low + time * (high - low)], dtype=torch.float64), bulk])
        yield (vectors * values) @ vectors.T
        vectors = rotation @ vectors


def follow(path: Iterator[Tensor], seed: int) -> tuple[list[float], list[int]]:
    """Return by how much each step's value is too low, relative, and its products, but those of the first."""
    result: SharpnessResult | None = None
    errors, products = [], []
    for matrix in path:
        result = top_of_spectrum(Matrix(matrix), {"w": matrix[0]}, RTOL, 1, result, 200, seed)
        errors.append(1 - result.value / float(torch.linalg.eigvalsh(matrix)[-1]))
        products.append(result.num_hvps)
    return errors[1:], products[1:]


def rows(num_paths: int = NUM_PATHS) -> Iterator[Row]:
    """Yield for each kind of path how often the lower eigenvalue is reported."""
    kinds: tuple[Callable[[int], Iterator[Tensor]], ...] = (coupled, isolated)
    for kind in kinds:
        runs = [follow(kind(seed), seed) for seed in range(num_paths)]
        low = [sum(error > FAR for error in errors) for errors, _ in runs]
        products = [each for _, products in runs for each in products]
        yield (
            f"two eigenvalues cross, {kind.__name__}",
            f"{num_paths} paths of {NUM_STEPS} steps, rtol={RTOL:g}",
            f"more than {FAR:.0%} low at some step: {sum(each > 0 for each in low)} paths; steps: {sum(low)}; "
            f"products a step {statistics.mean(products):.2f}",
        )


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _symmetric(generator: torch.Generator) -> Tensor:
    """Return a symmetric matrix whose eigenvalues lie between about −2 and 2."""
    matrix = _normal(SIZE, SIZE, generator)
    return (matrix + matrix.T) / (2 * SIZE) ** 0.5


def _between(generator: torch.Generator, *bounds: tuple[float, float]) -> list[float]:
    drawn = torch.rand(len(bounds), generator=generator).tolist()
    return [low + (high - low) * each for (low, high), each in zip(bounds, drawn, strict=True)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows(int(sys.argv[1]) if len(sys.argv) > 1 else NUM_PATHS):
        print(f"| {' | '.join(row)} |", flush=True)
