"""Edgewise in Lightning: callbacks that warm up at the edge of stability, and that follow the sharpness of a run.

    trainer = L.Trainer(callbacks=[EdgeWarmupCallback(), MonitorCallback(max_overhead=0.02)])

The page docs/how-to/lightning.md says what they do and when.
"""

try:
    import lightning.pytorch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "edgewise.integrations.lightning needs Lightning, which is not installed: pip install 'edgewise[lightning]'."
    ) from error

from edgewise.integrations.lightning.monitor import MonitorCallback
from edgewise.integrations.lightning.warmup import EdgeWarmupCallback

__all__ = ["EdgeWarmupCallback", "MonitorCallback"]
