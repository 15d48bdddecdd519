"""By how much eigenvalues may be off that inexact products have led to, by a closer look along the eigenvectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise.curvature.lanczos import FLOOR
from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.results import EigenResult


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Of a pair (θ, v) from what a closer look at Av says, relative to θ."""

    index: int = 0  # of the pair
    error: float = 0.0  # |λ − θ| ≤ (error + rtol)·θ for some eigenvalue λ
    explained: float = 0.0  # of it, what the look itself may be off by


def deviations(operator: SymmetricOperator, found: EigenResult, rtol: float) -> list[Deviation]:
    """Return the deviation of each pair; none where products are exact."""
    floor = FLOOR * torch.finfo(operator.dtype).eps * float(found.values.abs().max())
    pairs = enumerate(zip(found.vectors.T, found.values.tolist(), strict=True))
    each = [_deviation(operator, i, vector, value, rtol, max(floor, 1e-30)) for i, (vector, value) in pairs]
    return [deviation for deviation in each if deviation is not None]


def _deviation(
    operator: SymmetricOperator, index: int, vector: Tensor, value: float, rtol: float, floor: float
) -> Deviation | None:
    """‖Av − θv‖ bounds |λ − θ|, and is known to what the look is off by."""
    look = operator.look_along(vector.to(operator.dtype))
    if look is None:
        return None

    def dot(one: Tensor, other: Tensor) -> float:
        return float(operator.reduce((one * other).sum(dtype=torch.float64)))

    unit = max(abs(value), floor)
    residual = look.product - value * vector
    residual_norm, change = (dot(part, part) ** 0.5 / unit for part in (residual, look.change))
    off = abs(dot(vector, look.product) - value) / unit
    explained = change + look.jump / unit
    return Deviation(index=index, error=max(off, residual_norm - rtol) + explained, explained=explained)
