"""What a curvature measurement returns."""

from dataclasses import dataclass, field

from torch import Tensor

from edgewise.errors import Status

Signature = tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) of each parameter, in order


@dataclass(frozen=True, kw_only=True)
class SharpnessResult:
    """The top eigenpairs of a symmetric operator, with the evidence for them.

    Some eigenvalue of the operator lies within `residual` of `value`: |λ − value| ≤ ‖Av − value·v‖.
    """

    value: float  # the most positive eigenvalue
    values: Tensor  # (num,), float64, descending
    vectors: Tensor = field(repr=False)  # (n, num), orthonormal columns
    subspace: Tensor = field(repr=False)  # (n, k), `vectors` first: where a later call starts
    residual: float  # ‖Av − value·v‖, of the top pair
    status: Status
    num_hvps: int  # Hessian-vector products this call paid for
    num_warm: int = 0  # warm starts since the last cold one
    hvp: str = "reverse"  # the route the products took
    hvp_reason: str = ""  # why "auto" did not take an earlier one
    hvp_error: float = 0.0  # of the value, relative: of differences, or what hvp="checked" found
    graph_bytes: int = 0  # held by kept graphs, counted if max_graph_bytes was given
    parameters: Signature = field(default=(), repr=False)  # whose entries the vectors have

    @property
    def converged(self) -> bool:
        """Whether every pair's residual is within rtol."""
        return self.status is Status.CONVERGED
