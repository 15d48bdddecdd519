"""What a curvature measurement returns."""

from dataclasses import dataclass, field

from torch import Tensor

from edgewise.errors import Status


@dataclass(frozen=True, kw_only=True)
class SharpnessResult:
    """The top eigenpairs of a symmetric operator, with the evidence for them.

    Some eigenvalue of the operator lies within `residual` of `value`: |λ − value| ≤ ‖Av − value·v‖.
    """

    value: float  # the most positive eigenvalue
    values: Tensor  # (num,), float64, descending
    vectors: Tensor = field(repr=False)  # (n, num), orthonormal columns
    subspace: Tensor = field(repr=False)  # (n, k), orthonormal Ritz vectors: where a later call starts
    residual: float  # ‖Av − value·v‖, of the top pair
    status: Status
    num_hvps: int  # Hessian-vector products this call paid for
    hvp: str = "reverse"  # the route they took
    hvp_reason: str = ""  # why "auto" did not take an earlier one
    hvp_error: float = 0.0  # error bar of a product, relative; 0 for the exact routes

    @property
    def converged(self) -> bool:
        """Whether every pair's residual is within rtol."""
        return self.status is Status.CONVERGED
