"""Thick-restart Lanczos with full reorthogonalization, for the most positive eigenvalues.

The method is Rayleigh–Ritz on a growing orthonormal basis V, extended by the residual of the first Ritz pair
that has not converged. From a single start vector that residual is the next Lanczos vector, so this *is* Lanczos
with full reorthogonalization; written this way it also starts from several vectors, the Ritz vectors of an
earlier call, which keeps the top eigenvalue in sight when two eigenvalues cross. AV is stored beside V, so the
residuals are computed, not inferred from a recurrence. (Saad, Numerical Methods for Large Eigenvalue Problems,
2011, ch. 6; Wu & Simon, SIAM J. Matrix Anal. Appl. 22, 2000, for the restart.)
"""

import math

import torch
from torch import Tensor

from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.results import SharpnessResult
from edgewise.errors import Status

_MAX_BASIS = 32  # vectors kept before a restart: bounds memory at about 2 · 32 vectors
_EXTRA_RITZ = 2  # Ritz vectors kept beyond the wanted ones, for restarts and for later calls


def top_eigenpairs(
    operator: SymmetricOperator,
    *,
    num: int,
    rtol: float,
    max_hvps: int,
    start: Tensor,
    generator: torch.Generator,
) -> SharpnessResult:
    """Return the `num` most positive eigenpairs, stopped by ‖Av − θv‖ ≤ rtol·|θ| for each.

    The residual includes 16 ε‖A‖ for rounding; an eigenvalue that is zero to this precision counts as converged.

    Args:
        operator: A.
        num: number of pairs, 1 … operator.size.
        rtol: tolerance on the residual relative to the eigenvalue.
        max_hvps: largest number of products with A, ≥ num.
        start: (k, n), k ≥ 1: where to look first; need not be orthonormal.
        generator: for the directions drawn when the start has fewer than `num`, or is an invariant subspace.

    Returns:
        The pairs, the residual of the first, and `Status.BUDGET_EXHAUSTED` if the products ran out, or
        `Status.NOT_FINITE` with infinite values if one of them was not finite.
    """
    basis = _Basis(operator, generator)
    # One vector's Krylov space holds one direction of each eigenspace; `num` vectors hold a repeated one.
    missing = random_directions(operator, max(0, num - len(start)), generator)
    for vector in torch.cat([start, missing])[:max_hvps]:
        basis.extend(vector)
    doubted = False
    while True:
        if not basis.projection.isfinite().all():
            return _not_finite(basis, num)
        ritz = _RitzPairs(basis, num)
        tolerance = (rtol * ritz.values.abs()).clamp(min=2 * ritz.floor)
        unconverged = (ritz.residual_norms > tolerance).nonzero()
        converged = len(unconverged) == 0 and len(ritz.values) == num
        exhausted = basis.num_products >= max_hvps or len(basis.vectors) == operator.size
        if converged and not doubted and not exhausted and ritz.values[0] <= 0:
            # A loss hardly ever curves down everywhere: more likely the start was blind to what curves up.
            basis.extend(random_directions(operator, 1, generator)[0])
            doubted = True
            continue
        if converged:
            return _result(basis, ritz, num, Status.CONVERGED)
        if exhausted:
            return _result(basis, ritz, num, Status.BUDGET_EXHAUSTED)
        if len(basis.vectors) >= _MAX_BASIS + num:
            basis.restart(ritz.coordinates[: num + _EXTRA_RITZ])
        worst = int(unconverged[0]) if len(unconverged) else 0
        basis.extend(ritz.residuals[worst])


