"""The one place that promises: observing never changes training."""

from edgewise.isolation.snapshot import Snapshot, isolated

__all__ = ["Snapshot", "isolated"]
