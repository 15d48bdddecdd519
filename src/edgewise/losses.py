"""What a loss must be to be measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from edgewise.errors import LossError
from edgewise.threads import Override

LossFunction = Callable[[nn.Module, Any], Tensor]

_CHECKPOINT_WARNS = Override(checkpoint, "check_backward_validity")


def checked_loss(loss: object, of: str, *, finite: bool = True) -> Tensor:
    """Return `loss` if it is a scalar tensor, and finite if it must be, or raise `LossError`; it is that `of` what."""
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss of {of} must be a scalar tensor, got {type(loss).__name__}: return the mean loss "
            "as computed by torch, without .item()."
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise LossError(
            f"the loss of {of} must be one floating-point number, got shape {tuple(loss.shape)} and "
            f"{loss.dtype}: reduce it with .mean()."
        )
    if finite and not torch.isfinite(loss.detach()):
        raise LossError(
            f"the loss of {of} is {loss.item()}: measure at finite parameters and check the inputs for NaN."
        )
    return loss.reshape(())


def differentiable_loss(loss: Tensor, of: str) -> Tensor:
    """Return `loss` if it has a graph, or raise `LossError`; `of` names where it came from."""
    if not loss.requires_grad:
        raise LossError(
            f"the loss of {of} has no graph to the parameters: do not call .item(), .detach() "
            "or torch.no_grad() inside loss_fn, and use the model it is given."
        )
    return loss


@contextmanager
def forward_only() -> Iterator[None]:
    """No graph, and no warning of torch's that a reentrant checkpoint has none, in this thread."""
    with torch.no_grad(), _CHECKPOINT_WARNS.by(lambda original, inputs: None):
        yield
