"""The update of any optimizer as a vector: what its own `step()` moves the parameters by, per unit of learning rate."""

import inspect
import math
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from edgewise.isolation import Snapshot, isolated
from edgewise.optimizers.groups import rate_ratios, set_rates
from edgewise.parameters import unflatten
from edgewise.ranks import Ranks, local

_SHORT = 2.0**-4  # of ‖θ‖: a step so long that rounding of the parameters hardly counts
_RAISE, _MOST_RAISES = 2.0**20, 8  # of a rate whose step is rounded away, at least in part
_FACTOR = 2.0**8  # up to which rate, over that of such a step, u is compared
_NEARLY_ZERO = 1e-3  # of the largest of the matrices' root mean squares
_NONLINEAR = 2.0**-10  # relative difference of u that rounding does not explain
_STEPPING_ALONE: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # that were tried
HIGHEST = 2.0**96  # rate that is ever tried: kernels hold rates, and multiples of them, in float32


def check_steps_alone(optimizer: Optimizer) -> None:
    """Raise if the optimizer's step needs a closure: by a trial of it, which leaves no trace.

    The trial has one gradient, zero, of the smallest parameter. A step that fails with a closure as it does without is
    not to be had here (it may be in evaluation mode), and nothing is said about it.
    """
    if optimizer in _STEPPING_ALONE:
        return
    alone = _failure(optimizer)
    closure = None if alone is None else _closure_of(optimizer)
    if closure is not None:
        given = _failure(optimizer, *closure.args[1:], **closure.kwargs)
        if (type(given), str(given)) != (type(alone), str(alone)):
            raise TypeError(
                f"{type(optimizer).__name__} evaluates the loss inside its step: critical_lr and the warmups that "
                "measure need a step() without closure."
            ) from alone
    _STEPPING_ALONE.add(optimizer)


