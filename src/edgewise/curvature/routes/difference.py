"""Hessian-vector products from gradients alone, with an error bar."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgewise.curvature.operators import Look
from edgewise.curvature.routes.route import HvpRoute
from edgewise.curvature.routes.steps import Differences
from edgewise.errors import EdgewiseError, LossError, SecondDerivativeError
from edgewise.loss.objective import Objective

GOOD_ERROR = 1e-2  # relative: for a comparison, no better step is looked for
WORST_ERROR = 5e-2  # beyond, there is no product
_SHORTER = 1 / 64  # of a step: where kinks lie in between, its product is another one
_MOST_SINGLE = 24  # products in float32, before those in float64 are tried


class CentralDifference(HvpRoute):
    """Differences of gradients; in float64, where those in float32 are too coarse and the loss allows it.

    `Differences` chooses the step along the first vector. That may tell little of another one: `look_along` is for what
    has been found.

    Args:
        objective: the loss L.
        in_double: makes the same objective in float64.
        rtol: that eigenvalues are wanted to; a product in float32 should not be off by more than half of it.
    """

    name = "difference"
    is_exact = False

    def __init__(
        self, objective: Objective, in_double: Callable[[], Objective] | None = None, rtol: float = 1e-3
    ) -> None:
        super().__init__(objective)
        self._own = self._chosen = Differences(objective, self)
        self._double: Differences | None = None  # where they are possible, and precise
        is_single = objective.dtype is not torch.float64 and not objective.ranks.sharded
        self._make_double = in_double if is_single else None  # and not tried yet
        self._good = rtol / 2
        self._is_ready = self._is_changed = False
        self._num_single = 0
        self.reason = ""  # why not in the precision of the objective

    @property
    def is_spent(self) -> bool:
        """Whether there have been so many products in float32 that it is time for float64."""
        return self._num_single >= _MOST_SINGLE and self._may_go_over

    @property
    def _may_go_over(self) -> bool:
        return self._chosen is self._own and (self._double is not None or self._make_double is not None)

    def product(self, vector: Tensor) -> Tensor:
        """Return ∇²L · vector; the first call finds the step."""
        if float(self._objective.norm(vector)) == 0:
            return torch.zeros_like(vector)
        if not self._is_ready:
            self._choose(vector)
        self._num_single += self._chosen is self._own
        return self._chosen.product(vector.to(self._chosen.objective.dtype)).to(vector)

    def rough_product(self, vector: Tensor) -> Tensor:
        """Return ∇²L · vector for a comparison, with `relative_error`."""
        self._find_step(vector, GOOD_ERROR)
        return self._own.product(vector)

    def look_along(self, vector: Tensor) -> Look:
        """Return ∇²L · vector as precisely as it can be had, for an eigenvector that was found."""
        look = self._look_in_double(vector)
        if look is None:
            before = self._own.factor
            look = Look(*self._own.look(vector, self._single_error))
            self._is_changed |= self._own.factor != before
            shorter = self._own.product(vector, _SHORTER).sub_(look.product)
            size = self._objective.reduce((shorter * vector).sum(dtype=torch.float64))
            look = Look(look.product, look.change, abs(float(size)))
        return look

    def take_closer(self, vector: Tensor) -> bool:
        """Take products as the look along the vector has shown to be better; `False` if they have been so taken."""
        if self._may_go_over and self._look_in_double(vector) is not None:
            self._go_over("too coarse for what was found")
            return True
        is_changed, self._is_changed = self._is_changed, False
        return is_changed

    def curves(self, vector: Tensor) -> bool:
        """Whether gradients differ along the vector, smoothly: not by a kink alone, as those of ReLU networks do."""
        step = self._balanced_step() / float(self._objective.norm(vector))
        product, doubled = (self._own.central(vector, factor * step) for factor in (1.0, 2.0))
        size = float(self._objective.norm(product))
        return size > 0 and float(self._objective.norm(doubled.sub_(product))) <= GOOD_ERROR * size

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
                float(self._objective.norm(self._own.central(vector, factor * step)))
                for factor in (1.0, 1 / 8)
            ]
        except EdgewiseError:  # the loss nearby is not finite
            return False
        return bool(gradient.isfinite().all()) and sizes[1] <= 2 * sizes[0] < math.inf

    def scale_of_parameters(self) -> float:
        """Return max(1, ‖θ‖)."""
        return max(1.0, float(self._own.squares.sum().sqrt()))

    def _choose(self, vector: Tensor) -> None:
        """Find the precision and the step, along the first vector."""
        if self._may_go_over:
            error = self._own.choose(vector, self._good, most=1)
            if error > self._good and self._look_in_double(vector) is not None:
                self._go_over(f"off by {error:.1g} along the first direction")
        if self._chosen is self._own:
            self._find_step(vector, self._single_error)
        self._is_ready = True

    @property
    def _single_error(self) -> float:
        """An error that is good enough where there is nothing beyond float32."""
        return self._good if self._objective.dtype is torch.float64 else max(self._good, 2e-3)

    def _find_step(self, vector: Tensor, good: float) -> None:
        if self._objective.ranks.sharded:
            self._check_scale()
        self.relative_error = self._own.choose(vector, good)
        if not self.relative_error <= WORST_ERROR:
            raise too_coarse(self.relative_error, "at the best of several steps")

    def _look_in_double(self, vector: Tensor) -> Look | None:
        """Return a look in float64; `None` where the loss refuses it, or is no more precise there."""
        double, make = self._double, self._make_double
        self._make_double = None
        if double is not None:
            before = double.factor
            look = Look(*double.look(vector.double(), self._good))
            self._is_changed |= double.factor != before
        elif make is None:
            return None
        else:
            try:
                double = Differences(make(), self)
                look = Look(*double.look(vector.double(), self._good))
            except Exception:  # what the loss cannot do in float64, it does in float32
                return None
            if not double.relative_error <= max(self._good, self._own.relative_error):
                return None
            self._double = double
        return Look(look.product.to(vector), look.change.to(vector))

    def _go_over(self, why: str) -> None:
        """Take products in float64 from now on."""
        assert self._double is not None
        self._chosen, self._is_changed = self._double, False
        self.relative_error = self._double.relative_error
        self.reason = f"Differences are taken in float64: in float32 they were {why}."

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

    def _balanced_step(self) -> float:
        """Return ε^{1/3}·max(1, ‖θ‖)."""
        return torch.finfo(self._objective.dtype).eps ** (1 / 3) * self.scale_of_parameters()


def too_coarse(error: float, where: str) -> SecondDerivativeError:
    """Return the error of products that are off by more than they may be."""
    return SecondDerivativeError(
        f"central differences of the gradient are off by about {error:.0%} {where}, more than {WORST_ERROR:.0%}: "
        "measure in a higher precision, or on a larger batch."
    )
