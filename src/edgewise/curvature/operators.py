"""Symmetric matrices known only by their products with vectors."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from edgewise.preconditioner import Diagonal


class SymmetricOperator(ABC):
    """A real symmetric matrix A of shape (size, size); algorithms see only this."""

    size: int
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Return A · vector; both of shape (size,)."""


class PreconditionedOperator(SymmetricOperator):
    """P^{-1/2} A P^{-1/2}: symmetric, with the eigenvalues of P⁻¹A."""

    def __init__(self, operator: SymmetricOperator, preconditioner: Diagonal) -> None:
        self.operator = operator
        self.size, self.dtype, self.device = operator.size, operator.dtype, operator.device
        self._scale = preconditioner.power(-0.5)  # (n,)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return P^{-1/2} A P^{-1/2} · vector."""
        return self._scale * self.operator.matvec(self._scale * vector)
