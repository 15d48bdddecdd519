"""Warmups: torch schedulers that may look at the loss."""

from edgewise.warmup.catapult import CatapultWarmup
from edgewise.warmup.edge import EdgeWarmup
from edgewise.warmup.linear import LinearWarmup
from edgewise.warmup.report import WarmupReport

__all__ = ["CatapultWarmup", "EdgeWarmup", "LinearWarmup", "WarmupReport"]
