"""Warmups: torch schedulers that may look at the loss."""

from edgewise.warmup.linear import LinearWarmup

__all__ = ["LinearWarmup"]
