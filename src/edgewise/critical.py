"""The critical learning rate: where one step of the optimizer starts to raise the loss.

The direction is whatever the optimizer's own `step()` does, taken under isolation; the search sees only the loss
as a function of the learning rate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from edgewise.errors import Status, known_name, positive_count, positive_number
from edgewise.isolation import Snapshot, isolated
from edgewise.losses import LossFunction, checked_loss, differentiable_loss
from edgewise.parameters import inner
from edgewise.preconditioner import rate_ratios

_HERE = "the current parameters"
_VISIBLE = 16  # times the loss's resolution: the smallest change that is taken for one
_MAX_RAISES = 40  # factors of 8, from the smallest to the largest float


@dataclass(frozen=True, kw_only=True)
class CriticalLRResult:
    """The critical learning rate with its bracket; rates are those of the first parameter group."""

    lr: float  # FOUND: upper end of the bracket, the smallest rate seen to raise the loss; else the lower end
    bracket: tuple[float, float]  # (does not raise the loss or 0, raises it or infinity)
    scale: float  # lr over the current rate: the factor on the rates of all groups
    status: Status
    num_forwards: int  # loss evaluations, that at the current parameters included
    slope: float  # dL/dη at η = 0; negative for a descent direction
    noise_floor: float  # relative resolution of lr that the loss's precision allows


def critical_lr(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    batch: Any,
    *,
    gradient: Literal["compute", "current"] = "compute",
    guess: float | None = None,
    max_lr: float | None = None,
    rtol: float = 1 / 16,
    max_forwards: int = 60,
) -> CriticalLRResult:
    """Find the critical learning rate of the optimizer's next update on this batch.

        η_c = min{η > 0 : L(θ − ηu) > L(θ)}

    with u the update direction of the optimizer's own `step()`, momentum and weight decay included. On a
    quadratic η_c = 2 g·u / uᵀHu. Exponential search by doubling or halving, then bisection (Kalra & Barkeshli
    2024, section 5); a non-finite loss counts as raised. This is the largest stable learning rate for this
    update on this batch, not a best learning rate.

    Args:
        model: any module; unchanged afterwards, bit for bit.
        optimizer: any `torch.optim` optimizer whose `step()` needs no closure; unchanged afterwards. Groups
            keep the ratios of their learning rates.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batch: anything `loss_fn` takes.
        gradient: "compute" takes the gradient of `loss_fn` on `batch`; "current" uses `.grad` as it stands
            (after unscaling and clipping).
        guess: where the search starts, > 0; the current rate if not given. A good guess saves forwards.
        max_lr: where the search stops looking, > 0; no limit if not given.
        rtol: width of the bracket, relative: upper/lower − 1 ≤ rtol.
        max_forwards: budget of loss evaluations.

    Returns:
        `CriticalLRResult`; its status says when there is no critical rate to report.

    Raises:
        TypeError: the optimizer needs a closure, or an argument has the wrong type.
        ValueError: an argument is out of range, or "current" finds no gradient.
        LossError: the loss at the current parameters is not a finite scalar.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> batch = torch.tensor([[2.0]])
        >>> found = critical_lr(model, sgd, lambda model, x: 0.5 * model(x).square().mean(), batch)
        >>> low, high = found.bracket
        >>> low <= 2 / 4 <= high  # H = 4, so that η_c = 2/H
        True

    Reference: arXiv 2406.09405, section 5 and appendix.
    """
    return search_critical_lr(
        optimizer,
        lambda: loss_fn(model, batch),
        model=model,
        gradient=gradient,
        guess=guess,
        max_lr=max_lr,
        rtol=rtol,
        max_forwards=max_forwards,
    )


def search_critical_lr(
    optimizer: Optimizer,
    closure: Callable[[], Tensor],
    *,
    model: nn.Module | None = None,
    gradient: Literal["compute", "current"] = "current",
    guess: float | None = None,
    max_lr: float | None = None,
    rtol: float = 1 / 16,
    max_forwards: int = 60,
) -> CriticalLRResult:
    """Do what `critical_lr` documents, with the loss as a closure; without `model`, modules are found as they run."""
    known_name("gradient", gradient, ("compute", "current"))
    positive_number("rtol", rtol)
    positive_count("max_forwards", max_forwards)
    check_steps_alone(optimizer)
    ratios = rate_ratios(optimizer)
    current = positive_number(
        "the learning rate of the first parameter group", float(optimizer.param_groups[0]["lr"])
    )
    limit = math.inf if max_lr is None else positive_number("max_lr", max_lr)
    first = min(current if guess is None else positive_number("guess", guess), limit)
    gradients = _current_gradients(optimizer) if gradient == "current" else None

    with isolated(model, optimizer) as snapshot:
        trial = _TrialSteps(optimizer, closure, snapshot, ratios, gradients)
        first, slope = trial.visible(first, limit)
        if not -math.inf < slope < 0:  # NaN and infinities from a gradient that is not finite included
            return _result(trial, (0.0, math.inf), current, slope, Status.NOT_A_DESCENT_DIRECTION)
        bracket, status = _search(trial, first, limit, rtol, max_forwards, smallest=trial.resolution / -slope)
        return _result(trial, bracket, current, slope, status, rtol)


def check_steps_alone(optimizer: Optimizer) -> None:
    """Raise if the optimizer's step needs a closure."""
    if isinstance(optimizer, LBFGS):
        raise TypeError(
            "LBFGS evaluates the loss inside its step: critical_lr needs a step() without closure."
        )


