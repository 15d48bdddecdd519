"""Curvatures, critical rates and norms measured along a run."""

import math

from torch import nn
from torch.optim import Optimizer

from edgewise.critical.measure import critical_lr
from edgewise.critical.results import CriticalLRResult
from edgewise.curvature.follow import Follower
from edgewise.lab.configs import RunConfig
from edgewise.lab.training.losses import Batch, LossFunction

_MEASURE_BELOW = 1e6  # times the initial loss: beyond, the run is diverging and curvature means nothing


class Probe:
    """Follows the configured curvatures and critical rates, each measurement starting from the one before."""

    def __init__(
        self, config: RunConfig, model: nn.Module, loss_fn: LossFunction, optimizer: Optimizer
    ) -> None:
        self._config, self._optimizer = config, optimizer
        self._model, self._loss_fn = model, loss_fn
        self._critical: CriticalLRResult | None = None  # the latest that was found
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
            if name == "critical_lr":
                columns |= self._critical_lr(batch)
                continue
            result = self._follower.measure(name, [batch])
            columns |= {
                name: result.value,
                f"{name}_residual": result.residual,
                f"{name}_converged": float(result.converged),
                f"{name}_hvps": result.num_hvps,
            }
        return columns

    def _critical_lr(self, batch: Batch) -> dict[str, float]:
        """Return η_c of the update that is about to be made, NaN where no rate was seen to raise the loss."""
        result = critical_lr(
            self._model, self._optimizer, self._loss_fn, batch, gradient="current", guess=self._critical
        )
        if result.ok:
            self._critical = result
        return {
            "critical_lr": result.lr if result.ok else math.nan,
            "critical_lr_forwards": result.num_forwards,
        }


def _gradient_norm(optimizer: Optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _second_moment_norm(optimizer: Optimizer) -> float:
    """Return the norm of v as the last update left it; 0 before the first."""
    moments = [state["exp_avg_sq"] for state in optimizer.state.values() if "exp_avg_sq" in state]
    return float(nn.utils.get_total_norm(moments)) if moments else 0.0


_NORMS = {"gradient_norm": _gradient_norm, "second_moment": _second_moment_norm}
