"""The critical learning rate: where one step of the optimizer starts to raise the loss.

The direction is whatever the optimizer's own `step()` does, taken under isolation; the search sees only the loss
as a function of the learning rate.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import (
    TRAINING_ORDER,
    a_batch,
    a_closure,
    a_loss_function,
    a_loss_value,
    a_model,
    an_optimizer,
    known_name,
    nonnegative_number,
    positive_count,
    positive_number,
    positive_share,
)
from edgewise.critical.along import along_update, current_gradients, slope_along
from edgewise.critical.landscape import BatchesLoss, ClosureLoss
from edgewise.critical.search import Line, Trace, check_gradient, paper_search, secant_search
from edgewise.critical.update import HIGHEST, Update, check_steps_alone
from edgewise.errors import Status
from edgewise.isolation import isolated
from edgewise.loss.objective import Objective
from edgewise.losses import LossFunction
from edgewise.preconditioner import rate_ratios
from edgewise.ranks import reshard, sharded_like

Method = Literal["secant", "paper"]
_FOUND = (Status.FOUND, Status.MULTIPLE_CROSSINGS)
_SEARCHES = {"secant": secant_search, "paper": paper_search}


@dataclass(frozen=True, kw_only=True)
class CriticalLRResult:
    """The critical learning rate with its bracket; rates are those of the first parameter group."""

    lr: float  # FOUND: upper end of the bracket, the smallest rate seen to raise the loss; else the lower end
    bracket: tuple[float, float]  # (does not raise the loss or 0, raises it or infinity)
    scale: float  # lr over the current rate: the factor on the rates of all groups
    status: Status
    num_forwards: int  # loss evaluations, each over all batches, beside that of a computed gradient
    loss: float  # at the current parameters
    rise: float  # of the loss at the bracket's upper end; NaN if there is none
    slope: float  # dL/dη at η = 0, as the gradient says; negative for a descent direction
    noise_floor: float  # relative resolution of lr that the loss's precision allows
    exponent: float = 1.0  # q of ΔL(η) = slope·η·(1 − (η/η_c)^q) through the bracket; 1 on a quadratic
    interval: tuple[float, float] | None = None  # 95 % confidence interval of the root, over several batches


def critical_lr(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    batch: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    gradient: Literal["compute", "current"] = "compute",
    guess: float | CriticalLRResult | None = None,
    max_lr: float | None = None,
    rtol: float = 1 / 16,
    tolerance: float | None = None,
    max_forwards: int = 60,
    method: Method = "secant",
) -> CriticalLRResult:
    """Find the critical learning rate of the optimizer's next update on this batch.

        η_c = min{η > 0 : L(θ + ηu) > L(θ)}

    with u the update of the optimizer's own `step()` over its learning rate, momentum and weight decay included. On a
    quadratic η_c = −2 g·u / uᵀHu. This is the largest stable learning rate for this update on this batch, not a best
    learning rate.

    The search follows φ(η) = (L(θ + ηu) − L(θ))/η, which is affine on a quadratic and whose value at 0 is g·u, known
    from the gradient, by secants on log scales: two or three evaluations from a good guess. One more is made at θ,
    which must give the same loss again; where that differs by a little, the noise floor says so. `method="paper"`
    is the exponential search by doubling, then bisection, of Kalra & Barkeshli (2024, section 5). In both, a loss
    that is not finite counts as raised. The bracket holds one crossing; one before it, between two rates that were
    tried, may be missed, see `Status.MULTIPLE_CROSSINGS`.

    The loss is measured as sharpness is: without autocast, in float32 or in the parameters' own precision if that is
    wider, over all ranks that train the model. All evaluations see the same dropout masks and buffers.

    Args:
        model: any module; unchanged afterwards, bit for bit.
        optimizer: any whose `step()` needs no closure, on parameters of the model; unchanged afterwards. Groups keep
            the ratios of their learning rates.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batch: anything `loss_fn` takes but `None`; a loss that takes no data is given `()`, e.g.
        batches: in place of `batch`, several: L is their mean weighted by size, and `interval` says how well it
            is known.
        gradient: "compute" takes the gradient of `loss_fn` on the batch or batches; "current" uses `.grad` as it
            stands, after unscaling and clipping, and after accumulation over micro-batches: then pass all of these.
        guess: where a rise is expected, > 0, or an earlier result for this loss, whose `lr` and `exponent` are then
            expected, and which has seen that the loss repeats; the current rate if not given.
        max_lr: where the search stops looking, > 0; no limit if not given.
        rtol: width of the bracket, relative: upper/lower − 1 ≤ rtol, at most 1.
        tolerance: δ > 0: narrow the bracket also until the loss rises by at most δ|L(θ)| at its upper end, unless it
            jumps (width 2⁻¹⁰).
        max_forwards: budget of loss evaluations; two are made at least.
        method: "secant" or "paper".

    Returns:
        `CriticalLRResult`; its status says when there is no critical rate to report.

    Raises:
        TypeError: the optimizer needs a closure, a parameter is complex, or an argument has the wrong type.
        ValueError: an argument is out of range, both `batch` and `batches` are given, the optimizer has other
            parameters than the model, or "current" finds no gradient.
        LossError: the loss at the current parameters is not a finite scalar, depends on none of them, or is another
            one when it is evaluated again; the message then names the module that differs.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.02)
        >>> batch = torch.tensor([[2.0]])
        >>> found = critical_lr(model, sgd, lambda model, x: 0.5 * model(x).square().mean(), batch)
        >>> low, high = found.bracket
        >>> low <= 2 / 4 <= high  # H = 4, so that η_c = 2/H
        True
        >>> found.num_forwards
        4

    Reference: arXiv 2406.09405, section 5 and appendix.
    """
    a_model(model, TRAINING_ORDER)
    optimizer = an_optimizer("optimizer", optimizer, TRAINING_ORDER, has_rates=True)
    a_loss_function(loss_fn, TRAINING_ORDER)
    known_name("gradient", gradient, ("compute", "current"))
    _check_batch(batch, batches)
    search = _Search(optimizer, guess, max_lr, rtol, tolerance, max_forwards, method)
    check_steps_alone(optimizer)
    _check_members(optimizer, model)
    gradients = current_gradients(optimizer) if gradient == "current" else None

    with isolated(model, optimizer) as snapshot:
        objective = Objective(model, loss_fn, [batch] if batches is None else batches, snapshot=snapshot)
        parameters = list(objective.originals.values())
        values = None
        if gradients is None:
            values, gradients = _computed_gradients(objective, optimizer)
        loss = BatchesLoss(objective, values)
        first, ranks = search.first, objective.ranks
        update = Update(
            optimizer, parameters, gradients, snapshot, ranks=ranks, first=first, dtype=objective.dtype
        )
        slope = slope_along(gradients, update.at(first), parameters, ranks)
        del gradients  # as large as the parameters
        result = search.run(loss, update, slope, doubtful=gradient == "current")
        return replace(result, interval=loss.interval(*result.bracket)) if result.status in _FOUND else result


def search_critical_lr(
    optimizer: Optimizer,
    closure: Callable[[], Tensor],
    *,
    guess: float | CriticalLRResult | None = None,
    max_lr: float | None = None,
    rtol: float = 1 / 16,
    tolerance: float | None = None,
    most_rise: float | None = None,
    most_excess: float = 0.0,
    max_forwards: int = 60,
    method: Method = "secant",
    known: float | None = None,
) -> CriticalLRResult:
    """Do what `critical_lr(gradient="current")` documents, with the loss as a closure.

    Modules are found as they run. Parameters and inputs stay in the precision they have: in half precision, the noise
    floor tells whether that was enough. `most_rise` is a tolerance in units of the loss instead of |L(θ)|, and
    `most_excess` one in units of |g·u|η, of which the larger counts: both see differences of the loss alone. To see
    that the loss repeats costs no forward where the closure gives the `known` loss, of an earlier evaluation; where it
    does not, `UnrepeatableError` is raised.
    """
    optimizer = an_optimizer("optimizer", optimizer)
    a_closure(closure)
    a_loss_value("known", known)
    search = _Search(optimizer, guess, max_lr, rtol, tolerance, max_forwards, method)
    search.most_rise = None if most_rise is None else nonnegative_number("most_rise", most_rise)
    search.most_excess = nonnegative_number("most_excess", most_excess)
    with along_update(optimizer, closure, first=search.first, known=known) as (loss, update, slope):
        return search.run(loss, update, slope, doubtful=True)


class _Search:
    """What was asked, checked before any loss is evaluated."""

    def __init__(
        self,
        optimizer: Optimizer,
        guess: float | CriticalLRResult | None,
        max_lr: float | None,
        rtol: float,
        tolerance: float | None,
        max_forwards: int,
        method: Method,
    ) -> None:
        rate_ratios(optimizer)  # raises where there are none
        known_name("method", method, _SEARCHES)
        self._method = method
        self._current = positive_number(
            "the learning rate of the first parameter group", float(optimizer.param_groups[0]["lr"])
        )
        self._rtol = positive_share("rtol", rtol, "it is the bracket's upper end over the lower one, less 1")
        self._limit = math.inf if max_lr is None else positive_number("max_lr", max_lr)
        self._tolerance = None if tolerance is None else positive_number("tolerance", tolerance)
        self.most_rise: float | None = None
        self.most_excess = 0.0
        self._max_forwards = positive_count("max_forwards", max_forwards)
        self._is_trusted = False  # whether the loss is known to repeat
        self._exponent = guess.exponent if isinstance(guess, CriticalLRResult) else 1.0
        if isinstance(guess, CriticalLRResult):
            guess = guess.lr if guess.lr > 0 else None  # nothing was found
            self._is_trusted = guess is not None
        # An earlier rate is the upper end of a bracket: the root is expected in the middle.
        first = self._current if guess is None else positive_number("guess", guess) / math.sqrt(1 + rtol)
        self.first = min(first, self._limit)

    def run(
        self, loss: ClosureLoss | BatchesLoss, update: Update, slope: float, *, doubtful: bool
    ) -> CriticalLRResult:
        """Search along the update; a `doubtful` gradient may be another loss's."""
        if not -math.inf < slope < 0:  # NaN and infinities from a gradient that is not finite included
            return self._result(loss, None, slope, Status.NOT_A_DESCENT_DIRECTION)
        if not self._is_trusted:
            loss.check_repeats()
        line = Line(
            slope=slope,
            resolution=loss.resolution,
            limit=min(self._limit, HIGHEST),
            rtol=self._rtol,
            most_rise=self._allowed_rise(loss.base),
            most_excess=self.most_excess,
            max_forwards=max(1, self._max_forwards - loss.num_forwards),
            exponent=self._exponent,
        )
        trace, status = _SEARCHES[self._method](lambda lr: loss.change(update.at(lr), lr), line, self.first)
        if doubtful and trace.high < math.inf:  # else a loss that levels off far away hides the slope
            status = check_gradient(trace) or status
        return self._result(loss, trace, slope, status)

    def _allowed_rise(self, base: float) -> float:
        if self.most_rise is not None:
            return self.most_rise
        return math.inf if self._tolerance is None else self._tolerance * abs(base)

    def _result(
        self, loss: ClosureLoss | BatchesLoss, trace: Trace | None, slope: float, status: Status
    ) -> CriticalLRResult:
        low, high, rise = (0.0, math.inf, math.nan) if trace is None else (trace.low, trace.high, trace.rise)
        lr = high if status in _FOUND else low
        noise_floor = loss.resolution / (-slope * lr) if slope < 0 and lr > 0 else math.inf
        if status in (Status.FOUND, Status.ABOVE_MAX_LR) and noise_floor > self._rtol:
            status = Status.BELOW_RESOLUTION
        return CriticalLRResult(
            lr=lr,
            bracket=(low, high),
            scale=lr / self._current,
            status=status,
            num_forwards=loss.num_forwards,
            loss=loss.base,
            rise=rise,
            slope=slope,
            noise_floor=noise_floor,
            exponent=1.0 if trace is None else trace.final_exponent(),
        )


