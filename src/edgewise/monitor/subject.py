"""What a monitor can measure of a model and its optimizer, and whether these belong together."""

from collections.abc import Iterable, Sequence, Set

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from edgewise.arguments import known_name
from edgewise.curvature.follow import MEASURES, Measure
from edgewise.optimizers.groups import rate_ratios
from edgewise.optimizers.preconditioner import check_covered, diagonal
from edgewise.optimizers.stability import StabilityLimitResult
from edgewise.parameters import select_parameters
from edgewise.status import Status


def is_identity(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether P = 1: plain gradient steps of all the parameters, with one rate for all groups."""
    if diagonal.dispatch(type(optimizer)) is not diagonal.dispatch(SGD):
        return False
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return all(id(p) in moved for p in parameters) and set(rate_ratios(optimizer)) == {1.0}


def check_shared(model: nn.Module, optimizer: Optimizer, params: list[str] | None) -> torch.device:
    """Return the device of the selected parameters, or raise if the optimizer moves none of them."""
    selected = list(select_parameters(model, params).values())
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in moved for p in selected):
        raise ValueError(
            f"none of the model's {len(selected)} selected parameters is in the optimizer: pass the optimizer of "
            "this model, or other params=."
        )
    return selected[0].device


def check_same(model: nn.Module, other: nn.Module) -> None:
    """Raise unless an `UpdateLoss` is of the monitor's model, by its parameters."""
    own = {id(p) for p in model.parameters()}
    if other is not model and not any(id(p) in own for p in other.parameters()):
        raise ValueError(
            "the UpdateLoss is of another model than the Monitor, with none of its parameters: construct both on the "
            "model that trains."
        )


def measures_of(
    model: nn.Module,
    optimizer: Optimizer,
    measure: Sequence[Measure],
    limit: StabilityLimitResult,
    params: list[str] | None,
) -> tuple[Measure, ...]:
    """Return what can be measured of the curvatures asked for, or raise if that is nothing."""
    if not isinstance(measure, list | tuple | Set) or not measure:
        raise TypeError(
            f"measure must be a sequence of one or both of {', '.join(MEASURES)}, got {measure!r}: "
            'write ("sharpness",) for one.'
        )
    for name in measure:
        known_name("measure", name, MEASURES)
    if "preconditioned_sharpness" in measure and (
        limit.status is not Status.NO_PRECONDITIONER or "sharpness" not in measure
    ):
        check_covered(optimizer, list(select_parameters(model, params).values()))
        return tuple(name for name in MEASURES if name in measure)
    return ("sharpness",)
