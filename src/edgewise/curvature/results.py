"""What a curvature measurement returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from edgewise.status import Status

Signature = tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) of each parameter, in order


def signature(parameters: Mapping[str, Tensor]) -> Signature:
    """Return what tells results of these parameters from those of others."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in parameters.items())


@dataclass(frozen=True, kw_only=True)
class EigenResult:
    """The top eigenpairs of a symmetric matrix, as a solver left them.

    Some eigenvalue of the matrix lies within `residual` of `value`: |λ − value| ≤ ‖Av − value·v‖.
    """

    values: Tensor  # (num,), float64, descending
    vectors: Tensor = field(repr=False)  # (n, num), orthonormal columns
    subspace: Tensor = field(repr=False)  # (n, k), `vectors` first: the span of the best k Ritz vectors
    residual: float  # ‖Av − value·v‖, of the top pair
    status: Status
    num_products: int  # with the matrix

    @property
    def value(self) -> float:
        """The most positive eigenvalue."""
        return float(self.values[0])

    @property
    def converged(self) -> bool:
        """Whether every pair's residual is within rtol."""
        return self.status is Status.CONVERGED


@dataclass(frozen=True, kw_only=True)
class SharpnessResult:
    """The top eigenpairs of a Hessian, plain or preconditioned, with the evidence for them.

    Some eigenvalue of the operator lies within `residual` of `value`: |λ − value| ≤ ‖Av − value·v‖. Printed, a result
    reads "9 ± 1.7e-05 (CONVERGED, 2 products by reverse)".
    """

    value: float  # the most positive eigenvalue
    values: Tensor  # (num,), float64, descending
    vectors: Tensor = field(repr=False)  # (n, num), orthonormal columns
    subspace: Tensor = field(repr=False)  # (n, k), `vectors` first: where a later call starts
    residual: float  # ‖Av − value·v‖, of the top pair
    status: Status
    num_hvps: int  # Hessian-vector products of all samples this call paid for
    cost: float = 0.0  # the same, and those of a part of the samples by its share
    num_warm: int = 0  # warm starts since the last cold one
    hvp: str = "reverse"  # the route the products took
    hvp_reason: str = ""  # why "auto" did not take an earlier one
    hvp_error: float = 0.0  # of the value, relative: of differences, or what hvp="checked" found
    graph_bytes: int = 0  # held by kept graphs, counted if max_graph_bytes was given
    parameters: Signature = field(default=(), repr=False)  # whose entries the vectors have
    shares: tuple[float, ...] = field(
        default=(), repr=False
    )  # of the top eigenvector's squared norm, one a parameter

    @property
    def converged(self) -> bool:
        """Whether every pair's residual is within rtol."""
        return self.status is Status.CONVERGED

    @property
    def ok(self) -> bool:
        """Whether the values may be used as they stand: they have converged."""
        return self.converged

    def by_parameter(self) -> dict[str, float]:
        """Return the share of the top eigenvector that each parameter holds: which of them limits the rate.

            share of parameter p = Σ_{i ∈ p} v_i²,  ‖v‖ = 1

        v is the eigenvector of the matrix that was measured: of H for `sharpness`, of the symmetric form
        P^{-1/2} H P^{-1/2}, in the units of the optimizer's own steps, for `preconditioned_sharpness`. Of a tied
        parameter the first name stands. Under FSDP2 the shares are of whole parameters, the same on all ranks.

        Returns:
            name → share in [0, 1], largest first; all of them add up to 1.

        Raises:
            ValueError: the Hessian is not finite (status NOT_FINITE), so that there is no eigenvector.

        Examples:
            >>> import torch
            >>> from edgewise import sharpness
            >>> model = torch.nn.Linear(2, 1)
            >>> batch = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
            >>> result = sharpness(model, lambda model, x: model(x).square().mean(), [batch])  # H = [[9, 3], [3, 2]]
            >>> {name: round(share, 3) for name, share in result.by_parameter().items()}
            {'weight': 0.88, 'bias': 0.12}
        """
        if not math.isfinite(self.value) or not self.shares:
            raise ValueError(
                f"there is no top eigenvector to share out (status {self.status.name}): measure where the loss and its "
                "gradients are finite."
            )
        shares = {name: share for (name, _), share in zip(self.parameters, self.shares, strict=True)}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        """Return the value ± its residual and the error of the products, the status and the cost, in one line."""
        finite = math.isfinite(self.value)
        error = self.residual + self.hvp_error * abs(self.value) if finite else math.inf
        products = f"{self.num_hvps} product{'' if self.num_hvps == 1 else 's'} by {self.hvp}"
        parts = f", parts worth {self.cost - self.num_hvps:.2g} more" if self.cost > self.num_hvps else ""
        return f"{self.value:.6g} ± {error:.2g} ({self.status.name}, {products}{parts})"
