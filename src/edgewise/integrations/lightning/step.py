"""The loss of a module's `training_step`, evaluated again without a trace."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from edgewise.integrations.lightning.attributes import attributes_restored
from edgewise.loss.batches import with_own_containers


def training_loss(module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    """Return what `training_step` returns for a batch, as Lightning calls it: a loss that is not divided yet.

    Within the module, also where it is inside `DistributedDataParallel`: observing needs no gradients of the ranks.
    """
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    own = with_own_containers(batch)
    output = module.training_step(*((own, batch_idx) if takes_index else (own,)))
    loss: Tensor = output["loss"] if isinstance(output, Mapping) else output
    return loss


@contextmanager
def without_trace(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Let a `training_step` inside log nothing, and count nothing in metrics and attributes of the module."""
    loggers = trainer.loggers
    with attributes_restored(module.modules()):
        for inner in module.modules():
            if isinstance(inner, LightningModule):
                vars(inner).update(log=_nothing, log_dict=_nothing)
        trainer.loggers = [DummyLogger() for _ in loggers]
        try:
            yield
        finally:
            trainer.loggers = loggers


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for what logs."""
