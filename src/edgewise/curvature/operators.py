"""Symmetric matrices known only by their products with vectors."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgewise.arguments import a_vector
from edgewise.errors import SecondDerivativeError
from edgewise.optimizers.preconditioner import Diagonal

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an operator's products so far have cost, and how they came about."""

    num_products: int = 0  # those for checks included
    route: str = ""  # that the products take
    reason: str = ""  # why not an earlier one
    relative_error: float = 0.0  # of a product, relative to its norm, as far as it is known
    graph_bytes: int = 0  # held by kept graphs, counted where there is a budget


class Look(NamedTuple):
    """A product A·v that is taken with more care than most."""

    product: Tensor
    change: Tensor  # by how much it may be off
    jump: float = 0.0  # by how much vᵀAv may be off besides


class SymmetricOperator(ABC):
    """A real symmetric matrix A of shape (dimension, dimension); algorithms see only this.

    Where vectors are sharded over ranks, each holds `size` of their entries, and sums over entries go through `reduce`.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    shard: int = 0  # which part of the vectors is here; random parts must differ

    def check_open(self) -> None:  # noqa: B027 - a plain matrix is always open
        """Raise `ClosedError` where products are no longer possible."""

    def check_symmetric(  # noqa: B027 - for all we know
        self, asymmetry: float, one: Tensor, other: Tensor, allowed: float = math.inf
    ) -> None:
        """Raise where the asymmetry |vᵀAv′ − v′ᵀAv| of two vectors is more than rounding.

        What might be rounding is to be looked at more closely where it is also more than `allowed`.
        """

    @property
    def dimension(self) -> int:
        """Rows of A: the size, over all ranks where vectors are sharded."""
        return self.size

    @property
    def evidence(self) -> Evidence:
        """What is known of the products so far; of a plain matrix, nothing."""
        return Evidence()

    def take_next_route(self, error: SecondDerivativeError) -> None:
        """Go on by another route than the one that has failed, or raise its error: a plain matrix has one."""
        raise error

    @property
    def is_spent(self) -> bool:
        """Whether `take_closer` should come before another product."""
        return False

    def look_along(self, vector: Tensor) -> Look | None:
        """Return A · vector with more care than a product takes; `None` where products are exact."""
        return None

    def take_closer(self, vector: Tensor) -> bool:
        """Let products be as precise from now on as looks along the vector are; `False` if they have been."""
        return False

    def part(self, share: float) -> "SymmetricOperator | None":
        """Return the same matrix over about that share of the samples; `None` where that cannot be had."""
        return None

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Return A · vector; both of shape (size,)."""

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of what each computed of its shard; here every rank has whole vectors."""
        return partial

    def to_scipy(self) -> "LinearOperator":
        """Return A as an operator on NumPy vectors, for `scipy.sparse.linalg`.

        Raises:
            ImportError: scipy is not installed.
            ValueError: vectors are sharded over ranks.
            ClosedError: the operator's `with` block is over; a product raises it, too.

        Examples:
            >>> from scipy.sparse.linalg import eigsh
            >>> from edgewise import hessian
            >>> model, batch = torch.nn.Linear(3, 1, bias=False), torch.diag(torch.tensor([3.0, 1.0, 0.0]))
            >>> with hessian(model, lambda model, x: 1.5 * model(x).square().mean(), [batch]) as operator:
            ...     round(float(eigsh(operator.to_scipy(), k=1, return_eigenvectors=False)[0]), 4)
            9.0
        """
        from scipy.sparse.linalg import LinearOperator  # noqa: PLC0415 - optional

        self.check_open()
        if self.dimension != self.size:
            raise ValueError(
                f"to_scipy() needs whole vectors, but this rank holds {self.size} of {self.dimension} entries: "
                "use matvec and reduce, or measure a model that is not sharded."
            )

        def matvec(vector: np.ndarray) -> np.ndarray:
            like = torch.as_tensor(vector.reshape(-1), device="cpu").to(dtype=self.dtype, device=self.device)
            return self.matvec(like).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype, device="cpu").numpy().dtype
        return LinearOperator((self.size, self.size), matvec=matvec, rmatvec=matvec, dtype=dtype)


class PreconditionedOperator(SymmetricOperator):
    """P^{-1/2} A P^{-1/2}: symmetric, with the eigenvalues of P⁻¹A."""

    def __init__(self, operator: SymmetricOperator, preconditioner: Diagonal) -> None:
        self._operator, self._preconditioner = operator, preconditioner
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self.shard = operator.shard
        self._scale = preconditioner.power(-0.5)  # (n,)

    @property
    def dimension(self) -> int:
        """That of A."""
        return self._operator.dimension

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks, as A does."""
        return self._operator.reduce(partial)

    def check_open(self) -> None:
        """Raise what A raises."""
        self._operator.check_open()

    def check_symmetric(
        self, asymmetry: float, one: Tensor, other: Tensor, allowed: float = math.inf
    ) -> None:
        """Raise what A raises of P^{-1/2}v and P^{-1/2}v′, whose asymmetry is the same."""
        self._operator.check_symmetric(asymmetry, self._scale * one, self._scale * other, allowed)

    @property
    def evidence(self) -> Evidence:
        """That of A."""
        return self._operator.evidence

    def take_next_route(self, error: SecondDerivativeError) -> None:
        """Go on by A's next route, or raise what A raises."""
        self._operator.take_next_route(error)

    @property
    def is_spent(self) -> bool:
        """Whether A's products are."""
        return self._operator.is_spent

    def look_along(self, vector: Tensor) -> Look | None:
        """Return what A's look along P^{-1/2}v says."""
        look = self._operator.look_along(self._scale * vector)
        return look and Look(self._scale * look.product, self._scale * look.change, look.jump)

    def take_closer(self, vector: Tensor) -> bool:
        """Let A's products be closer, as they are along P^{-1/2}v."""
        return self._operator.take_closer(self._scale * vector)

    def part(self, share: float) -> SymmetricOperator | None:
        """Return P^{-1/2} C P^{-1/2}, C a part of A's samples, P of all of them."""
        part = self._operator.part(share)
        return None if part is None else PreconditionedOperator(part, self._preconditioner)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return P^{-1/2} A P^{-1/2} · vector."""
        a_vector("vector", vector, self.size, self.dtype, self.device)
        return self._scale * self._operator.matvec(self._scale * vector)
