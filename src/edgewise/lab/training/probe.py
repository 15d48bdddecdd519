"""Curvatures and norms measured along a run."""

import math

from torch import nn
from torch.optim import Optimizer

from edgewise.curvature.follow import Follower
from edgewise.lab.configs import RunConfig
from edgewise.lab.training.losses import Batch, LossFunction

_MEASURE_BELOW = 1e6  # times the initial loss: beyond, the run is diverging and curvature means nothing


class Probe:
    """Follows the configured curvatures, each measurement starting from the one before."""

    def __init__(
        self, config: RunConfig, model: nn.Module, loss_fn: LossFunction, optimizer: Optimizer
    ) -> None:
        self._config, self._optimizer = config, optimizer
        self._follower = Follower(model, optimizer, loss_fn, rtol=config.measure_rtol)
        self._initial_loss = math.nan

    def measure(self, step: int, batch: Batch, loss: float) -> dict[str, float]:
        """Return the columns of this step's row; none on steps between measurements."""
        if step == 0:
            self._initial_loss = loss
        if step % self._config.measure_every or not loss < _MEASURE_BELOW * self._initial_loss:
            return {}
        columns: dict[str, float] = {}
        for name in self._config.measure:
            if name in _NORMS:
                columns[name] = _NORMS[name](self._optimizer)
                continue
            result = self._follower.measure(name, [batch])
            columns |= {
                name: result.value,
                f"{name}_residual": result.residual,
                f"{name}_converged": float(result.converged),
                f"{name}_hvps": result.num_hvps,
            }
        return columns


def _gradient_norm(optimizer: Optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _second_moment_norm(optimizer: Optimizer) -> float:
    """Return the norm of v as the last update left it; 0 before the first."""
    moments = [state["exp_avg_sq"] for state in optimizer.state.values() if "exp_avg_sq" in state]
    return float(nn.utils.get_total_norm(moments)) if moments else 0.0


_NORMS = {"gradient_norm": _gradient_norm, "second_moment": _second_moment_norm}
