"""The critical learning rate: the optimizer's update, the loss along it, and where that first rises."""

from edgewise.critical.along import gradient_size
from edgewise.critical.best_step import search_best_step
from edgewise.critical.landscape import closure_loss
from edgewise.critical.measure import critical_lr, search_critical_lr
from edgewise.critical.results import BestStepResult, CriticalLRResult
from edgewise.critical.searching import FEWEST_FORWARDS, Searching

__all__ = [
    "FEWEST_FORWARDS",
    "BestStepResult",
    "CriticalLRResult",
    "Searching",
    "closure_loss",
    "critical_lr",
    "gradient_size",
    "search_best_step",
    "search_critical_lr",
]
