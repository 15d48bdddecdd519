"""What is inspected: a model with its optimizer, its loss and a few of its batches, checked before any compute."""

import functools
import glob
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import nn
from torch.optim import Optimizer

from edgewise.advice.supply import check_batches, generators_of
from edgewise.arguments import a_loss_function, a_model, an_optimizer, learning_rate
from edgewise.isolation.random_states import RandomStates
from edgewise.loss.batches import batch_size, with_own_containers
from edgewise.loss.checks import LossFunction
from edgewise.optimizers.groups import check_minimizes
from edgewise.optimizers.update import check_steps_alone
from edgewise.parameters import check_real_groups, select_parameters
from edgewise.ranks import ranks_of

ORDER = ("model", "optimizer", "loss_fn", "batches")
FEW = 4  # batches that several measurements are made on


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What `inspect` was given."""

    model: nn.Module
    optimizer: Optimizer  # out of its wrappers
    loss_fn: LossFunction
    batches: Iterable[Any]  # can be read again and again
    few: list[Any]  # the first ones, at most FEW
    names: list[str]  # of the parameters that are trained
    left_out: list[str]  # of those that require a gradient, and are not in the optimizer
    seed: int

    @property
    def rate(self) -> float:
        """The first group's rate, in whose units rates are said."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def patterns(self) -> list[str]:
        """Patterns that match the trained parameters alone."""
        return [glob.escape(name) for name in self.names]

    @property
    def is_fresh(self) -> bool:
        """Whether the optimizer has made no step yet."""
        return not any(self.optimizer.state.values())


def a_subject(
    model: nn.Module, optimizer: Optimizer, loss_fn: LossFunction, batches: Iterable[Any], seed: int
) -> Subject:
    """Return what is inspected, or raise what `inspect` documents; nothing but a few batches is read."""
    a_model(model, ORDER)
    optimizer = an_optimizer("optimizer", optimizer, ORDER, has_rates=True)
    a_loss_function(loss_fn, ORDER)
    check_batches(batches)
    check_real_groups(optimizer)
    _check_unfrozen(model)
    trained = select_parameters(model)
    members = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    names = [name for name, parameter in trained.items() if parameter in members]
    _check_members(model, members, names)
    _check_rates(optimizer)
    if (num := ranks_of(model).num) > 1:
        raise ValueError(
            f"the model is trained by {num} processes, inspect works in one: call it on the model inside "
            "DistributedDataParallel, before it is wrapped or sharded, in a process of its own."
        )
    check_steps_alone(optimizer)
    few = first_of(batches, FEW)
    if any(batch_size(batch) is None for batch in few):
        few = few[:1]  # what has no size cannot be weighted by it
    return Subject(
        model=model,
        optimizer=optimizer,
        loss_fn=_on_its_own_batch(loss_fn),
        batches=batches,
        few=few,
        names=names,
        left_out=[name for name in trained if name not in names],
        seed=seed,
    )


def _on_its_own_batch(loss_fn: LossFunction) -> LossFunction:
    """Return the loss on a batch with containers of its own: it may take entries out, and a batch is looked at again.

    >>> batch = {"inputs": 1.0, "labels": 2.0}
    >>> _on_its_own_batch(lambda model, batch: batch.pop("labels"))(None, batch), batch
    (2.0, {'inputs': 1.0, 'labels': 2.0})
    """

    @functools.wraps(loss_fn)
    def on_a_copy(model: nn.Module, batch: Any) -> Any:
        return loss_fn(model, with_own_containers(batch))

    return on_a_copy


def first_of(batches: Iterable[Any], number: int) -> list[Any]:
    """Return the first batches, at least one; what a loader draws for them, it draws again afterwards.

    >>> first_of([1, 2, 3], 2)
    [1, 2]
    """
    states = RandomStates(generators_of(batches))
    try:
        found = list(islice(batches, number))
    finally:
        states.restore()
    if not found:
        raise ValueError(
            "batches is empty: give at least one batch; where they run out, they are read from the start."
        )
    return found


def _check_unfrozen(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"none of the model's {len(list(model.parameters()))} parameters requires a gradient: unfreeze what is to "
            "train, as by model.requires_grad_(), before the optimizer is made."
        )


def _check_members(model: nn.Module, members: set[Any], names: list[str]) -> None:
    """Raise where the optimizer is another model's, in whole or in part."""
    foreign = members - set(model.parameters())
    if not names or foreign:
        held = f"{len(members)} parameters, of which {len(foreign)} are not the model's"
        if not foreign:
            held = f"none of the model's parameters that require a gradient, but {len(members)} frozen ones"
        raise ValueError(
            f"the optimizer holds {held}: make it on the parameters of this model, once these are as they are trained "
            "(model.to(...), a new head, requires_grad), such as torch.optim.AdamW(model.parameters())."
        )


def _check_rates(optimizer: Optimizer) -> None:
    rates = [learning_rate(group, i) for i, group in enumerate(optimizer.param_groups)]
    if rates[0] == 0:
        first = optimizer.param_groups[0].get("initial_lr")
        cause = f", where a scheduler has put it (it started from {float(first):.3g})" if first else ""
        raise ValueError(
            f"the learning rate of parameter group 0 is 0{cause}: inspect needs the rate that you ask about. Make no "
            "scheduler before it, or set optimizer.param_groups[0]['lr'] to the rate that the warmup is to end at."
        )
    check_minimizes(optimizer)
