"""Following a run: what is measured when, what it may cost, and how far from the edge training is."""

from edgewise.monitor.monitor import Monitor
from edgewise.monitor.regime import MonitorRow

__all__ = ["Monitor", "MonitorRow"]
