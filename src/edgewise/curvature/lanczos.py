"""Thick-restart Lanczos with full reorthogonalization, for the most positive eigenvalues.

The method is Rayleigh–Ritz on a growing orthonormal basis V, extended by the residual of the first Ritz pair
that has not converged. From a single start vector that residual is the next Lanczos vector, so this *is* Lanczos
with full reorthogonalization. Written this way it also starts from several vectors, the Ritz vectors of an
earlier call, which keeps the top eigenvalue in sight when two eigenvalues cross. AV is stored beside V, so the
residuals are computed, not inferred from a recurrence, and each pair of vectors shows whether A is symmetric.
(Saad, Numerical Methods for Large Eigenvalue Problems, 2011, ch. 6; Wu & Simon, SIAM J. Matrix Anal. Appl. 22,
2000, for the restart.)
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.results import EigenResult
from edgewise.status import Status

_ASYMMETRY = 0.1  # of a residual's tolerance, that (A − Aᵀ)v may have unseen
FLOOR = 16  # times ε: a residual below this share of ‖A‖ is rounding
_MAX_BASIS = 32  # vectors kept before a restart: bounds memory at about 2 · 32 vectors
# So far above the value found, relative, no eigenvalue is to be missed: the larger of the two, one in units of rtol.
_FAR, _FAR_IN_RTOL = 0.05, 5
_EXTRA_RITZ = 2  # Ritz vectors kept beyond the wanted ones, for restarts and for later calls
_BLOCK = 4  # rows allotted at a time
_CHUNKS, _SMALLEST_CHUNK = 64, 8192  # that a sum over all entries is taken in
VECTORS, PRODUCTS = 0, 1  # the two halves of a block
_NO_CANCELLATION = (
    0.7  # of the norm left by a projection: the rest is orthogonal to rounding (Parlett 1980, ch. 6)
)


def top_eigenpairs(
    operator: SymmetricOperator,
    *,
    num: int,
    rtol: float,
    max_products: int,
    start: Tensor,
    generator: torch.Generator,
    extra: int = _EXTRA_RITZ,
    expand: "Expansion | None" = None,
    most_chance: float = 1.0,
) -> EigenResult:
    """Return the `num` most positive eigenpairs, stopped by ‖Av − θv‖ ≤ rtol·|θ| for each.

    The residual includes 16 ε‖A‖ for rounding; an eigenvalue that is zero to this precision counts as converged.

    Args:
        operator: A.
        num: number of pairs, 1 … operator.dimension.
        rtol: tolerance on the residual relative to the eigenvalue.
        max_products: with A, ≥ num.
        start: (k, n), k ≥ 1: where to look first; need not be orthonormal.
        generator: for the directions drawn when the start has fewer than `num`, or is an invariant subspace.
        extra: Ritz vectors beyond the `num` in the result's subspace; each is combined from the whole basis.
        expand: where to look next, of the basis, its Ritz pairs and the index of the first that has not converged;
            `None` for the residual.
        most_chance: that an eigenvalue more than 5 %, and 5 rtol, above the value found is missed; in (0, 1].
            Below 1, `start` must be one normal random vector, `num` 1 and `expand` `None`.

    Returns:
        The pairs, the residual of the first, and `Status.BUDGET_EXHAUSTED` if the products ran out, or
        `Status.NOT_FINITE` with infinite values if one of them was not finite.
    """
    basis = Basis(operator, generator)
    # One vector's Krylov space holds one direction of each eigenspace; `num` vectors hold a repeated one.
    missing = random_directions(operator, max(0, num - len(start)), generator)
    for vector in [*start, *missing][:max_products]:
        basis.extend(vector)
    doubted, far = False, 1 + max(_FAR, _FAR_IN_RTOL * rtol)
    while True:
        if not basis.projection.isfinite().all():
            return _not_finite(basis, num, extra)
        ritz = RitzPairs(basis, num)
        tolerance = (rtol * ritz.values.abs()).clamp(min=2 * ritz.floor)
        unconverged = (ritz.residual_norms > tolerance).nonzero()
        converged = len(unconverged) == 0 and len(ritz.values) == num
        exhausted = (
            basis.num_products >= max_products or basis.width == operator.dimension or operator.is_spent
        )
        if converged and not doubted and not exhausted and ritz.values[0] <= 0:
            # A loss hardly ever curves down everywhere: more likely the start was blind to what curves up.
            basis.extend(random_directions(operator, 1, generator)[0])
            doubted = True
            continue
        is_sure = exhausted or doubted or ritz.chance_of_missing(basis, far) <= most_chance
        if exhausted or (converged and is_sure):
            _check_symmetric(operator, basis, ritz, tolerance)
            status = Status.CONVERGED if converged else Status.BUDGET_EXHAUSTED
            return _result(basis, ritz, num, extra, status)
        if basis.width >= _MAX_BASIS + num:
            basis.restart(ritz.coordinates[: num + _EXTRA_RITZ])
        worst = int(unconverged[0]) if len(unconverged) else 0
        basis.extend(ritz.residuals[worst] if expand is None else expand(basis, ritz, worst))


class Basis:
    """Orthonormal rows V with AV beside them, the projection VAVᵀ and the asymmetry V(A − Aᵀ)Vᵀ in float64."""

    def __init__(self, operator: SymmetricOperator, generator: torch.Generator) -> None:
        self._operator = operator
        self._generator = generator
        # Half precision would not keep the basis orthogonal: its products are taken, its sums are not.
        self.eps = torch.finfo(operator.dtype).eps
        self.dtype = torch.promote_types(operator.dtype, torch.float32)
        self._blocks: list[
            Tensor
        ] = []  # (2, _BLOCK, n): rows of V and AV; one matrix would be copied to grow
        self.projection = torch.empty(0, 0, dtype=torch.float64, device="cpu")  # (width, width), on the CPU
        self.asymmetry = self.projection  # likewise; rounding, if A is symmetric
        self.num_products = 0

    @property
    def width(self) -> int:
        """How many rows there are."""
        return len(self.projection)

    @property
    def dimension(self) -> int:
        """That of the operator."""
        return self._operator.dimension

    def extend(self, direction: Tensor) -> None:
        """Add the part of `direction` outside the span, or a random direction if nothing of it is left."""
        vector = self._new_direction(direction)
        product = self._operator.matvec(vector.to(self._operator.dtype)).to(vector)
        self.num_products += 1
        other_side = self.inner(vector, PRODUCTS)
        self.projection, self.asymmetry = _grown(self.projection), _grown(self.asymmetry)
        self._write(self.width - 1, vector, product)
        self.projection[-1, :] = self.projection[:, -1] = self.inner(product, VECTORS)
        if len(other_side):
            difference = other_side - self.projection[-1, :-1]
            self.asymmetry[-1, :-1], self.asymmetry[:-1, -1] = difference, -difference
            largest, row = difference.abs().max(0)
            self._operator.check_symmetric(float(largest), self.vector(int(row)), vector)

    def vector(self, row: int) -> Tensor:
        """Return a row of V, shape (n,)."""
        block, place = divmod(row, _BLOCK)
        return self._blocks[block][VECTORS, place]

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return CV, shape (k, n), for coordinates C of shape (k, width)."""
        return self._combined(coordinates, VECTORS)

    def products(self, coordinates: Tensor) -> Tensor:
        """Return CAV, shape (k, n), for coordinates C of shape (k, width)."""
        return self._combined(coordinates, PRODUCTS)

    def _combined(self, coordinates: Tensor, which: int) -> Tensor:
        # V and AV one by one: a product with both would be a batched one, which takes twice as long.
        total = None
        for rows, part in zip(self._rows(), coordinates.split(_BLOCK, dim=1), strict=True):
            part = part.to(rows)  # noqa: PLW2901
            total = part @ rows[which] if total is None else total.addmm_(part, rows[which])
        assert total is not None  # there is a row
        return total

    def restart(self, coordinates: Tensor) -> None:
        """Keep only the span of the given Ritz vectors; coordinates: (k, width), orthonormal rows."""
        kept = self.vectors(coordinates), self.products(coordinates)
        self.projection, self.asymmetry = (
            coordinates @ matrix @ coordinates.T for matrix in (self.projection, self.asymmetry)
        )
        del self._blocks[-(-len(coordinates) // _BLOCK) :]
        for i, (vector, product) in enumerate(zip(*kept, strict=True)):
            self._write(i, vector, product)

    def norms(self, rows: Tensor) -> Tensor:
        """Return the norm of each row in float64, on the CPU.

        Unlike those of a matrix product, sums of torch's are pairwise: no float64 copy is needed for their sake.
        """
        return self._operator.reduce(rows.square().sum(dim=1).double()).sqrt().cpu()

    def _new_direction(self, direction: Tensor) -> Tensor:
        nothing = 1e3 * torch.finfo(self.dtype).eps
        while True:
            direction = direction.to(self.dtype)
            start = norm = float(self.norms(direction[None]))
            vector = direction
            while self.width > 0:
                before, vector = norm, self._orthogonal_part(vector)
                norm = float(self.norms(vector[None]))
                if norm <= nothing * start or not norm <= _NO_CANCELLATION * before:  # NaN leaves as well
                    break
            if norm > nothing * start:
                return vector / norm
            direction = random_directions(self._operator, 1, self._generator)[0]

    def _orthogonal_part(self, vector: Tensor) -> Tensor:
        coordinates = self.inner(vector, VECTORS).to(vector)
        for rows, part in zip(self._rows(), coordinates.split(_BLOCK), strict=True):
            vector = torch.addmv(vector, rows[0].T, part, alpha=-1)
        return vector

    def inner(self, vector: Tensor, which: int) -> Tensor:
        """Return V · vector or AV · vector, shape (width,), in float64 on the CPU.

        A float32 sum over a million entries may be off in the fourth digit; over chunks it is not.
        """
        if self.width == 0:
            return torch.empty(0, dtype=torch.float64)
        size = max(_SMALLEST_CHUNK, len(vector) // _CHUNKS)
        dots = [
            torch.stack(
                [
                    part @ piece
                    for part, piece in zip(rows[which].split(size, dim=1), vector.split(size), strict=True)
                ]
            )
            for rows in self._rows()
        ]
        return self._operator.reduce(torch.cat(dots, dim=1).sum(dim=0, dtype=torch.float64)).cpu()

    def _rows(self) -> Iterator[Tensor]:
        """Yield (2, ≤ _BLOCK, n) of the rows in use."""
        for i, block in enumerate(self._blocks):
            yield block[:, : self.width - i * _BLOCK]

    def _write(self, row: int, vector: Tensor, product: Tensor) -> None:
        block, place = divmod(row, _BLOCK)
        if block == len(self._blocks):
            self._blocks.append(vector.new_empty(2, _BLOCK, len(vector)))
        self._blocks[block][0, place], self._blocks[block][1, place] = vector, product


class RitzPairs:
    """The best approximations in a basis, most positive first, with explicit residuals Av − θv."""

    def __init__(self, basis: Basis, num: int) -> None:
        values, coordinates = torch.linalg.eigh(basis.projection)
        self.spectral_norm = float(values.abs().max())
        self.coordinates = coordinates.T.flip(0)  # (width, width): one Ritz vector a row
        self.values = values.flip(0)[:num]  # (≤ num,), float64
        self._others = values[:-1]  # all Ritz values but the top one
        self.vectors = basis.vectors(self.coordinates[:num])  # (≤ num, n)
        products = basis.products(self.coordinates[:num])
        self.residuals = products.addcmul_(self.vectors, self.values.to(products)[:, None], value=-1)
        # What rounding may hide from the computed residual belongs to the bound.
        self.floor = FLOOR * basis.eps * self.spectral_norm
        self.residual_norms = basis.norms(self.residuals) + self.floor

    def chance_of_missing(self, basis: Basis, far: float) -> float:
        """Return how likely a random start hides an eigenvalue μ ≥ far·θ, if there is one; at most 1.

            |vᵀg| ≤ ‖Ax − θx‖ |xᵀg| / ((μ − θ) Πⱼ (μ − θⱼ)/(θ − θⱼ)),  Av = μv

        g is the start. In its Krylov space the top Ritz vector x is a polynomial in A times g, zero at the other Ritz
        values θⱼ, so that v has grown in x by the product. As √n vᵀg/‖g‖ is nearly a standard normal number, it is as
        small as that with a chance of at most √(2/π) times the bound. A basis that has been restarted tells nothing.
        """
        value, residual = float(self.values[0]), float(self.residual_norms[0])
        if value <= 0 or residual <= 2 * self.floor or basis.width < basis.num_products:
            return 0.0
        above = far * value
        growth = float(((above - self._others) / (value - self._others)).prod())
        component = float(self.coordinates[0, 0].abs()) * basis.dimension**0.5
        return min(1.0, math.sqrt(2 / math.pi) * residual * component / ((above - value) * growth))


Expansion = Callable[[Basis, RitzPairs, int], Tensor]


def random_directions(operator: SymmetricOperator, num: int, generator: torch.Generator) -> Tensor:
    """Return (num, n) standard normal numbers, the same on every device."""
    return torch.randn(num, operator.size, generator=generator, dtype=torch.float64, device="cpu").to(
        dtype=operator.dtype, device=operator.device
    )


def _check_symmetric(operator: SymmetricOperator, basis: Basis, ritz: RitzPairs, tolerance: Tensor) -> None:
    """Have an asymmetry looked at that is small beside ‖A‖, and still not small beside what a pair promises.

    In the basis, Av and Aᵀv are apart by V(A − Aᵀ)v = Ky for v = Vᵀy: most along w = VᵀKy/‖Ky‖, by wᵀAv − vᵀAw = ‖Ky‖.
    """
    allowed = (_ASYMMETRY * tolerance).clamp(min=2 * ritz.floor)
    for vector, y, most in zip(ritz.vectors, ritz.coordinates, allowed, strict=False):
        apart = basis.asymmetry @ y
        size = float(apart.norm())
        if size > most:
            operator.check_symmetric(size, vector, basis.vectors(apart[None] / size)[0], float(most))


def _grown(matrix: Tensor) -> Tensor:
    """Return a matrix with a row and a column of zeros more."""
    grown = matrix.new_zeros(len(matrix) + 1, len(matrix) + 1)
    grown[:-1, :-1] = matrix
    return grown


def _result(basis: Basis, ritz: RitzPairs, num: int, extra: int, status: Status) -> EigenResult:
    subspace = basis.vectors(ritz.coordinates[: num + extra]) if extra else ritz.vectors
    return EigenResult(
        values=ritz.values,
        vectors=ritz.vectors.T,
        residual=float(ritz.residual_norms[0]),
        status=status,
        num_products=basis.num_products,
        subspace=subspace.T,
    )


def _not_finite(basis: Basis, num: int, extra: int) -> EigenResult:
    """Non-finite is "too large", never a lower bound; the vectors are the ones tried."""
    subspace = basis.vectors(torch.eye(basis.width, dtype=torch.float64, device="cpu")[: num + extra])
    return EigenResult(
        values=torch.full((num,), math.inf, dtype=torch.float64, device="cpu"),
        vectors=subspace[:num].T,
        residual=math.inf,
        status=Status.NOT_FINITE,
        num_products=basis.num_products,
        subspace=subspace.T,
    )