def _check_batch(batch: Any, batches: Iterable[Any] | None) -> None:
    """Raise unless there is one batch, or a collection of them."""
    if batch is not None and batches is not None:
        raise ValueError("got both batch and batches: pass one batch, or a list of several as batches=.")
    if batch is None and batches is None:
        raise TypeError(
            "got neither batch nor batches: pass the batch that loss_fn takes, or several as batches=."
        )
    a_batch(batch)


def _check_members(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise if the optimizer trains what is not the model's: the loss along its update would leave that out."""
    reshard(model)
    own = set(model.parameters())
    for i, group in enumerate(optimizer.param_groups):
        foreign = [p for p in group["params"] if p not in own and p.requires_grad]
        if foreign:
            raise ValueError(
                f"parameter group {i} of the optimizer holds {len(foreign)} parameters that are not the model's: pass "
                "the model that holds them all, such as a module around the model and the loss's own parameters."
            )


def _computed_gradients(
    objective: Objective, optimizer: Optimizer
) -> tuple[list[float], dict[Tensor, Tensor]]:
    """Return the losses of the batches, and the gradient as `.grad` would hold it."""
    members = {p for group in optimizer.param_groups for p in group["params"]}
    values, gradients = objective.values_and_gradients()
    pairs = zip(objective.originals.values(), gradients, strict=True)
    return values, {p: sharded_like(p, g.to(p.dtype)) for p, g in pairs if g is not None and p in members}
