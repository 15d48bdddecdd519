"""The Hessian as an operator, by whichever route the loss allows.

| route | a product costs | needs |
|---|---|---|
| reverse | one backward through a kept graph (several batches: a gradient more) | a second backward |
| forward | a gradient with tangents, no kept graph | forward derivatives |
| difference | two gradients | nothing but gradients; comes with an error bar |
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from edgewise.curvature.operators import SymmetricOperator
from edgewise.errors import SecondDerivativeError, known_name
from edgewise.objective import Objective

Route = Literal["auto", "reverse", "forward", "difference"]

ROUTES = ("auto", "reverse", "forward", "difference")  # "auto" tries the others in this order
_GOOD_ERROR = 1e-2  # of a central difference: no better step is looked for
_WORST_ERROR = 5e-2  # of a central difference: beyond, there is no product


class HessianOperator(SymmetricOperator):
    """∇²L of an objective; counts its products, and says which route they took and why."""

    def __init__(self, objective: Objective, hvp: Route = "auto") -> None:
        known_name("hvp", hvp, ROUTES)
        self.size, self.dtype, self.device = objective.size, objective.dtype, objective.device
        self._objective = objective
        self._difference = _CentralDifference(objective)
        self._later_routes = list(ROUTES[2:]) if hvp == "auto" else []
        self.route: str = "reverse" if hvp == "auto" else hvp
        self.reason = ""  # why "auto" did not take an earlier route
        self._exact_products = 0

    @property
    def num_products(self) -> int:
        """Products so far; a central difference tried for its step counts as one."""
        return self._exact_products + self._difference.num_products

    @property
    def relative_error(self) -> float:
        """Error bar of a product relative to its norm; 0 for the exact routes."""
        return self._difference.relative_error

    def matvec(self, vector: Tensor) -> Tensor:
        """Return ∇²L · vector."""
        while True:
            try:
                return self._product(vector)
            except SecondDerivativeError as error:
                if not self._later_routes:
                    raise
                self.reason += f"{error} "
                self.route = self._later_routes.pop(0)

    def _product(self, vector: Tensor) -> Tensor:
        if self.route == "difference":
            return self._difference.product(vector)
        exact: Callable[[Tensor], Tensor] = (
            self._objective.hvp if self.route == "reverse" else self._objective.hvp_forward
        )
        product = exact(vector)
        self._exact_products += 1
        return product


class _CentralDifference:
    r"""[∇L(θ + hv) − ∇L(θ − hv)] / 2h for unit v, exact up to h²‖∇⁴L‖/6 and rounding ε‖∇L‖/h.

    The step starts at ε^{1/3}·max(1, ‖θ‖), which balances the two for losses of unit scale. On the first product it is
    checked by Richardson's rule: doubling h changes the product by three times its truncation error.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._step = 0.0
        self.relative_error = 0.0
        self.num_products = 0

    def product(self, vector: Tensor) -> Tensor:
        norm = vector.norm()
        if norm == 0:
            return torch.zeros_like(vector)
        if self._step == 0:
            self._choose_step(vector / norm)
        return norm * self._central(vector / norm, self._step)

    def _choose_step(self, direction: Tensor) -> None:
        parameters = torch.cat([p.detach().reshape(-1) for p in self._objective.tensors])
        balanced = torch.finfo(self._objective.dtype).eps ** (1 / 3) * max(1.0, float(parameters.norm()))
        errors = {}
        for factor in (1.0, 1 / 8, 8.0, 1 / 64):
            step = factor * balanced
            product, doubled = self._central(direction, step), self._central(direction, 2 * step)
            errors[step] = float((doubled - product).norm() / product.norm().clamp(min=1e-30))
            if errors[step] <= _GOOD_ERROR:
                break
        best = min(errors, key=lambda step: errors[step])
        if not errors[best] <= _WORST_ERROR:
            raise SecondDerivativeError(
                f"central differences of the gradient are off by about {errors[best]:.0%} at the best of "
                f"{len(errors)} steps, more than {_WORST_ERROR:.0%}: measure in a higher precision, "
                "or on a larger batch."
            )
        self._step, self.relative_error = best, errors[best]

    def _central(self, direction: Tensor, step: float) -> Tensor:
        self.num_products += 1
        ahead = self._objective.gradient_at(step * direction)
        behind = self._objective.gradient_at(-step * direction)
        return (ahead - behind) / (2 * step)
