"""Mean losses of a batch, by name."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # inputs, targets
LossFunction = Callable[[nn.Module, Batch], Tensor]


def loss_function(name: str) -> LossFunction:
    """Return `loss_fn(model, (inputs, targets))`: the mean over samples (and positions)."""
    loss_of_outputs = OF_OUTPUTS[name]

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return loss_of_outputs(model(inputs), targets)

    return loss_fn


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of −log softmax(outputs)[target], or of its mean over the shares of the classes."""
    if targets.is_floating_point():
        return F.cross_entropy(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of ½‖outputs − one-hot(target)‖², or of ½‖outputs − shares of the classes‖²."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[-1])
    return 0.5 * (outputs - targets).square().sum(-1).mean()


OF_OUTPUTS = {"xent": cross_entropy, "mse": half_squared_error}
