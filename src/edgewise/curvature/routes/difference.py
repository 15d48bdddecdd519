"""Hessian-vector products from gradients alone, with an error bar."""

import math

import torch
from torch import Tensor

from edgewise.curvature.routes.route import HvpRoute
from edgewise.errors import EdgewiseError, LossError, SecondDerivativeError
from edgewise.loss.objective import Objective

_GOOD_ERROR = 1e-2  # relative: no better step is looked for
_WORST_ERROR = 5e-2  # beyond, there is no product


class CentralDifference(HvpRoute):
    r"""[∇L(θ + hv) − ∇L(θ − hv)] / 2h for unit v, exact up to h²‖∇⁴L‖/6 and rounding ε‖∇L‖/h.

    The step starts at ε^{1/3}·max(1, ‖θ‖), which balances the two for losses of unit scale. On the first product it is
    checked by Richardson's rule: doubling h changes the product by three times its truncation error. That direction may
    tell little of another one: `settle_along` checks it along what has been found.
    """

    name = "difference"
    is_exact = False

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self._step = 0.0
        self._scale = 0.0  # ‖∇²L v‖ of the first product, for unit v

    def product(self, vector: Tensor) -> Tensor:
        """Return ∇²L · vector; the first call finds the step."""
        norm = float(self._objective.norm(vector))
        if norm == 0:
            return torch.zeros_like(vector)
        if self._step == 0:
            self._choose_step(vector, norm)
        product = self._central(vector, self._step / norm)  # a step of the same length
        self._scale = self._scale or float(self._objective.norm(product)) / norm
        return product

    def settle_along(self, vector: Tensor, value: float) -> tuple[float, bool]:
        """Return by how much vᵀ∇²Lv, found to be `value`, may be off, relative to it, and whether the step has changed.

        Along v, the error of a product is measured anew, and its vᵀ∇²Lv compared; if they are off by too much, and
        not along a direction that is flat beside the first, the step is chosen again, along v.
        """
        norm = float(self._objective.norm(vector))
        product = self._central(vector, self._step / norm)
        change = self._central(vector, 2 * self._step / norm).sub_(product)
        curvature, curvature_change = (
            float(self._objective.reduce(torch.dot(vector, part))) for part in (product, change)
        )
        size = float(self._objective.norm(product))
        error = max(
            (abs(value - curvature) + abs(curvature_change)) / max(abs(value), 1e-30),
            float(self._objective.norm(change)) / max(size, 1e-30),
        )
        if error <= _GOOD_ERROR or size <= _WORST_ERROR * self._scale * norm:
            return error, False
        before = self._step
        self._choose_step(vector, norm)
        if self._step == before and not error <= _WORST_ERROR:
            raise _too_coarse(error, "along the eigenvector that was found")
        return error, self._step != before

    def curves(self, vector: Tensor) -> bool:
        """Whether gradients differ along the vector, smoothly: not by a kink alone, as those of ReLU networks do."""
        step = self._balanced_step() / float(self._objective.norm(vector))
        product, doubled = (self._central(vector, factor * step) for factor in (1.0, 2.0))
        size = float(self._objective.norm(product))
        return size > 0 and float(self._objective.norm(doubled.sub_(product))) <= _GOOD_ERROR * size

    def follows_loss(self) -> bool:
        """Whether gradients are the slope of the loss, to 2 % and rounding; straight-through gradients are not."""
        gradient = self._objective.gradient()
        norm = float(self._objective.norm(gradient))
        rounding = 8 * torch.finfo(self._objective.dtype).eps * abs(self._objective.value())
        steps = [factor * self._balanced_step() for factor in (1.0, 1 / 8)]
        return norm == 0 or any(
            abs(self._slope(gradient / norm, step) - norm) <= 0.02 * norm + rounding / step for step in steps
        )

    def has_limit(self, vector: Tensor) -> bool:
        """Whether differences stay finite as the step shrinks; at a kink, and where ∇²L is infinite, they grow."""
        step = self._balanced_step() / float(self._objective.norm(vector))
        try:
            gradient = self._objective.gradient()
            sizes = [
                float(self._objective.norm(self._central(vector, factor * step))) for factor in (1.0, 1 / 8)
            ]
        except EdgewiseError:  # the loss nearby is not finite
            return False
        return bool(gradient.isfinite().all()) and sizes[1] <= 2 * sizes[0] < math.inf

    def _choose_step(self, vector: Tensor, length: float) -> None:
        """Find a step along a vector of that norm; copies as large as the parameters count."""
        if self._objective.ranks.sharded:
            self._check_scale()
        errors = {}
        for factor in (1.0, 1 / 8, 8.0, 1 / 64):
            step = factor * self._balanced_step()
            errors[step] = self._relative_error_at(vector, step / length)
            if errors[step] <= _GOOD_ERROR:
                break
        best = min(errors, key=lambda step: errors[step])
        if not errors[best] <= _WORST_ERROR:
            raise _too_coarse(errors[best], f"at the best of {len(errors)} steps")
        self._step, self.relative_error = best, errors[best]

    def _check_scale(self) -> None:
        """Raise if the gradient is not the slope of the loss: FSDP2 can be told to scale it otherwise."""
        gradient = self._objective.gradient()
        norm = self._objective.norm(gradient)
        if not (norm.isfinite() and norm > 0):
            return
        balanced = torch.finfo(self._objective.dtype).eps ** (1 / 3)
        ratio, doubled = (
            self._slope(gradient / norm, step) / float(norm) for step in (balanced, 2 * balanced)
        )
        # Where the two differ, the loss is too noisy to tell.
        if abs(ratio - doubled) < 0.1 * abs(ratio) and abs(ratio - 1) > 0.25:
            raise LossError(
                f"the loss rises by {ratio:.2g} times what its gradient says: call set_gradient_divide_factor("
                f"{self._objective.ranks.num}) on the modules of FSDP2 while measuring, which makes gradients means "
                "over the ranks."
            )

    def _slope(self, direction: Tensor, step: float) -> float:
        value_at = self._objective.value_at
        return (value_at(direction, step) - value_at(direction, -step)) / (2 * step)

    def _central(self, direction: Tensor, step: float) -> Tensor:
        return self._difference(direction, step).div_(2 * step)

    def _relative_error_at(self, direction: Tensor, step: float) -> float:
        """Return ‖D(2h)/4h − D(h)/2h‖ ÷ ‖D(h)/2h‖, D(h) the difference of the gradients at ±h."""
        gradient_at = self._objective.gradient_at
        difference = self._difference(direction, step)
        size = self._objective.norm(difference).clamp(min=1e-30)
        difference *= 2
        difference -= gradient_at(direction, 2 * step)
        difference += gradient_at(direction, -2 * step)
        self.num_products += 1
        return float(self._objective.norm(difference) / (2 * size))

    def _difference(self, direction: Tensor, step: float) -> Tensor:
        """Return ∇L(θ + hv) − ∇L(θ − hv), in place: copies of the parameters count."""
        self.num_products += 1
        difference = self._objective.gradient_at(direction, step)
        difference -= self._objective.gradient_at(direction, -step)
        return difference

    def _balanced_step(self) -> float:
        """Return ε^{1/3}·max(1, ‖θ‖)."""
        return torch.finfo(self._objective.dtype).eps ** (1 / 3) * self.scale_of_parameters()

    def scale_of_parameters(self) -> float:
        """Return max(1, ‖θ‖)."""
        squares = [p.detach().double().square().sum() for p in self._objective.tensors]
        return max(1.0, float(self._objective.reduce(torch.stack(squares).sum()).sqrt()))


def _too_coarse(error: float, where: str) -> SecondDerivativeError:
    return SecondDerivativeError(
        f"central differences of the gradient are off by about {error:.0%} {where}, more than {_WORST_ERROR:.0%}: "
        "measure in a higher precision, or on a larger batch."
    )
