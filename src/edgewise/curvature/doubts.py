"""Whether torch's second derivative is that of the loss: what shows in the products themselves.

torch has a formula there, and it is wrong: at a point where it divides by zero, in an operation whose double backward
leaves a term out. What does not show takes another route to see: `hvp="checked"`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgewise.curvature.culprit import culprits
from edgewise.curvature.routes.difference import CentralDifference
from edgewise.curvature.routes.forward import ForwardRoute
from edgewise.curvature.routes.route import HvpRoute
from edgewise.curvature.routes.second_derivative import WrongDerivativeError
from edgewise.errors import SecondDerivativeError
from edgewise.loss.objective import Objective
from edgewise.loss.precision import rounding_of_products

_SHORTER = (1.0, 1 / 8, 1 / 64)  # steps aside, of which the shortest tells a jump from a change
_IN_DOUBLE = torch.finfo(torch.float64).eps ** 0.75  # rounding of a product in float64, relative, at the most
_MEND = 'use hvp="difference", or another implementation of that operation.'


class Doubts:
    """Checks of the products of exact routes; each raises `WrongDerivativeError`, and has nothing to say of others.

    A loss that is close to zero may leave little of float32: what looks wrong in it is looked at again in float64.

    Args:
        objective: whose products are checked.
        difference: its central differences.
        in_double: makes the same objective in float64.
    """

    def __init__(
        self, objective: Objective, difference: CentralDifference, in_double: Callable[[], Objective] | None
    ) -> None:
        self._objective, self._difference, self._make_double = objective, difference, in_double
        self._largest, self._longest = 0.0, 0.0  # ‖∇²L v‖/‖v‖ and ‖v‖ so far
        self._rounding = 0.0  # an asymmetry that was not there in float64
        self.num_products = 0  # taken for the checks

    def add(self, vector: Tensor, product: Tensor) -> None:
        """Take in the norms of a product that is used."""
        length, size = (float(self._objective.norm(part)) for part in (vector, product))
        if length > 0:
            self._largest = max(self._largest, size / length)
            self._longest = max(self._longest, length)

    def check_finite(self, route: HvpRoute, vector: Tensor, product: Tensor) -> None:
        """Raise where a product is not finite, though gradients and their differences around θ are."""
        if route.is_exact and not is_finite(product) and self._difference.has_limit(vector):
            raise self._wrong(
                route, "a second derivative is not finite, though gradients are, as of a norm at 0"
            )

    def check_zero(self, route: HvpRoute, vector: Tensor, product: Tensor) -> None:
        """Raise where the first product is zero, and the loss not linear; `LossError` where it depends on no parameter.

        A fused kernel may hand out gradients that it has computed before, without a graph to what they depend on.
        """
        if (
            self._largest > 0
            or float(self._objective.norm(vector)) == 0
            or self._objective.norm(product) != 0
        ):
            return
        self._objective.values_and_gradients()  # raises the LossError
        if route.is_exact and self._difference.curves(vector):
            raise self._wrong(route, "a product is zero, though gradients differ around here")

    def check_custom(self, route: HvpRoute, has_custom: bool, vector: Tensor, product: Tensor) -> None:
        """Raise where there is a custom function, and the product is not that of differences that are precise.

        Fused kernels, such as heads of language models, may save a gradient, which then seems to be a constant.
        """
        if not any(self._objective.ranks.gather(has_custom)) or not is_finite(product):
            return
        try:
            difference = self._difference.rough_product(vector)
        except SecondDerivativeError:  # too coarse to tell
            return
        bar = max(3 * self._difference.relative_error, torch.finfo(self._objective.dtype).eps ** (1 / 3))
        off = float((product - difference).norm() / difference.norm().clamp(min=1e-30))
        if off > bar and self._difference.follows_loss():
            raise self._wrong(
                route, f"a custom autograd.Function's is off by {off:.2g} from what gradients say"
            )

    def disagreement(self, route: HvpRoute, vector: Tensor, product: Tensor) -> float:
        """Return by how much an exact product is off from that of differences, relative; raise if it is too much."""
        if not route.is_exact or not is_finite(product):
            return 0.0  # there is no other route, or nothing to compare
        difference = self._difference.rough_product(vector)
        off = float((product - difference).norm() / difference.norm().clamp(min=1e-30))
        bar = max(3 * self._difference.relative_error, torch.finfo(product.dtype).eps ** (1 / 3))
        if product.norm() == 0 and difference.norm() == 0:
            return 0.0
        if off > bar:
            raise SecondDerivativeError(
                f"routes disagree by {off:.2g}, more than {bar:.2g}: the first product by {route.name} is not that of "
                "central differences. Some function's second derivative is wrong (a custom autograd.Function?), or "
                'the loss has kinks or steps, such as ReLU\'s, where no route is right: hvp="difference" measures the '
                "change of the gradient itself."
            )
        return off

    def check_steady(self, route: HvpRoute, vector: Tensor, product: Tensor) -> None:
        """Raise where a forward product jumps as θ moves by √ε: at single points, a formula may leave a term out."""
        if not isinstance(route, ForwardRoute) or float(vector.norm()) == 0 or not is_finite(product):
            return
        jump = self._jump(route, vector, product)
        if jump > 0:
            jump = self._in_double(self._jump_in_double, route, vector, otherwise=jump)
        if jump > 0:
            raise self._wrong(
                route, f"its products change by {jump:.1%} as soon as the parameters move at all"
            )

    def _jump_in_double(self, route: ForwardRoute, vector: Tensor) -> float:
        self.num_products += 1
        return self._jump(route, vector, route.product(vector))

    def _jump(self, route: ForwardRoute, vector: Tensor, product: Tensor) -> float:
        """Return by how much the product changes, relative, however short the step; 0 if it is with the step."""
        root = torch.finfo(product.dtype).eps ** 0.5
        step = root * self._difference.scale_of_parameters() / float(vector.norm())
        jumps: list[float] = []
        for factor in _SHORTER:
            aside = route.product_aside(vector, factor * step)
            self.num_products += 1
            jumps.append(float((aside - product).norm() / product.norm().clamp(min=1e-30)))
            if not jumps[-1] > 10 * root:
                return 0.0
        return jumps[-1] if jumps[-1] > jumps[0] / 2 else 0.0

    def check_symmetric(
        self, route: HvpRoute, asymmetry: float, one: Tensor, other: Tensor, allowed: float = math.inf
    ) -> None:
        """Raise where |vᵀ∇²L v′ − v′ᵀ∇²L v| is more than rounding makes of products with the vectors so far.

        √ε of them may be rounding, or else a formula that is a little wrong: that matters where it is more than is
        `allowed`, and float64 tells it. Routes that are not exact have an error bar for that.
        """
        if not route.is_exact:
            return
        dtype, size = self._objective.dtype, self._largest * self._longest**2
        share = rounding_of_products(dtype, self._objective.device)
        if share > torch.finfo(dtype).eps ** 0.5:  # multiplied in less: all of that is rounding
            allowed = math.inf
        most = share * size
        if asymmetry <= min(max(most, 10 * self._rounding), allowed):
            return
        can_tell = asymmetry > most or dtype is torch.float64
        seen = self._in_double(self._asymmetry, route, one, other, otherwise=asymmetry if can_tell else 0.0)
        explained = min(most, max(allowed, _IN_DOUBLE * size))
        if seen > explained:
            raise self._wrong(
                route, f"its products are not symmetric, by {seen:.2g}, more than {explained:.1g}"
            )
        self._rounding = max(self._rounding, asymmetry)

    def _asymmetry(self, route: HvpRoute, one: Tensor, other: Tensor) -> float:
        self.num_products += 2
        return abs(float(torch.dot(one, route.product(other)) - torch.dot(other, route.product(one))))

    def _in_double(
        self, look: Callable[..., float], route: HvpRoute, *vectors: Tensor, otherwise: float
    ) -> float:
        """Return what a look at the same route in float64 sees; otherwise what has been seen, if there is none."""
        if self._objective.dtype is torch.float64 or self._make_double is None:
            return otherwise
        try:
            return look(type(route)(self._make_double()), *(vector.double() for vector in vectors))
        except Exception:  # the loss knows float32 only
            return otherwise

    def _wrong(self, route: HvpRoute, what: str) -> WrongDerivativeError:
        names = culprits(self._objective)
        where = f"in {names}" if names else "it could not be told in which module"
        return WrongDerivativeError(f"{route.name} is not possible for this loss ({what}; {where}): {_MEND}")


def is_finite(vector: Tensor) -> bool:
    """Whether all entries are; a second vector of its size is only made where they may not be."""
    return math.isfinite(vector.norm()) or bool(vector.isfinite().all())
