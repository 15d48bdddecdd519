"""Central differences of one objective's gradients, and the step that suits them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from edgewise.curvature.routes.route import HvpRoute
from edgewise.loss.objective import Objective

# Times the scale of the parameters that a direction moves. In float32, truncation and rounding leave little choice. In
# float64 steps may be short, and the shorter they are, the fewer kinks they cross.
_SINGLE = tuple(2.0 ** (-23 / 3) * factor for factor in (1 / 8, 1 / 64, 1.0, 1 / 512))
_DOUBLE = tuple(2.0 ** (-52 * 0.4) * factor for factor in (1.0, 1 / 64, 64.0, 4096.0))
_FLAT = 5e-2  # of the first product: directions that curve less may be known less precisely


class Differences:
    r"""[∇L(θ + hv) − ∇L(θ − hv)] / 2h of one objective, for unit v exact up to h²‖∇⁴L‖/6 and rounding ε‖∇L‖/h.

    h is a factor of √(Σₜ ‖vₜ‖²·‖θₜ‖²), over the parameter tensors t: a direction among small embeddings takes short
    steps, whatever else is large. Tensors of zeros have the scale 1. Richardson's rule checks h: doubling it changes
    the product by three times its truncation error, and by more than its rounding.

    Args:
        objective: the loss L.
        counter: the route that counts the differences.
    """

    def __init__(self, objective: Objective, counter: HvpRoute) -> None:
        self.objective, self._counter = objective, counter
        self._steps = _DOUBLE if objective.dtype is torch.float64 else _SINGLE
        self.factor, self.relative_error = (
            0.0,
            0.0,
        )  # chosen, and its error bar along the vector it was chosen for
        self._scale = 0.0  # ‖∇²L v‖ of the first product, for unit v
        self._squares: Tensor | None = None

    @property
    def squares(self) -> Tensor:
        """‖θₜ‖² of each tensor of the parameters."""
        if self._squares is None:
            self._squares = self._squares_of([p.detach() for p in self.objective.tensors])
        return self._squares

    def product(self, vector: Tensor, shorter: float = 1.0) -> Tensor:
        """Return ∇²L · vector, not 0, by the step that was chosen, or so many times it."""
        step = shorter * self.factor * self._length(vector)
        product = self.central(vector, step)
        self._scale = self._scale or self._size(product, vector)
        return product

    def central(self, vector: Tensor, step: float) -> Tensor:
        """Return [∇L(θ + step·vector) − ∇L(θ − step·vector)] / 2 step."""
        return self._difference(vector, step).div_(2 * step)

    def choose(self, vector: Tensor, good: float, most: int | None = None) -> float:
        """Take the first of the steps that is good along the vector, or the best; return its error bar, relative."""
        errors: dict[float, float] = {}
        for factor in dict.fromkeys((self.factor or self._steps[0], *self._steps[:most])):
            errors[factor] = self._error_at(vector, factor)
            if errors[factor] <= good:
                break
        self.factor = min(errors, key=lambda factor: errors[factor])
        self.relative_error = errors[self.factor]
        return self.relative_error

    def look(self, vector: Tensor, good: float) -> tuple[Tensor, Tensor]:
        """Return ∇²L · vector, and what doubling the step changes; if that is much, the step is chosen anew."""
        before, self.factor = self.factor, self.factor or self._steps[0]
        product, change = self._pair(vector)
        size = self._size(product, vector)
        self.relative_error = self._size(change, vector) / max(size, 1e-30)
        if self._size(change, vector) > good * max(size, _FLAT * self._scale):
            self.choose(vector, good)
            if self.factor != before:
                product, change = self._pair(vector)
        return product, change

    def _pair(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        product = self.product(vector)
        return product, self.product(vector, 2.0).sub_(product)

    def _error_at(self, vector: Tensor, factor: float) -> float:
        """Return ‖D(2h)/4h − D(h)/2h‖ ÷ ‖D(h)/2h‖, D(h) the difference of the gradients at ±h."""
        step, gradient_at = factor * self._length(vector), self.objective.gradient_at
        difference = self._difference(vector, step)
        size = self.objective.norm(difference).clamp(min=1e-30)
        difference *= 2
        difference -= gradient_at(vector, 2 * step)
        difference += gradient_at(vector, -2 * step)
        self._counter.num_products += 1
        return float(self.objective.norm(difference) / (2 * size))

    def _difference(self, vector: Tensor, step: float) -> Tensor:
        """Return ∇L(θ + hv) − ∇L(θ − hv), in place: copies of the parameters count."""
        self._counter.num_products += 1
        difference = self.objective.gradient_at(vector, step)
        difference -= self.objective.gradient_at(vector, -step)
        return difference

    def _size(self, product: Tensor, vector: Tensor) -> float:
        return float(self.objective.norm(product) / self.objective.norm(vector))

    def _length(self, vector: Tensor) -> float:
        """Return √(Σₜ ‖vₜ‖²·‖θₜ‖²) ÷ ‖v‖²: so many vectors are as long as the parameters that they move."""
        moved = self._squares_of(vector.split([p.numel() for p in self.objective.tensors]))
        scales = self.squares.where(self.squares > 0, 1.0)
        return float((moved @ scales).sqrt() / moved.sum())

    def _squares_of(self, parts: Iterable[Tensor]) -> Tensor:
        squares = torch.stack([part.square().sum(dtype=torch.float64) for part in parts])
        return self.objective.reduce(squares)
