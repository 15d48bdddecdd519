"""edgewise: learning-rate warmup that knows the edge of stability."""

from edgewise.advice.inspection import inspect
from edgewise.advice.result import InspectionResult
from edgewise.critical import CriticalLRResult, critical_lr
from edgewise.curvature import SharpnessResult, hessian, preconditioned_sharpness, sharpness
from edgewise.errors import (
    EdgewiseError,
    LossError,
    PreconditionerError,
    SecondDerivativeError,
    SideEffectError,
)
from edgewise.isolation import isolated
from edgewise.isolation.side_effects import assert_no_side_effects
from edgewise.loss.update_loss import UpdateLoss
from edgewise.monitor.monitor import Monitor
from edgewise.monitor.regime import MonitorRow
from edgewise.optimizers import GIAdam, GIAdamW
from edgewise.optimizers.preconditioner import register_preconditioner
from edgewise.optimizers.stability import StabilityLimitResult, stability_limit
from edgewise.status import Status
from edgewise.warmup import CatapultWarmup, EdgeWarmup, LinearWarmup, WarmupReport

__version__ = "0.1.0"

__all__ = [
    # measurements
    "sharpness",
    "preconditioned_sharpness",
    "hessian",
    "critical_lr",
    "stability_limit",
    # optimizers
    "GIAdam",
    "GIAdamW",
    "register_preconditioner",
    # advice
    "inspect",
    # following a run
    "Monitor",
    "UpdateLoss",
    # warmup
    "EdgeWarmup",
    "LinearWarmup",
    "CatapultWarmup",
    # results and evidence
    "SharpnessResult",
    "CriticalLRResult",
    "StabilityLimitResult",
    "MonitorRow",
    "WarmupReport",
    "InspectionResult",
    "Status",
    # trust
    "isolated",
    "assert_no_side_effects",
    # errors
    "EdgewiseError",
    "LossError",
    "PreconditionerError",
    "SecondDerivativeError",
    "SideEffectError",
]


def __dir__() -> list[str]:
    return sorted(__all__)
