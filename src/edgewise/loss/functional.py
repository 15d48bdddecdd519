"""The loss of a batch with other tensors in the place of the model's parameters, as torch.func needs it."""

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.loss.checks import LossFunction


def evaluated_at(
    parameters: dict[Tensor, Tensor], model: nn.Module, loss_fn: LossFunction, batch: Any
) -> Tensor:
    """Return the loss with other tensors in the place of parameters, and buffers that it may write to.

    Tied parameters are named once for each module that holds them. torch's own tie_weights would also name a
    module twice that is registered under two names, and not put its parameters back.
    """
    whole = _LossModule(model, loss_fn)
    replaced: dict[str, Tensor] = {}
    for prefix, module in whole.named_modules():
        path = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter in parameters:
                replaced[path + name] = parameters[parameter]
        for name, buffer in module.named_buffers(recurse=False):
            replaced[path + name] = buffer.clone()
    return torch.func.functional_call(whole, replaced, (batch,), tie_weights=False)


class _LossModule(nn.Module):
    """The loss as a module's forward, so that torch.func can replace the parameters inside."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)