class _TrialSteps:
    """The loss after the optimizer's own step at a trial rate, as a function of that rate."""

    def __init__(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Tensor],
        snapshot: Snapshot,
        ratios: list[float],
        gradients: dict[Tensor, Tensor] | None,
    ) -> None:
        self._optimizer = optimizer
        self._closure = closure
        self._snapshot = snapshot
        self._ratios = ratios
        self.num_forwards = 1
        if gradients is None:
            loss, gradients = _loss_and_gradients(optimizer, closure)
        else:
            with torch.no_grad():
                loss = closure()
        self._gradients = gradients
        self.base = checked_loss(loss, _HERE).item()
        self.resolution = torch.finfo(loss.dtype).eps * abs(self.base)

    def raises_loss(self, lr: float) -> bool:
        """Whether one step at `lr` raises the loss; a non-finite loss counts as raised."""
        self._step(lr)
        self._snapshot.rewind_randomness()
        self.num_forwards += 1
        with torch.no_grad():
            loss = float(self._closure())
        return not loss <= self.base

    def slope(self, lr: float) -> float:
        """Return g·(θ' − θ)/lr = dL/dη at 0, from one step at `lr`."""
        self._step(lr)
        moved = [p.detach().double() - self._snapshot.saved(p).double() for p in self._gradients]
        return inner(list(self._gradients.values()), moved) / lr

    def visible(self, lr: float, limit: float) -> tuple[float, float]:
        """Return the first rate from `lr` up whose step the loss can show, and the slope measured there.

        A smaller step is rounded away in the parameters, at least in part, and says nothing of the direction.
        """
        slope = self.slope(lr)
        for _ in range(_MAX_RAISES):
            if abs(slope) * lr >= _VISIBLE * self.resolution or lr >= limit:
                break
            lr = min(8 * lr, limit)
            slope = self.slope(lr)
        return lr, slope

    def _step(self, lr: float) -> None:
        self._snapshot.rewind()
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * ratio)
            else:
                group["lr"] = lr * ratio
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient.clone()  # some optimizers overwrite the gradient
        type(self._optimizer).step(self._optimizer)  # the class's: schedulers patch the instance's
        for parameter in self._gradients:
            parameter.grad = None


def _search(
    trial: _TrialSteps, first: float, limit: float, rtol: float, max_forwards: int, *, smallest: float
) -> tuple[tuple[float, float], Status]:
    """Bracket the first rise by doubling or halving from `first`, then bisect on the log scale.

    Below `smallest`, the expected fall of the loss is less than its precision: there is nothing to see.
    """
    low, high, lr = 0.0, math.inf, first
    while trial.num_forwards < max_forwards:
        if trial.raises_loss(lr):
            high = lr
        else:
            low = lr
        if low >= limit:
            return (low, math.inf), Status.ABOVE_MAX_LR
        if low == 0:
            lr = high / 2
            if lr < smallest:
                return (low, high), Status.BELOW_RESOLUTION
        elif high == math.inf:
            lr = min(2 * low, limit)
        elif high / low - 1 <= rtol:
            return (low, high), Status.FOUND
        else:
            lr = math.sqrt(low * high)
    return (low, high), Status.BUDGET_EXHAUSTED


def _result(
    trial: _TrialSteps,
    bracket: tuple[float, float],
    current: float,
    slope: float,
    status: Status,
    rtol: float = math.inf,
) -> CriticalLRResult:
    low, high = bracket
    lr = high if status is Status.FOUND else low
    noise_floor = trial.resolution / (-slope * lr) if slope < 0 and lr > 0 else math.inf
    if status in (Status.FOUND, Status.ABOVE_MAX_LR) and noise_floor > rtol:
        status = Status.BELOW_RESOLUTION
    return CriticalLRResult(
        lr=lr,
        bracket=bracket,
        scale=lr / current,
        status=status,
        num_forwards=trial.num_forwards,
        slope=slope,
        noise_floor=noise_floor,
    )


def _current_gradients(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    gradients = {p: p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    if not gradients:
        raise ValueError(
            "no parameter of the optimizer has a gradient: call this between loss.backward() and optimizer.step()."
        )
    return gradients


def _loss_and_gradients(
    optimizer: Optimizer, closure: Callable[[], Tensor]
) -> tuple[Tensor, dict[Tensor, Tensor]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    with torch.enable_grad():
        loss = differentiable_loss(checked_loss(closure(), _HERE), _HERE)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss, {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}