class _Basis:
    """Orthonormal rows V with AV beside them and the projection VAVᵀ in float64."""

    def __init__(self, operator: SymmetricOperator, generator: torch.Generator) -> None:
        self._operator = operator
        self._generator = generator
        self.dtype = operator.dtype  # of the products
        # Half precision would not keep the basis orthogonal: its products are taken, its sums are not.
        dtype = torch.promote_types(operator.dtype, torch.float32)
        self.vectors = torch.empty(0, operator.size, dtype=dtype, device=operator.device)
        self.products = self.vectors
        self.projection = torch.empty(0, 0, dtype=torch.float64)  # on the CPU: eigh of a tiny matrix
        self.num_products = 0

    def extend(self, direction: Tensor) -> None:
        """Add the part of `direction` outside the span, or a random direction if nothing of it is left."""
        vector = self._new_direction(direction)
        product = self._operator.matvec(vector.to(self._operator.dtype)).to(vector)
        self.num_products += 1
        self.vectors = torch.cat([self.vectors, vector[None]])
        self.products = torch.cat([self.products, product[None]])
        width = len(self.vectors)
        grown = torch.zeros(width, width, dtype=torch.float64)
        grown[:-1, :-1] = self.projection
        grown[-1, :] = grown[:, -1] = self._inner(product).double().cpu()
        self.projection = grown

    def restart(self, coordinates: Tensor) -> None:
        """Keep only the span of the given Ritz vectors; coordinates: (k, width), orthonormal rows."""
        rotation = coordinates.to(self.vectors)
        self.vectors = rotation @ self.vectors
        self.products = rotation @ self.products
        self.projection = coordinates @ self.projection @ coordinates.T

    def _new_direction(self, direction: Tensor) -> Tensor:
        direction = direction.to(self.vectors)
        while True:
            vector = direction / self._norm(direction).clamp(min=torch.finfo(direction.dtype).tiny)
            for _ in range(2):  # "twice is enough" (Parlett 1980, after Kahan)
                vector = vector - self.vectors.T @ self._inner(vector)
            norm = self._norm(vector)
            if norm > 1e3 * torch.finfo(vector.dtype).eps:
                vector = vector / norm
                vector = vector - self.vectors.T @ self._inner(vector)
                return vector / self._norm(vector)
            direction = random_directions(self._operator, 1, self._generator)[0].to(self.vectors)

    def _inner(self, vector: Tensor) -> Tensor:
        return self._operator.reduce(self.vectors @ vector)

    def _norm(self, vector: Tensor) -> Tensor:
        return self._operator.reduce(vector.square().sum()).sqrt()

    def norms(self, rows: Tensor) -> Tensor:
        """Return the norm of each row in float64, on the CPU."""
        return self._operator.reduce(rows.double().square().sum(dim=1)).sqrt().cpu()


class _RitzPairs:
    """The best approximations in a basis, most positive first, with explicit residuals Av − θv."""

    def __init__(self, basis: _Basis, num: int) -> None:
        values, coordinates = torch.linalg.eigh(basis.projection)
        self.spectral_norm = float(values.abs().max())
        self.coordinates = coordinates.T.flip(0)  # (width, width): one Ritz vector a row
        self.values = values.flip(0)[:num]  # (≤ num,), float64
        top = self.coordinates[:num].to(basis.vectors)
        self.vectors = top @ basis.vectors  # (≤ num, n)
        self.residuals = top @ basis.products - self.values.to(top)[:, None] * self.vectors
        # What rounding may hide from the computed residual belongs to the bound.
        self.floor = 16 * torch.finfo(basis.dtype).eps * self.spectral_norm
        self.residual_norms = basis.norms(self.residuals) + self.floor


def random_directions(operator: SymmetricOperator, num: int, generator: torch.Generator) -> Tensor:
    """Return (num, n) standard normal numbers, the same on every device."""
    return torch.randn(num, operator.size, generator=generator, dtype=torch.float64).to(
        dtype=operator.dtype, device=operator.device
    )


def _result(basis: _Basis, ritz: _RitzPairs, num: int, status: Status) -> SharpnessResult:
    kept = ritz.coordinates[: num + _EXTRA_RITZ].to(basis.vectors)
    return SharpnessResult(
        value=float(ritz.values[0]),
        values=ritz.values,
        vectors=ritz.vectors.T,
        residual=float(ritz.residual_norms[0]),
        status=status,
        num_hvps=basis.num_products,
        subspace=(kept @ basis.vectors).T,
    )


def _not_finite(basis: _Basis, num: int) -> SharpnessResult:
    """Non-finite is "too large", never a lower bound; the vectors are the ones tried."""
    return SharpnessResult(
        value=math.inf,
        values=torch.full((num,), math.inf, dtype=torch.float64),
        vectors=basis.vectors[:num].T,
        residual=math.inf,
        status=Status.NOT_FINITE,
        num_hvps=basis.num_products,
        subspace=basis.vectors[: num + _EXTRA_RITZ].T,
    )
