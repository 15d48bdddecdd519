"""What an optimizer does with a gradient: its groups' rates, its preconditioner, its update, its stability limit."""

from edgewise.optimizers.gi_adam import GIAdam, GIAdamW

__all__ = ["GIAdam", "GIAdamW"]
