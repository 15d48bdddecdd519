"""Ranks that train one model by losses of their own: their rates would part."""

import math

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from edgewise.errors import LossError
from edgewise.optimizers.groups import parameters
from edgewise.parameters import inner
from edgewise.ranks import Ranks, said_by_all


def check_not_apart(optimizer: Optimizer, loss: float, ranks: Ranks | None) -> None:
    """Raise where all processes hold the same parameters and gradients, but each has measured a loss of its own.

    Args:
        optimizer: with the gradients of its next update.
        loss: that was measured.
        ranks: over which it was averaged; more than one are in step already.

    Processes that train models of their own, or do not train, are waited for for a few seconds, once.

    Raises:
        LossError: on all ranks.
    """
    alone = not (dist.is_available() and dist.is_initialized())
    if alone or (ranks is not None and ranks.group is not None):
        return
    own = parameters(optimizer)
    gradients = [p.grad for p in own if p.grad is not None]
    losses = said_by_all(f"{_size([p.detach() for p in own])} {_size(gradients)}", repr(loss))
    if losses is not None and len(set(losses)) > 1:
        raise LossError(
            f"the {len(losses)} processes train one model, as their parameters and gradients are the same, but the "
            f"closure returns another loss on each ({', '.join(losses)}), so that their learning rates would part: "
            "call the DistributedDataParallel module in it, not the module inside, or return the mean over the "
            "processes."
        )


def _size(tensors: list[torch.Tensor]) -> str:
    """Return a number that only the same bits have, as text."""
    dense = [tensor if tensor.layout is torch.strided else tensor.to_dense() for tensor in tensors]
    return repr(math.sqrt(inner(dense, dense)))
