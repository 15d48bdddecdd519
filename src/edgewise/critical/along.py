"""The loss of a closure along the coming update of an optimizer: what every search over its rates looks at."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor
from torch.optim import Optimizer

from edgewise.critical.landscape import ClosureLoss
from edgewise.isolation import isolated
from edgewise.optimizers.update import Update
from edgewise.parameters import absolute_sums, check_real_groups, inner, unflatten
from edgewise.ranks import Ranks


@contextmanager
def along_update(
    optimizer: Optimizer, closure: Callable[[], Tensor], *, first: float, known: float | None = None
) -> Iterator[tuple[ClosureLoss, Update, Callable[[float], float]]]:
    """Yield the loss, the update u and what g·u is at a rate, g the gradients as they stand, inside `isolated`.

    Args:
        optimizer: whose step needs no closure.
        closure: returns the loss on the batch of the gradients.
        first: a rate > 0 that will be looked at, in units of the first group's.
        known: the loss, as an earlier evaluation had it.
    """
    check_real_groups(optimizer)  # also of groups that came later
    gradients = current_gradients(optimizer)
    parameters = list(gradients)
    dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    with isolated(optimizer=optimizer) as snapshot:
        loss = ClosureLoss(closure, parameters, snapshot, known=known)
        update = Update(
            optimizer, parameters, gradients, snapshot, ranks=loss.ranks, first=first, dtype=dtype
        )
        yield loss, update, lambda lr: slope_along(gradients, update.at(lr), parameters, loss.ranks)


def current_gradients(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Return parameter → `.grad`, or raise if there is none."""
    gradients = {p: p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    if not gradients:
        raise ValueError(
            "no parameter of the optimizer has a gradient: call this between loss.backward() and optimizer.step()."
        )
    return gradients


def gradient_size(optimizer: Optimizer, ranks: Ranks) -> float:
    """Return Σ|g|, which nothing can be measured with where it is zero, infinite or NaN; collective."""
    return sum(absolute_sums(list(current_gradients(optimizer).values()), ranks))


def slope_along(
    gradients: dict[Tensor, Tensor], direction: Tensor, parameters: Sequence[Tensor], ranks: Ranks
) -> float:
    """Return g·u = dL/dη at 0."""
    parts = dict(zip(parameters, unflatten(direction, parameters), strict=True))
    known = [p for p in gradients if p in parts]
    slope = inner([gradients[p] for p in known], [parts[p] for p in known])
    return (
        float(ranks.sum(torch.tensor(slope, dtype=torch.float64, device="cpu"))) if ranks.sharded else slope
    )
