"""Persistent catapults: warmup without a length."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import (
    a_closure,
    a_loss_value,
    an_optimizer,
    number_below_one,
    positive_count,
    positive_number,
)
from edgewise.critical import CriticalLRResult, closure_loss
from edgewise.errors import Status
from edgewise.warmup.adaptive import STEP_BACK, AdaptiveWarmup
from edgewise.warmup.all_or_nothing import all_or_nothing
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.scheduler import MOST_FORWARDS, as_plain, from_plain

_USABLE = (Status.FOUND, Status.MULTIPLE_CROSSINGS, Status.ABOVE_MAX_LR, Status.BUDGET_EXHAUSTED)
_FEWEST_FORWARDS = 4  # to search with, after the first search
_MOST_MOMENTUM = 0.99  # that its memory is waited for
_WITHOUT_CATAPULT = 0.1  # of the target: where to start if no rate raises the loss (Kalra & Barkeshli 2024)
_PROGRESS = (
    "_first_critical",
    "_reference",
    "_previous",
    "_sum",
    "_weight",
    "_highest_since",
    "_num_catapults",
)


class CatapultWarmup(AdaptiveWarmup):
    """Raise the learning rate to just above critical, wait until the loss has come down again, and repeat.

    Each rise is a small catapult: the loss goes up, the sharpness falls, and the critical rate η_c rises. So the
    landscape sets the pace, and there is no length to choose:

        θ* = θ₀, then, until η = η_trgt:  wait until L(θ_t) < L(θ*);  θ* = θ_t,  η = max(η, η_c(θ_t))

    with η_c the upper end of a bracket at which the loss rises by at most δ_t L(θ_t). Beyond the paper's algorithm:

    - δ_t = δ·η_c(θ₀)/η_c(θ_t): the tolerance shrinks as the landscape flattens.
    - For mini-batches, L(θ_t) is the moving average of the losses with weights `smoothing`ᵏ. The losses that are
      compared are of different batches; η_c is of one.
    - An optimizer with momentum β is given its memory, m = 1/(1 − β) updates: it starts at min(η_c, η_trgt)/m, as its
      first update does not show what m of them add up to, and each rate is kept for at least m updates.
    - One catapult raises the rate by at most `max_growth`. If the loss rises above (1 + `max_rise`) L(θ*) all the same,
      and goes on rising, the rate is halved.
    - If the rate has not risen for `patience` updates, or η_c cannot be measured on the first batch, it goes on from
      where it is as linear warmup of that length, once; `fallback` and a warning say why.

    The warmup is over when the loss has come down at the target rate.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        tolerance: δ > 0.
        smoothing: of the loss, in [0, 1); 0 compares single losses, for full batches.
        max_growth: > 1.
        max_rise: > 0.
        patience: in updates, ≥ 1.
        max_overhead: share of the training's cost so far that `observe` may add after the first search, counted in
            forwards, of which an update is three; no limit if not given.

    Attributes:
        found: the latest `CriticalLRResult`, or `None`.
        fallback: why it goes on as linear warmup, or `None`.

    Raises:
        TypeError: an argument has the wrong type, or the optimizer's step needs a closure.
        ValueError: an argument is out of range, or a target is not positive.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> warmup = CatapultWarmup(optimizer)
        >>> loss_fn = lambda: model.weight.square().square().sum()  # H = 12 w², η_c ≈ 0.3 at w = 1
        >>> for _ in range(40):
        ...     optimizer.zero_grad()
        ...     loss = loss_fn()
        ...     loss.backward()
        ...     warmup.observe(loss_fn, loss=loss)
        ...     optimizer.step()
        ...     warmup.step()
        >>> warmup.finished, optimizer.param_groups[0]["lr"]
        (True, 1.0)
        >>> warmup.report().num_catapults > 1
        True

    Reference: arXiv 2406.09405, appendix on persistent catapult warmup.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        tolerance: float = 0.1,
        smoothing: float = 0.9,
        max_growth: float = 2.0,
        max_rise: float = 1.0,
        patience: int = 200,
        max_overhead: float | None = None,
    ) -> None:
        optimizer = an_optimizer("optimizer", optimizer, has_rates=True)
        self.tolerance = positive_number("tolerance", tolerance)
        self.smoothing = number_below_one("smoothing", smoothing)
        self.max_growth = _above_one("max_growth", max_growth)
        self.max_rise = positive_number("max_rise", max_rise)
        self.patience = positive_count("patience", patience)
        self.found: CriticalLRResult | None = None
        self._first_critical = math.nan
        self._reference = math.inf  # L(θ*)
        self._previous = math.inf  # the loss observed last
        self._sum = self._weight = 0.0  # of the moving average
        self._highest_since = 0
        self._num_catapults = 0
        super().__init__(optimizer, fallback_length=self.patience, max_overhead=max_overhead)

    @all_or_nothing
    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Compare the loss to the reference; where it has come down, measure η_c and raise the rate.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping, at every update. Where
        several ranks train the model, they must all call it.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward.
            loss: the value that was just computed for `backward()`. Without it, `closure` is evaluated at each update,
                for a third of the training's cost during the warmup.

        Raises:
            TypeError: `closure` is not a function without arguments, or `loss` is not a number.
            ValueError: no parameter has a gradient.
            LossError: the closure does not return a finite scalar tensor, or `loss` is a tensor of another kind.
        """
        a_closure(closure)
        a_loss_value("loss", loss)
        if self._end is not None:
            return
        value = self._loss(closure, loss)
        if value is None:
            return
        if not math.isfinite(value):
            self._fall_back(f"the loss is {value}")
            self._apply()
            return
        mean, rising = self._average(value)
        if self.found is None:
            self._catapult(closure, mean, value)
        elif rising and value > self._reference + self.max_rise * abs(self._reference):
            self._num_step_backs += 1
            self._set_factor(STEP_BACK * self._factor)
        elif mean < self._reference and self._updates - self._rates[-1][0] >= self._memory:
            if self._factor == 1.0:
                self._end = self._updates + 1
            else:
                self._catapult(closure, mean, value)
        if self._end is None and self._updates - self._highest_since >= self.patience:
            self._stop_waiting()
        self._apply()

    def report(self) -> WarmupReport:
        """Return what has happened so far."""
        return self._report(
            steps_to_target=self._reached,
            num_catapults=self._num_catapults,
            num_step_backs=self._num_step_backs,
        )

    def _loss(self, closure: Callable[[], Tensor], loss: Tensor | float | None) -> float | None:
        """Return the mean loss over the ranks that train the model; `None` if there is no budget to evaluate it."""
        if loss is None:
            if self._affordable(self._updates + 1) < 1 and self.found is not None:
                return None
            self.num_forwards += 1
            value, self._ranks = closure_loss(closure, self._parameters)
            return value
        return self._given_loss(closure, loss)

    def _average(self, value: float) -> tuple[float, bool]:
        """Add a loss to the moving average; return that, and whether the loss is higher than the one before."""
        rising, self._previous = value > self._previous, value
        self._sum = self.smoothing * self._sum + (1 - self.smoothing) * value
        self._weight = self.smoothing * self._weight + (1 - self.smoothing)
        return self._sum / self._weight, rising

    def _catapult(self, closure: Callable[[], Tensor], mean: float, value: float) -> None:
        """Make this place the reference, and raise the rate to η_c where that is higher."""
        first = self.found is None
        affordable = MOST_FORWARDS if first else self._affordable(self._updates + 1)
        if affordable < _FEWEST_FORWARDS:
            return
        shrink = 1.0 if self.found is None else min(1.0, self._first_critical / self.found.lr)
        found = self._search(
            closure,
            max_forwards=affordable,
            guess=self.found,
            tolerance=shrink * self.tolerance,
            known=value,
        )
        self._reference = mean
        if found is None:
            return
        if found.status in _USABLE and found.lr > 0:
            self._raise_to(found)
        elif first and found.status is not Status.NOT_A_DESCENT_DIRECTION:  # that may be one batch's
            start = _WITHOUT_CATAPULT if found.status is Status.NO_CATAPULT else self._factor
            self._fall_back(f"no critical learning rate, {found.status.value}", start=start)

    def _raise_to(self, found: CriticalLRResult) -> None:
        above = found.status is Status.ABOVE_MAX_LR
        factor = 1.0 if above else min(1.0, found.lr / float(self.base_lrs[0]))
        if self.found is None:
            self._first_critical = found.lr
            factor /= self._memory
        else:
            factor = min(factor, self.max_growth * self._factor)
        if self.found is None or factor > self._factor:
            self._num_catapults += 1
            self._set_factor(factor)
        self.found = found

    def _stop_waiting(self) -> None:
        if self._factor == 1.0:
            self._end = self._updates + 1
        elif self.found is None:
            self._fall_back(f"no critical learning rate was found within {self.patience} updates")
        else:
            self._fall_back(f"the rate has not risen for {self.patience} updates")

    @property
    def _unmeasured(self) -> bool:
        return self._weight == 0.0 and self._end is None

    def _set_factor(self, factor: float) -> None:
        if factor > max(factor for _, factor in self._rates):
            self._highest_since = self._updates
        super()._set_factor(factor)

    @property
    def _memory(self) -> int:
        """The updates over which the optimizer averages gradients, m = 1/(1 − β); 1 without momentum."""
        decays = [_momentum(group) for group in self.optimizer.param_groups]
        return max(1, round(1 / (1 - min(max(decays), _MOST_MOMENTUM))))

    def _settings(self) -> dict[str, Any]:
        names = ("tolerance", "smoothing", "max_growth", "max_rise", "patience")
        return {name: getattr(self, name) for name in names}

    def _progress(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _PROGRESS}
        return super()._progress() | own | {"found": as_plain(self.found)}

    def _restore(self, progress: dict[str, Any]) -> None:
        super()._restore(progress)
        self.found = from_plain(CriticalLRResult, progress["found"])
        for name in _PROGRESS:
            setattr(self, name, progress[name])


def _momentum(group: dict[str, Any]) -> float:
    """Return β of a parameter group, under the names that torch's optimizers use; 0 without."""
    return float(group.get("momentum") or (group.get("betas") or (0.0,))[0])


def _above_one(name: str, value: object) -> float:
    number = positive_number(name, value)
    if number <= 1:
        raise ValueError(f"{name} must be greater than 1, got {number:g}: the rate could not rise.")
    return number
