"""Optimizers: torch's own with another initial state."""

from edgewise.optim.gi_adam import GIAdam, GIAdamW

__all__ = ["GIAdam", "GIAdamW"]
