"""The preconditioner of an optimizer in the precision of a measurement, which need not be that of its state."""

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.loss.objective import Objective
from edgewise.optimizers.preconditioner import Diagonal, preconditioner_of
from edgewise.parameters import unflatten
from edgewise.ranks import local


def measured_preconditioner(optimizer: Optimizer, objective: Objective, gradient: Tensor) -> Diagonal:
    """Return P in the precision of the objective, of this rank's shards.

    It is that of the optimizer whose parameters and state are so cast, or so sharded.
    """
    tensors = objective.tensors  # once: of shards, these are new objects
    gradients = unflatten(gradient, tensors)
    cast: dict[Tensor, Tensor] = dict(zip(objective.originals.values(), tensors, strict=True))
    if all(copied is original for original, copied in cast.items()):
        return preconditioner_of(optimizer, tensors, gradients)
    state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
    for parameter, entries in optimizer.state.items():
        state[cast.get(parameter, parameter)] = {
            name: local(value).to(objective.dtype) if _is_moment(value) else value
            for name, value in entries.items()
        }
    groups = [
        {**group, "params": [cast.get(p, p) for p in group["params"]]} for group in optimizer.param_groups
    ]
    twin = object.__new__(type(optimizer))  # shallow, without running a constructor: P is only read from it
    vars(twin).update({**vars(optimizer), "param_groups": groups, "state": state})
    return preconditioner_of(twin, tensors, gradients)


def _is_moment(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0
