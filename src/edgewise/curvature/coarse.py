"""Coarse before fine: the samples in part say where to look in the whole, which alone says what is there.

The top eigenvectors of a sixteenth of the samples start the whole, those of a 256th start the sixteenth. From there on
each product of the whole also corrects the part, and the corrected part says where the next product goes.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from edgewise.curvature.lanczos import (
    PRODUCTS,
    VECTORS,
    Basis,
    Expansion,
    RitzPairs,
    random_directions,
    top_eigenpairs,
)
from edgewise.curvature.operators import SymmetricOperator

_SHARES = (1 / 16, 1 / 256)  # of the samples, in each part
_FEWEST_ENTRIES = 1000  # of a vector: below, a product takes Python's time, however few the samples
_RTOL = 0.1  # in a part: below its sampling error there is nothing to find
_FAR, _SLOW = 0.7, 0.5  # relative residual of a start, and ratio of residuals, from which on a part misleads
_AHEAD = 0.1  # residual of the corrected part, in units of that of the whole
_MOST_PRODUCTS = 15  # of a part, between two of the whole
_MOST_CHANCE = 1 / 40  # without parts: of missing what is far above, from one random vector


class Coarse:
    """An operator over parts of its samples; there may be none.

    Args:
        operator: A, over all samples.
        most: products of a part, from a random start.
    """

    def __init__(self, operator: SymmetricOperator, most: int) -> None:
        self._operator, self._most = operator, most
        shares = _SHARES if operator.dimension >= _FEWEST_ENTRIES else ()
        parts = ((share, operator.part(share)) for share in shares)
        self._parts = [(share, part) for share, part in parts if part is not None]
        self._random: Tensor | None = None  # where the whole starts without parts

    @property
    def cost(self) -> float:
        """Products so far, each counted by its share of the samples."""
        return sum(share * part.evidence.num_products for share, part in self._parts)

    def start(self, num: int, generator: torch.Generator) -> Tensor:
        """Return (k, n): where to look first in the whole, by the parts from the smallest on; else a random direction.

        One pair more than asked for is found, as the order of two that are close may be another in the whole.
        """
        start = random_directions(self._operator, 2 if self._parts else 1, generator)
        wanted = min(num + 1, self._operator.dimension)
        try:
            for _, part in reversed(self._parts):
                found = top_eigenpairs(
                    part,
                    num=wanted,
                    rtol=_RTOL,
                    max_products=max(wanted, self._most),
                    start=start,
                    generator=generator,
                    extra=0,
                )
                start = found.vectors.T
        except Exception:  # what the loss cannot do for a part, it may for the whole
            self._parts = []
        if self._parts:
            return start[:num]
        self._random = start[:1]
        return self._random

    def most_chance(self, start: Tensor) -> float:
        """Return the chance, at most, with which one pair from there may miss what is far above.

        A second random vector would not help: what leads on from both is one vector of their span, as random as one.
        """
        return _MOST_CHANCE if start is self._random else 1.0

    def guide(self, rtol: float, generator: torch.Generator) -> Expansion | None:
        """Return what says where to look next, to a residual of rtol in the end; `None` where there is no part."""
        return _Guide(self._parts[0][1], rtol, generator) if self._parts else None


class _Guide:
    """The top of a part that is corrected so that it agrees with A on the basis, as long as that leads on.

    Args:
        part: C, the operator over a part of the samples.
        rtol: of the pairs that are looked for in A.
        generator: for what `top_eigenpairs` draws.
    """

    def __init__(self, part: SymmetricOperator, rtol: float, generator: torch.Generator) -> None:
        self._part, self._rtol, self._generator = part, rtol, generator
        self._products: list[Tensor] = []  # Cv of each row v of the basis
        self._leads = True
        self._pair, self._before = -1, 0.0  # which pair was looked for last, and its relative residual then

    def __call__(self, basis: Basis, ritz: RitzPairs, worst: int) -> Tensor:
        """Return the next direction: of the corrected part, or the residual where parts mislead."""
        residual = float(ritz.residual_norms[worst]) / max(float(ritz.values[worst].abs()), 1e-30)
        most = _SLOW * self._before if worst == self._pair else _FAR
        restarted = basis.width < len(self._products)
        self._leads = self._leads and not restarted and residual <= most
        self._pair, self._before = worst, residual
        if self._leads:
            try:
                return self._ahead(basis, ritz, worst, max(_AHEAD * residual, 0.3 * self._rtol))
            except Exception:  # what the loss cannot do for a part, it may for the whole
                self._leads = False
        return ritz.residuals[worst]

    def _ahead(self, basis: Basis, ritz: RitzPairs, worst: int, rtol: float) -> Tensor:
        rows = range(len(self._products), basis.width)
        self._products += [self._part.matvec(basis.vector(row)) for row in rows]
        found = top_eigenpairs(
            _Corrected(self._part, basis, self._products),
            num=worst + 1,
            rtol=rtol,
            max_products=_MOST_PRODUCTS + worst,
            start=ritz.vectors[: worst + 1],
            generator=self._generator,
            extra=0,
        )
        return found.vectors[:, worst]


class _Corrected(SymmetricOperator):
    """αC with the smallest symmetric change that makes it agree with A on a basis.

        B = αC + WVᵀ + VWᵀ − V(VᵀW)Vᵀ,  W = AV − αCV,  so that BV = AV

    α is that of least squares, Σ(AV)·(CV) / Σ(CV)²: a few samples have larger eigenvalues than many.
    """

    def __init__(self, part: SymmetricOperator, basis: Basis, products: Iterable[Tensor]) -> None:
        self.size, self.dtype, self.device, self.shard = part.size, part.dtype, part.device, part.shard
        self._part, self._basis = part, basis
        self._products = torch.stack(list(products))  # CV, (k, n)
        with_vectors = torch.stack([basis.inner(product, VECTORS) for product in self._products])
        with_products = [basis.inner(product, PRODUCTS)[i] for i, product in enumerate(self._products)]
        squares = float(basis.norms(self._products).square().sum())
        self._alpha = float(sum(with_products)) / squares if squares > 0 else 0.0
        self._inner = basis.projection - self._alpha * with_vectors  # VᵀW
        self._inner = (self._inner + self._inner.T) / 2

    @property
    def dimension(self) -> int:
        """That of C."""
        return self._part.dimension

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks, as C does."""
        return self._part.reduce(partial)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return B · vector."""
        alpha, basis = self._alpha, self._basis
        along = basis.inner(vector, VECTORS)  # Vᵀx
        with_c = self.reduce(self._products @ vector).cpu().double()
        change = basis.inner(vector, PRODUCTS) - alpha * with_c - self._inner @ along  # Wᵀx − VᵀW Vᵀx
        product = self._part.matvec(vector).mul_(alpha)
        product += basis.products(along[None])[0]
        product += basis.vectors(change[None])[0]
        return product.add_(along.to(product) @ self._products, alpha=-alpha)
