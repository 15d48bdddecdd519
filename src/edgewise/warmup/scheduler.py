"""What all warmups share beside their position: `observe`, `then`, the report, a state of plain numbers."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.arguments import an_optimizer, positive_share
from edgewise.critical import (
    CriticalLRResult,
    Searching,
    closure_loss,
    gradient_size,
    search_critical_lr,
)
from edgewise.errors import UnrepeatableError, warn
from edgewise.loss.checks import checked_loss
from edgewise.optimizers.groups import floats, like_rates
from edgewise.ranks import Ranks
from edgewise.warmup.apart import check_not_apart
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.state import FORMAT, Result, Saved
from edgewise.warmup.then import WarmupThen, agree_on_targets, check_follower
from edgewise.warmup.updates import UpdateSchedule

_COUNTS = ("_step_count", "_updates", "num_forwards", "num_searches")
_SINCE_FORMAT = ("format", "lr")  # entries that states without a format lack
_FORWARDS_PER_STEP = 3  # a backward costs about two forwards
MOST_FORWARDS = 60  # of one search
_MOST_WAITS = 200  # updates that say nothing, before the first that can be measured


class Warmup(UpdateSchedule):
    """A schedule of factors, at most 1, on the rates the optimizer was made with: its targets.

    The position, `last_epoch`, is the number of steps that the optimizer has made, whenever and however often `step()`
    is called: one that a `GradScaler` skips does not count. Subclasses say the factor of each update, when the warmup
    is over, and what `observe` does.

    Args:
        optimizer: any; its groups' rates are the targets, and their ratios are kept.
        max_overhead: share of the training's cost that `observe` may add, above 0 and at most 1; no limit if not
            given. Counted in forwards, of which a training step is three.
    """

    _ranks: Ranks | None = None  # once they are known
    _since_format: tuple[str, ...] = ()  # further entries that states without a format lack
    _argument_names: tuple[str, ...] = ()  # arguments that a saved state must agree with …
    _may_differ: tuple[str, ...] = ()  # … but for these
    _scales_follower = False  # whether it may end below the target, at a rate that what follows starts from

    def __init__(self, optimizer: Optimizer, *, max_overhead: float | None = None) -> None:
        self.max_overhead = (
            None
            if max_overhead is None
            else positive_share("max_overhead", max_overhead, "0.03 is 3 %, None is no limit")
        )
        self.num_forwards = 0
        self.num_searches = 0
        self.fallback: str | None = None
        self._waits_until = 0  # the first update that has to be measured before it is made
        self._has_follower = False
        self._has_warned_late = False
        super().__init__(an_optimizer("optimizer", optimizer))

    @abstractmethod
    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Look at the loss, between `loss.backward()` and `optimizer.step()`."""

    @property
    @abstractmethod
    def _unmeasured(self) -> bool:
        """Whether it needs a measurement before the first update, and there is none."""

    @abstractmethod
    def report(self) -> WarmupReport:
        """Return what has happened so far."""

    @abstractmethod
    def _go_linear(self, start: float | None) -> None:
        """Let linear warmup begin with the coming update, at a factor, or at the one that it has."""

    @abstractmethod
    def _progress(self) -> dict[str, Any]:
        """Return what changes along the run beside the position, as plain numbers and strings."""

    @abstractmethod
    def _read(self, saved: Saved) -> dict[str, Any]:
        """Return the attributes that `_progress` told of, or raise `ValueError`; change nothing."""

    def export(self) -> list[float]:
        """Return the realised warmup: the factor on the target rates of each update made, to the end of the warmup.

        Replay it with `LambdaLR(optimizer, lambda update: factors[min(update, len(factors) - 1)])`.
        """
        return [self.factor_at(update) for update in range(self.length)]

    @property
    def length(self) -> int:
        """How many of the updates made belong to the warmup; all of it, once it is `finished`."""
        return self._updates if self._end is None else min(self._updates, self._end)

    def then(self, scheduler: LRScheduler) -> WarmupThen:
        """Return a scheduler that runs this warmup and then `scheduler`, from its step 0 on.

        The rates are those of torch's `SequentialLR` with one milestone at the end of the warmup, scaled to the rate
        that was found where that is below the target. What a scheduler keeps as a rate of its own, such as `eta_min`,
        is not scaled.

        Args:
            scheduler: a fresh scheduler on the same optimizer; its lengths do not count the warmup.

        Raises:
            ValueError: another optimizer, a scheduler or warmup already under way, or called twice.
            TypeError: the scheduler needs a metric, is made of several, is a warmup itself, or (`EdgeWarmup`) has rates
                of its own alone.
        """
        check_follower(self, scheduler, scaled=self._scales_follower)
        if self._has_follower:
            raise ValueError(
                "then() was already called on this warmup: write what follows as one scheduler, e.g. LambdaLR."
            )
        self._has_follower = True
        agree_on_targets(self, scheduler)
        return WarmupThen(self, scheduler)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._argument_names}

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, and copies of parameters where needed; `weights_only=True` loads them."""
        self._before_saving()
        if self.last_epoch >= 0:
            self._adopt_groups()
        return {
            "format": FORMAT,
            "warmup": type(self).__name__,
            **self._settings(),
            **self._progress(),
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "lr": floats(self.optimizer) if self._is_over or self._is_shared else None,
            "last_epoch": self.last_epoch,
            **{name: getattr(self, name) for name in _COUNTS},
            "fallback": self.fallback,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved warmup stood; writes its rates to the optimizer.

        Raises:
            ValueError: the state is that of another class of warmup, or of other arguments, or lacks entries, or has
                foreign ones. Then nothing has changed.
        """
        read = self._checked(state_dict)
        lr = read.pop("lr")
        self._is_led = self._is_led or self.last_epoch < 0
        vars(self).update(read)
        self._step_share.spend()
        self._doubt = self._complaint = None
        self._is_shared = lr is not None and not self._is_over
        self._written_factor = self.factor_at(self.last_epoch)
        if self._is_led:  # whose turn it is, SequentialLR knows; the rates come with the optimizer's state
            self._written.forget()
        else:
            self._written.write(self.get_lr() if lr is None else lr)
        self._last_lr = like_rates(self.optimizer.param_groups, floats(self.optimizer))

    def _checked(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes that a state tells of, or raise what `load_state_dict` documents; change nothing."""
        saved = Saved(state_dict, "the saved state", self._parameters)
        settings = {"warmup": type(self).__name__, **self._settings()}
        for name, ours in settings.items():
            theirs = saved.get(name)
            if theirs != ours and name not in self._may_differ:
                raise ValueError(
                    f"the saved state has {name} = {theirs!r}, this warmup has {ours!r}: "
                    "construct it with the saved values to resume."
                )
        saved.check_keys(self.state_dict(), optional=_SINCE_FORMAT + self._since_format)
        num = len(self.optimizer.param_groups)
        bases = saved.numbers("base_lrs", num)
        if saved.get("lr") is not None:
            saved.check_rates("lr", num)
        return {
            "base_lrs": like_rates(self.optimizer.param_groups, bases),
            "lr": saved.get("lr"),
            "last_epoch": saved.count("last_epoch", least=-2 if self._is_led or self.last_epoch < 0 else 0),
            **{name: saved.count(name) for name in _COUNTS},
            "fallback": saved.text_or_none("fallback"),
            **self._read(saved),
        }

    def _arrive(self) -> None:
        if self._unmeasured:
            self._fall_back(
                "nothing was measured before the first update; call observe() between backward() and step()"
            )

    def _observes(self, *, looks: bool = True) -> bool:
        """Whether it is on: bring the position up to date, and say if what it `looks` at is too late."""
        if self._is_closed or self.last_epoch < 0 or (self._is_led and self._updates > self.last_epoch):
            return False  # a SequentialLR has not come to it yet, or is past it
        self._check_alone()
        if looks and not self._has_warned_late and self._used.stand:
            self._has_warned_late = True
            warn(
                "observe() was called after optimizer.step(): the gradients are those of the update already made. "
                "Call it between loss.backward() and optimizer.step()."
            )
        if self._updates > self.last_epoch:
            self._whole.catch_up()
        self._adopt_groups()
        return True

    def _search(
        self, closure: Callable[[], Tensor], asked: Searching, known: float | None
    ) -> CriticalLRResult | None:
        """Search η_c, as `_counted` does."""
        return self._counted(lambda: search_critical_lr(self.optimizer, closure, asked, known=known))

    def _counted(self, search: Callable[[], Result]) -> Result | None:
        """Search, and count what that took; where the loss does not repeat, fall back and return `None`.

        See that it is the update of these gradients that is made, and of all ranks.
        """
        self.num_searches += 1
        try:
            found = search()
        except UnrepeatableError as error:
            self.num_forwards += error.num_forwards
            self._fall_back(str(error).removesuffix("."))
            return None
        self.num_forwards += found.num_forwards
        self._watch_gradients()
        if self.num_searches == 1:
            check_not_apart(self.optimizer, found.loss, self._ranks)
        return found

    def _watch_gradients(self) -> None:
        """Warn if the gradients that were measured with are not those of the coming update."""
        self._gradients.note(self.optimizer, self._updates)

    def _has_gradient(self, closure: Callable[[], Tensor]) -> bool:
        """Whether the gradients can be measured with: not all zero, and all finite, on every rank."""
        return 0 < gradient_size(self.optimizer, self._ranks_of(closure)) < math.inf

    def _wait(self) -> None:
        """Let the coming update be made although it was not measured: its loss or gradients say nothing."""
        self._waits_until = self._updates + 1
        if self._updates >= _MOST_WAITS:
            self._fall_back(
                f"of {_MOST_WAITS} updates none could be measured: losses or gradients were zero or not finite"
            )

    def _closure_loss(self, closure: Callable[[], Tensor]) -> float:
        """Return the closure's loss, not finite only where the gradients are not: the step is about to be skipped."""
        self.num_forwards += 1
        value, self._ranks = closure_loss(closure, self._parameters, finite=False)
        if not math.isfinite(value) and self._has_gradient(closure):
            checked_loss(torch.tensor(value, device="cpu"), "the current parameters")
        return value

    def _given_loss(self, closure: Callable[[], Tensor], loss: Tensor | float) -> float:
        """Return the mean of a given loss over the ranks that train the model."""
        ranks = self._ranks_of(closure)
        given = loss if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64, device="cpu")
        own = checked_loss(given, "this update", finite=False).detach().double()
        return float(ranks.sum(own.cpu())) / ranks.num

    def _ranks_of(self, closure: Callable[[], Tensor]) -> Ranks:
        """Return the ranks that train the model: the closure shows which modules run."""
        if self._ranks is None:
            alone = not (dist.is_available() and dist.is_initialized())
            self._ranks = Ranks() if alone else closure_loss(closure, self._parameters, finite=False)[1]
        return self._ranks

    def _affordable(self, updates: int) -> int:
        """Return how many forwards `max_overhead` leaves over so many updates."""
        if self.max_overhead is None:
            return MOST_FORWARDS
        left = self.max_overhead * _FORWARDS_PER_STEP * updates - self.num_forwards
        return max(0, min(MOST_FORWARDS, math.floor(left)))

    def _report(
        self,
        *,
        steps_to_target: int | None,
        steps_saved: float | None = None,
        num_catapults: int = 0,
        num_step_backs: int = 0,
        num_spikes: int = 0,
        lr_held: float | None = None,
    ) -> WarmupReport:
        target = float(self.base_lrs[0])
        return WarmupReport(
            warmup=type(self).__name__,
            updates=self._updates,
            finished=self.finished,
            lr_start=target * self.factor_at(0),
            lr=target * self.factor_at(self.last_epoch),
            lr_target=target,
            steps_to_target=steps_to_target,
            steps_saved=steps_saved,
            num_catapults=num_catapults,
            num_step_backs=num_step_backs,
            num_spikes=num_spikes,
            lr_held=lr_held,
            num_searches=self.num_searches,
            num_forwards=self.num_forwards,
            overhead=self.num_forwards / (_FORWARDS_PER_STEP * max(1, self._updates)),
            fallback=self.fallback,
        )

    def _fall_back(self, reason: str, *, start: float | None = None) -> None:
        """Give up looking: from here on this is plain linear warmup."""
        self.fallback = reason
        self._gradients.forget()
        self._go_linear(start)
        self._give_up_copies()
        warn(f"{type(self).__name__} goes on as plain linear warmup: {reason}.")
