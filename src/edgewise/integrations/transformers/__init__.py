"""edgewise in the `Trainer` of Hugging Face's transformers and in those of TRL: two callbacks."""

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "edgewise.integrations.transformers needs transformers and accelerate: pip install 'edgewise[transformers]'"
    ) from error

from edgewise.integrations.transformers.monitoring import MonitorCallback
from edgewise.integrations.transformers.warming import EdgeWarmupCallback

__all__ = ["EdgeWarmupCallback", "MonitorCallback"]
