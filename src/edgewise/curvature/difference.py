"""Hessian-vector products from gradients alone, with an error bar."""

import torch
from torch import Tensor

from edgewise.errors import SecondDerivativeError
from edgewise.objective import Objective

_GOOD_ERROR = 1e-2  # relative: no better step is looked for
_WORST_ERROR = 5e-2  # beyond, there is no product


class CentralDifference:
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
        """Return ∇²L · vector; the first call finds the step."""
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
