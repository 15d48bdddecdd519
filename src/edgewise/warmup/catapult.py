"""Persistent catapults: warmup without a length."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import (
    an_optimizer,
    number_below_one,
    positive_count,
    positive_number,
)
from edgewise.critical import FEWEST_FORWARDS, CriticalLRResult, Searching, search_critical_lr
from edgewise.optimizers.averages import momentum
from edgewise.signals.losses import Overflows
from edgewise.status import Status
from edgewise.warmup.adaptive import AdaptiveWarmup, latest_end
from edgewise.warmup.all_or_nothing import all_or_nothing
from edgewise.warmup.copies import NoCopies
from edgewise.warmup.forwards import MOST_FORWARDS
from edgewise.warmup.observation import closure_and_loss
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.state import Saved, as_plain

_USABLE = (Status.FOUND, Status.MULTIPLE_CROSSINGS, Status.ABOVE_MAX_LR, Status.BUDGET_EXHAUSTED)
_EXPECTED = (
    1 / 8
)  # of |g·u|η_c: what the best step along the update takes from a quartic; from a quadratic, 1/4
_NOISE = 6.0  # mean deviations of the loss
_KNOWN = (
    1 - 1 / math.e
)  # weight of the moving averages, from which on they tell of noise: 1/(1 − smoothing) losses
_FARTHER = 1 / 4  # of a rise that has halved the rate: how much farther the loss must rise to halve it again
_MOST_MOMENTUM = 0.99  # that its memory is waited for
_WITHOUT_CATAPULT = 0.1  # of the target: where to start if no rate raises the loss (Kalra & Barkeshli 2024)
_PROGRESS = (
    "_first_critical",
    "_reference",
    "_limit",
    "_previous",
    "_sum",
    "_deviation",
    "_weight",
    "_highest_since",
    "_num_catapults",
)


class CatapultWarmup(AdaptiveWarmup):
    """Raise the learning rate to just above critical, wait until the loss has come down again, and repeat.

    Each rise is a small catapult: the loss goes up, the sharpness falls, and the critical rate η_c rises. So the
    landscape sets the pace, and there is no length to choose:

        θ* = θ₀, then, until η = η_trgt:  wait until L(θ_t) < L(θ*);  θ* = θ_t,  η = max(η, η_c(θ_t))

    with η_c the upper end of a bracket at which the loss rises by at most δ_t·max(|g·u|η_c/8, 6D),
    δ_t = δ·η_c(θ₀)/η_c(θ_t). g·u is its slope along the update, and D the mean deviation of the losses, of which only
    differences count. L(θ_t) is the moving average of the losses of batches with weights `smoothing`ᵏ. The page
    docs/warmups.md says why, and where this is not the paper's algorithm.

    - *Start:* min(η_c, η_trgt)/m, where m = 1/(1 − β) updates are the memory of momentum β. Each rate is kept for at
      least m updates, and one catapult raises it by at most `max_growth`.
    - *Halved* is the rate where the loss rises above L(θ*) by more than `max_rise` times |g·u|η_c/4, or times 6D, if
      that is more; and again where it rises by a quarter more. So it is where three losses in a row are not finite, or
      an update was made on one. Gradients that are all zero or not finite are waited out, within the patience.
    - *Fallback:* if the rate has not risen for `patience` updates, η_c cannot be measured at the start, or the loss
      rises below 1/512 of the first rate, it goes on as linear warmup of that length, once. `fallback` and a warning
      say why.
    - *End:* when the loss has come down at the target rate; with `then_until` at half of the run at the latest, at the
      rate it has, from which the decay starts.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        tolerance: δ > 0, in units of |g·u|η_c/8 or 6D.
        smoothing: of the loss, in [0, 1); 0 compares single losses, for full batches.
        max_growth: > 1.
        max_rise: > 0, in units of |g·u|η_c/4 or 6D.
        patience: in updates, ≥ 1.
        max_overhead: share of the training's cost so far that `observe` may add after the first search, counted in
            forwards, of which an update is three; no limit if not given.

    Attributes:
        found: the latest `CriticalLRResult`, or `None`.
        fallback: why it goes on as linear warmup, or `None`.

    Raises:
        TypeError: an argument has the wrong type, or the optimizer's step needs a closure.
        ValueError: an argument is out of range, a target is not positive, or a group maximizes.

    Examples:
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

    _argument_names = ("tolerance", "smoothing", "max_growth", "max_rise", "patience")
    _copies = NoCopies()

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
        self._limit = math.inf  # of the loss, beyond which the rate is halved
        self._previous = math.inf  # the loss observed last
        self._sum = self._deviation = self._weight = 0.0  # of the moving averages of L and |L − L̄|
        self._highest_since = 0
        self._num_catapults = 0
        self._overflows = Overflows()
        super().__init__(optimizer, fallback_length=self.patience, max_overhead=max_overhead)

    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Compare the loss to the reference; where it has come down, measure η_c and raise the rate.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping, at every update. Where
        several ranks train the model, they must all call it.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward; or an
                `UpdateLoss`, to which the micro-batches of the update have been added, and which knows their loss.
            loss: the value that was just computed for `backward()`. Without it, `closure` is evaluated at each update,
                for a third of the training's cost during the warmup.

        Raises:
            TypeError: `closure` is not a function without arguments, or `loss` is not a number.
            ValueError: no parameter has a gradient; an `UpdateLoss` is empty, of another model, or given with a `loss`.
            LossError: the closure does not return a finite scalar tensor, `loss` is a tensor of another kind, or no
                share explains the losses of an `UpdateLoss`.
        """
        closure, loss = closure_and_loss(closure, loss, self.optimizer)
        self._gradients.forget()
        if self._observes(looks=self._end is None) and self._end is None:
            self._see(closure, loss)

    @all_or_nothing
    def _see(self, closure: Callable[[], Tensor], loss: Tensor | float | None) -> None:
        value = self._loss(closure, loss)
        if value is None:
            return
        self._overflows.add(value, self._updates.made)
        if self._overflows.value and self.found is not None:
            self._step_back()
        elif math.isfinite(value):
            self._move_on(closure, value)
        elif self.found is None:
            self._wait()
        if self._end is None and self._updates.made - self._highest_since >= self.patience:
            self._stop_waiting()
        self._apply()

    def report(self) -> WarmupReport:
        """Return what has happened so far."""
        return self._report(
            steps_to_target=self._table.reached,
            num_catapults=self._num_catapults,
            num_step_backs=self._table.num_step_backs,
            lr_held=self.lr_held,
        )

    def _move_on(self, closure: Callable[[], Tensor], value: float) -> None:
        if self.found is None:  # what was waited for begins here
            self._sum = self._deviation = self._weight = 0.0
        mean, rising = self._average(value)
        if self.found is None:
            self._catapult(closure, mean, value)
        elif rising and self._is_too_high(value):
            self._limit = value + _FARTHER * (value - self._reference)  # what lasts is a new level
            self._step_back()
        elif mean < self._reference and self._updates.made - self._table.rates[-1][0] >= self._memory:
            if self._factor == 1.0:
                self._finish()
            else:
                self._catapult(closure, mean, value)

    def _is_too_high(self, value: float) -> bool:
        """Whether the loss has risen too far; not below the critical rate, while the noise of the losses is unknown."""
        assert self.found is not None
        if self._weight < _KNOWN and self.found.status is Status.ABOVE_MAX_LR:
            self._limit = max(self._limit, self._reference + self.max_rise * self._noise)
            return False
        return value > self._limit

    def _step_back(self) -> None:
        if self._table.is_lowest(self._updates.made):
            self._fall_back(
                "the loss rises, or is not finite, although the rate has been halved again and again"
            )
        else:
            self._table.step_back(self._updates.made)

    def _loss(self, closure: Callable[[], Tensor], loss: Tensor | float | None) -> float | None:
        """Return the mean loss over the ranks that train the model; `None` if there is no budget to evaluate it."""
        if loss is None:
            if self._affordable(closure) < 1 and self.found is not None:
                return None
            return self._observation.loss(closure)
        return self._observation.given_loss(closure, loss)

    def _affordable(self, closure: Callable[[], Tensor]) -> int:
        return self._observation.affordable(closure, self.max_overhead, updates=self._updates.made + 1)

    def _average(self, value: float) -> tuple[float, bool]:
        """Add a loss to the moving average; return that, and whether the loss is higher than the one before."""
        rising, self._previous = value > self._previous, value
        self._sum = self.smoothing * self._sum + (1 - self.smoothing) * value
        self._weight = self.smoothing * self._weight + (1 - self.smoothing)
        mean = self._sum / self._weight
        self._deviation = self.smoothing * self._deviation + (1 - self.smoothing) * abs(value - mean)
        return mean, rising

    def _catapult(self, closure: Callable[[], Tensor], mean: float, value: float) -> None:
        """Make this place the reference, and raise the rate to η_c where that is higher."""
        first = self.found is None
        affordable = MOST_FORWARDS if first else self._affordable(closure)
        if affordable < FEWEST_FORWARDS or not self._observation.has_gradient(closure):
            return
        shrink = 1.0 if self.found is None else min(1.0, self._first_critical / self.found.lr)
        tolerance = shrink * self.tolerance
        asked = Searching(
            max_lr=float(self.base_lrs[0]),
            max_forwards=affordable,
            guess=self.found,
            most_rise=tolerance * self._noise,
            most_excess=tolerance * _EXPECTED,
        )
        found = self._search(closure, lambda: search_critical_lr(self.optimizer, closure, asked, known=value))
        if found is None:
            return
        self._refer_to(mean, found)
        if found.status in _USABLE and found.lr > 0:
            self._raise_to(found)
        elif first and found.status is not Status.NOT_A_DESCENT_DIRECTION:  # that may be one batch's
            start = _WITHOUT_CATAPULT if found.status is Status.NO_CATAPULT else self._factor
            self._fall_back(f"no critical learning rate, {found.status.value}", start=start)

    def _refer_to(self, mean: float, found: CriticalLRResult) -> None:
        """Make this place θ*, from which the loss may rise by what is expected of an update there, or by noise."""
        self._reference = mean
        expected = -2 * _EXPECTED * found.slope * found.lr
        self._limit = mean + self.max_rise * max(self._noise, expected if math.isfinite(expected) else 0.0)

    @property
    def _noise(self) -> float:
        """Six mean deviations of the losses."""
        return _NOISE * self._deviation / self._weight

    def _raise_to(self, found: CriticalLRResult) -> None:
        above = found.status is Status.ABOVE_MAX_LR
        factor = 1.0 if above else min(1.0, found.lr / float(self.base_lrs[0]))
        if self.found is None:
            self._first_critical = found.lr
            self._table.begin(self._updates.made, factor / self._memory)
            self._num_catapults += 1
            self._highest_since = self._updates.made
        else:
            factor = min(factor, self.max_growth * self._factor)
            if factor > self._factor:
                self._num_catapults += 1
                if factor > self._table.highest:
                    self._highest_since = self._updates.made
                self._table.set(self._updates.made, factor)
        self.found = found

    def _stop_waiting(self) -> None:
        if self._factor == 1.0:
            self._finish()
        elif self.found is None:
            self._fall_back(f"no critical learning rate was found within {self.patience} updates")
        else:
            self._fall_back(f"the rate has not risen for {self.patience} updates")

    def _plan(self, num_steps: int) -> None:
        self._latest_end = latest_end(num_steps)

    @property
    def _unmeasured(self) -> bool:
        return self._weight == 0.0 and self._end is None and self._updates.made > self._waits_until

    @property
    def _memory(self) -> int:
        """The updates over which the optimizer averages gradients, m = 1/(1 − β); 1 without momentum."""
        return max(1, round(1 / (1 - min(momentum(self.optimizer), _MOST_MOMENTUM))))

    def _seen(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _PROGRESS}
        return own | {"overflows": self._overflows.state_dict(), "found": as_plain(self.found)}

    def _read_seen(self, saved: Saved) -> dict[str, Any]:
        counts = ("_highest_since", "_num_catapults")
        return {
            **{name: saved.count(name) for name in counts},
            **{name: saved.number(name, finite=False) for name in _PROGRESS if name not in counts},
            "_overflows": saved.signal("overflows", Overflows()),
            "found": saved.result("found", CriticalLRResult),
        }


def _above_one(name: str, value: object) -> float:
    number = positive_number(name, value)
    if number <= 1:
        raise ValueError(f"{name} must be greater than 1, got {number:g}: the rate could not rise.")
    return number
