"""What all warmups share: a position in optimizer steps, `observe`, `then`, the report, a state of plain numbers."""

import math
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from edgewise.arguments import positive_number, positive_share
from edgewise.critical import BestStepResult, CriticalLRResult, closure_loss, search_critical_lr
from edgewise.errors import Status, UnrepeatableError
from edgewise.losses import checked_loss
from edgewise.ranks import Ranks
from edgewise.warmup.report import WarmupReport

_POSITION = ("last_epoch", "_step_count", "_updates", "num_forwards", "num_searches", "fallback")
_FORWARDS_PER_STEP = 3  # a backward costs about two forwards
MOST_FORWARDS = 60  # of one search
Result = TypeVar("Result", BestStepResult, CriticalLRResult)
_IDLE_CALLS = 1000  # of step() in a row without a step of the optimizer, at which to warn


class Warmup(LRScheduler):
    """A schedule of factors, at most 1, on the rates the optimizer was made with: its targets.

    The position, `last_epoch`, is the number of steps that the optimizer has made, whenever and however often `step()`
    is called: one that a `GradScaler` skips does not count. Subclasses say the factor of each update, when the warmup
    is over, and what `observe` does.

    Args:
        optimizer: any; its groups' rates are the targets, and their ratios are kept.
        max_overhead: share of the training's cost that `observe` may add, above 0 and at most 1; no limit if not
            given. Counted in forwards, of which a training step is three.
    """

    _end: int | None = None  # number of updates of the whole warmup, once it is known

    def __init__(self, optimizer: Optimizer, *, max_overhead: float | None = None) -> None:
        self.max_overhead = (
            None
            if max_overhead is None
            else positive_share("max_overhead", max_overhead, "0.03 is 3 %, None is no limit")
        )
        self.num_forwards = 0
        self.num_searches = 0
        self.fallback: str | None = None
        self._follower: LRScheduler | None = None
        self._updates = 0
        self._idle_calls = 0
        self._ranks: Ranks | None = None
        targets(optimizer)
        super().__init__(optimizer)
        optimizer.register_step_post_hook(torch.compiler.disable(self._count))

    @abstractmethod
    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""

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
    def _settings(self) -> dict[str, Any]:
        """Return the arguments that a saved state must agree with."""

    @abstractmethod
    def _progress(self) -> dict[str, Any]:
        """Return what changes along the run beside `_POSITION`, as plain numbers and strings."""

    @abstractmethod
    def _restore(self, progress: dict[str, Any]) -> None:
        """Take what `_progress` returned."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, one a group."""
        factor = self.factor_at(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Write the rates of the coming update; `epoch` is torch's deprecated argument and must be left out."""
        if not hasattr(self, "_last_lr"):  # torch's constructor
            super().step()
        elif self._advance():
            self._apply()

    def export(self) -> list[float]:
        """Return the realised warmup: the factor on the target rates of each update made, to the end of the warmup.

        Replay it with `LambdaLR(optimizer, lambda update: factors[min(update, len(factors) - 1)])`.
        """
        return [self.factor_at(update) for update in range(self.length)]

    @property
    def finished(self) -> bool:
        """Whether the updates so far include the whole warmup."""
        return self._end is not None and self.last_epoch >= self._end

    @property
    def length(self) -> int:
        """How many of the updates made belong to the warmup; all of it, once it is `finished`."""
        return self._updates if self._end is None else min(self._updates, self._end)

    def then(self, scheduler: LRScheduler) -> "WarmupThen":
        """Return a scheduler that runs this warmup and then `scheduler`, from its step 0 on.

        The rates are those of torch's `SequentialLR` with one milestone at the end of the warmup, scaled to the rate
        that was found where that is below the target. What a scheduler keeps as a rate of its own, such as `eta_min`,
        is not scaled.

        Args:
            scheduler: a fresh scheduler on the same optimizer; its lengths do not count the warmup.

        Raises:
            ValueError: another optimizer, a scheduler or warmup already under way, or called twice.
            TypeError: the scheduler needs a metric, is made of several, or (`EdgeWarmup`) has rates of its own alone.
        """
        self._check_follower(scheduler)
        if scheduler.optimizer is not self.optimizer:
            raise ValueError("then() takes a scheduler on the same optimizer, got one on another.")
        if self._follower is not None:
            raise ValueError(
                "then() was already called on this warmup: write what follows as one scheduler, e.g. LambdaLR."
            )
        if self.last_epoch > 0 or scheduler.last_epoch > 0:
            raise ValueError(
                "then() must be called before the first step of the warmup and of the scheduler."
            )
        self._follower = scheduler
        return WarmupThen(self, scheduler)

    def _check_follower(self, scheduler: LRScheduler) -> None:
        """Raise where a scheduler cannot follow."""
        compound = (ReduceLROnPlateau, SequentialLR, ChainedScheduler)
        if isinstance(scheduler, compound) or not isinstance(scheduler, LRScheduler):
            raise TypeError(
                "then() takes a single LRScheduler whose step() needs no metric, got "
                f"{type(scheduler).__name__}: write compound schedules as one LambdaLR."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, and copies of parameters where needed; `weights_only=True` loads them."""
        return {
            "warmup": type(self).__name__,
            **self._settings(),
            **self._progress(),
            "base_lrs": [float(lr) for lr in self.base_lrs],
            **{name: getattr(self, name) for name in _POSITION},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved warmup stood; writes its rates to the optimizer.

        Raises:
            ValueError: the state is that of another class of warmup, or of other arguments.
        """
        settings = {"warmup": type(self).__name__, **self._settings()}
        for name, ours in settings.items():
            if state_dict.get(name) != ours:
                raise ValueError(
                    f"the saved state has {name} = {state_dict.get(name)!r}, this warmup has {ours!r}: "
                    "construct it with the saved values to resume."
                )
        self.base_lrs = [
            ours.new_tensor(saved) if isinstance(ours, Tensor) else saved
            for ours, saved in zip(self.base_lrs, state_dict["base_lrs"], strict=True)
        ]
        for name in _POSITION:
            setattr(self, name, state_dict[name])
        self._restore(state_dict)
        self._apply()

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Count a step of the optimizer, unless a GradScaler told a fused one to skip it."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not found_inf.item():
            self._updates += 1

    def _advance(self) -> bool:
        """Move to the position of the optimizer; return whether it has made a step since."""
        if self._updates == self.last_epoch:
            self._idle_calls += 1
            if self._idle_calls == _IDLE_CALLS:
                warnings.warn(
                    f"step() was called {_IDLE_CALLS} times without a step of the optimizer, so that the warmup does "
                    "not advance: construct it on the optimizer whose step() runs, and leave that method in place.",
                    stacklevel=_level_of_caller(),
                )
            return False
        self._idle_calls = 0
        self.last_epoch = self._updates
        self._step_count += 1
        if self._unmeasured:
            self._fall_back(
                "nothing was measured before the first update; call observe() between backward() and step()"
            )
        return True

    def _search(self, closure: Callable[[], Tensor], **options: Any) -> CriticalLRResult | None:
        """Search η_c up to the target, as `_counted` does."""
        return self._counted(
            lambda: search_critical_lr(self.optimizer, closure, max_lr=float(self.base_lrs[0]), **options)
        )

    def _counted(self, search: Callable[[], Result]) -> Result | None:
        """Search, and count what that took; where the loss does not repeat, fall back and return `None`."""
        self.num_searches += 1
        try:
            found = search()
        except UnrepeatableError as error:
            self.num_forwards += error.num_forwards
            self._fall_back(str(error).removesuffix("."))
            return None
        self.num_forwards += found.num_forwards
        return found

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

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

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

    def _fall_back(self, reason: str) -> None:
        """Give up looking: from here on this is plain linear warmup."""
        self.fallback = reason
        warnings.warn(
            f"{type(self).__name__} goes on as plain linear warmup: {reason}.", stacklevel=_level_of_caller()
        )

    def _apply(self) -> None:
        """Write the current rates to the optimizer, in place where they are tensors."""
        set_rates(self.optimizer, self.get_lr())
        self._last_lr = rates(self.optimizer)


class WarmupThen(LRScheduler):
    """A warmup followed by another scheduler: made by `Warmup.then`."""

    def __init__(self, warmup: Warmup, follower: LRScheduler) -> None:
        # As torch's SequentialLR: the parts have made their first step already, so super().__init__ is not called.
        self.optimizer = warmup.optimizer
        self.warmup, self.follower = warmup, follower
        self.base_lrs = warmup.base_lrs
        self.handed_over = False
        self._found = 1.0  # factor of the warmup that the follower's rates hold
        self.last_epoch = 0
        warmup._apply()  # the follower's constructor may have written its own rates

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, also right after `observe` has raised them."""
        return rates(self.optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Write the rates of the coming update; `epoch` is torch's deprecated argument and must be left out."""
        if not self.warmup._advance():
            return
        self.last_epoch = self.warmup.last_epoch
        if self.handed_over:
            self._scale_follower()  # the warmup may have halved its rate since
            self.follower.step()
        elif self.warmup.finished:
            self._hand_over()
        else:
            self.warmup._apply()

    def _hand_over(self) -> None:
        # Chainable schedulers compute from the current rate: give them their base rate first.
        self.handed_over = True
        self._scale_follower()
        set_rates(self.optimizer, self.follower.base_lrs)
        self.follower._update_lr(0)

    def _scale_follower(self) -> None:
        """Scale the rates that the follower starts from to the warmup's factor: below 1 short of the target."""
        found = self.warmup.factor_at(self.warmup.last_epoch)
        if found != self._found:
            self.follower.base_lrs = [base * (found / self._found) for base in self.follower.base_lrs]
            self._found = found

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {
            "last_epoch": self.last_epoch,
            "handed_over": self.handed_over,
            "found": self._found,
            "warmup": self.warmup.state_dict(),
            "follower": self.follower.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved schedule stood, with the rates it had."""
        self.warmup.load_state_dict(state_dict["warmup"])
        self.follower.load_state_dict(state_dict["follower"])
        self.last_epoch, self.handed_over = state_dict["last_epoch"], state_dict["handed_over"]
        self._found = state_dict["found"]
        if self.handed_over:
            set_rates(self.optimizer, self.follower.get_last_lr())


def _level_of_caller() -> int:
    """Return the stacklevel at which a warning shows the line of the training loop."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("edgewise."):
        frame, level = frame.f_back, level + 1
    return level


def as_plain(found: BestStepResult | CriticalLRResult | None) -> dict[str, Any] | None:
    """Return a result as plain numbers and strings."""
    return None if found is None else asdict(found) | {"status": found.status.name}


def from_plain(kind: type[Result], saved: dict[str, Any] | None) -> Result | None:
    """Return what `as_plain` was given."""
    return None if saved is None else kind(**saved | {"status": Status[saved["status"]]})


def targets(optimizer: Optimizer) -> list[float]:
    """Return the rates the optimizer was made with, one a group, or raise if one is not positive."""
    made_with = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return [
        positive_number(
            f"the learning rate of parameter group {i}", lr.item() if isinstance(lr, Tensor) else lr
        )
        for i, lr in enumerate(made_with)
    ]


def rates(optimizer: Optimizer) -> list[float | Tensor]:
    """Return copies of the groups' current learning rates."""
    return [g["lr"].clone() if isinstance(g["lr"], Tensor) else g["lr"] for g in optimizer.param_groups]


def set_rates(optimizer: Optimizer, values: list[float | Tensor]) -> None:
    """Write the groups' learning rates; a tensor is filled in place, so that compiled steps see it."""
    for group, value in zip(optimizer.param_groups, values, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(float(value))
        else:
            group["lr"] = float(value)