def _failure(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Exception | None:
    """Return what a step raises."""
    with isolated(optimizer=optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        for smallest in sorted(parameters, key=Tensor.numel)[:1]:
            smallest.grad = torch.zeros_like(smallest)
        try:
            type(optimizer).step(optimizer, *args, **kwargs)  # the class's: schedulers patch the instance's
        except Exception as error:
            return error
    return None


def _closure_of(optimizer: Optimizer) -> inspect.BoundArguments | None:
    """Return how the step is given a closure, here one of a loss that is 0; `None` if it takes none."""
    signature, closure = inspect.signature(type(optimizer).step), lambda: torch.zeros(())
    for args, kwargs in (((), {"closure": closure}), ((closure,), {})):
        with suppress(TypeError):
            return signature.bind(optimizer, *args, **kwargs)
    return None


class Update:
    """u(η) = (θ′ − θ)/η, θ′ the parameters after the optimizer's own step at rate η, from the same state each time.

    For most optimizers u does not depend on η: then two or three steps are taken in all. The optimizer's state is given
    up afterwards: one vector of the parameters' size is held besides the snapshot's copy of them. For the others
    (Adafactor, whose step depends on its length; Rprop; ASGD) a step is taken at each rate.

    Args:
        optimizer: whose step needs no closure.
        parameters: the entries of u, in order; others are moved by no one.
        gradients: parameter → what `.grad` is to be at each step.
        snapshot: of the surrounding `isolated`, from which parameters and state come back.
        ranks: over which the parameters are sharded, if they are.
        first: a rate > 0 to begin with, in units of the first group's.
        dtype: of u.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        gradients: dict[Tensor, Tensor],
        snapshot: Snapshot,
        *,
        ranks: Ranks,
        first: float,
        dtype: torch.dtype,
    ) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)
        self._gradients = gradients
        self._snapshot = snapshot
        self._ranks = ranks
        self._ratios = rate_ratios(optimizer)
        size = sum(local(p).numel() for p in self._parameters)
        self._vector = torch.zeros(size, dtype=dtype, device=local(self._parameters[0]).device)
        self._rate = 0.0  # at which the vector was taken
        # Of u and θ, of each parameter: at a rate that shows beside rounding, or where u depends on it, at the last.
        self._norms: list[list[float]] = []
        self.is_linear = self._take(first)
        snapshot.rewind()
        if self.is_linear:
            self._gradients = {}
            snapshot.release_optimizer()

    def at(self, lr: float) -> Tensor:
        """Return u(lr), shape (n,); the same memory each time."""
        if not self.is_linear and self._rate != lr:
            self._norms = self._step(lr)[:, 1:].sqrt().tolist()
            self._snapshot.rewind()
        return self._vector

    def relative_length(self, lr: float, matrices: Collection[Tensor] | None = None) -> float:
        """Return the largest ‖u_W‖/‖W‖ of a matrix W ≠ 0, of these or of all; where there is none, ‖u‖/‖θ‖ of all.

        A matrix is a parameter of two dimensions or more. One whose entries are less than a thousandth of another's, as
        class tokens are at first, counts as 0: it is made, not overwritten. Gains and biases do not count beside them.
        LayerNorm's gains can hold most of ‖θ‖, and hide that random features are lost. It is 0 where all of θ is.
        """
        self.at(lr)
        norms = dict(zip(self._parameters, self._norms, strict=True))
        entries = {
            p: size / math.sqrt(p.numel()) for p, (_, size) in norms.items() if p.dim() > 1 and size > 0
        }
        least = _NEARLY_ZERO * max(entries.values(), default=0.0)
        counted = entries if matrices is None else set(matrices)
        shares = [
            norms[p][0] / norms[p][1] for p, entry in entries.items() if entry >= least and p in counted
        ]
        if shares:
            return max(shares)
        length, size = (math.hypot(*each) for each in zip(*self._norms, strict=True))
        return length / size if size > 0 else 0.0

    def _take(self, rate: float) -> bool:
        """Fill the vector from steps long enough to be precise, and tell whether u is the same at both."""
        highest = HIGHEST / max(self._ratios)
        for _ in range(_MOST_RAISES):
            squares = self._step(rate)
            _, length, size = squares.sum(0).sqrt().tolist()
            share = length * rate / size if size > 0 else 1.0
            if not share < _SHORT or rate >= highest:  # NaN too: a longer step tells no more
                break
            rate = min(rate * (min(_SHORT / share, _RAISE) if share > 0 else _RAISE), highest)
        self._norms = squares[:, 1:].sqrt().tolist()
        change, length, _ = self._step(_FACTOR * rate).sum(0).sqrt().tolist()
        self._rate = 0.0  # the norms are those of another
        rounding = max(torch.finfo(p.dtype).eps for p in self._parameters) * size / rate
        return change <= _NONLINEAR * length + rounding

    def _step(self, lr: float) -> Tensor:
        """Write u(lr) to the vector; return the squared norms of its change, of itself, and of θ, a row a parameter."""
        self._rate = lr
        self._snapshot.rewind()
        set_rates(self._optimizer, [lr * ratio for ratio in self._ratios])
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient.clone()  # some optimizers overwrite the gradient
        type(self._optimizer).step(self._optimizer)  # the class's: schedulers patch the instance's
        for parameter in self._gradients:
            parameter.grad = None
        squares = torch.zeros(len(self._parameters), 3, dtype=torch.float64, device=self._vector.device)
        parts = unflatten(self._vector, self._parameters)
        for row, part, parameter in zip(squares, parts, self._parameters, strict=True):
            before = local(self._snapshot.saved(parameter)).to(part.dtype)
            new = (local(parameter.detach()).to(part.dtype) - before).div_(lr)
            row.copy_(torch.stack([(new - part).square().sum(), new.square().sum(), before.square().sum()]))
            part.copy_(new)
        return self._ranks.sum(squares) if self._ranks.sharded else squares
