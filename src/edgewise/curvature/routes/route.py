"""What the routes to Hessian-vector products have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from edgewise.loss.objective import Objective


class HvpRoute(ABC):
    """A way to multiply ∇²L with vectors, and what its products cost and are worth.

    Args:
        objective: the loss L.
    """

    name: ClassVar[str]
    is_exact: ClassVar[
        bool
    ]  # whether it differentiates twice: then formulas may be wrong, else steps too long

    def __init__(self, objective: Objective) -> None:
        self._objective, self._evaluation = objective, objective.evaluation
        self.num_products = 0
        self.relative_error = 0.0  # error bar of a product, relative to its norm
        self.graph_bytes = 0  # held by kept graphs, counted where there is a budget
        self.has_custom_functions = (
            False  # whether the loss was seen to use some: their authors wrote the derivative
        )

    @abstractmethod
    def product(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector; both of shape (size,).

        Raises:
            SecondDerivativeError: there is none by this route; says why, and what to do.
        """

    def gradient(self) -> Tensor:
        """Return ∇L(θ), shape (size,), with what products to come need of it, too."""
        return self._objective.gradient()

    def release(self) -> None:  # noqa: B027 - most keep nothing
        """Keep nothing from here on: another route has taken over."""
