"""A warmup followed by another scheduler."""

import sys
from abc import abstractmethod
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.optim.swa_utils import SWALR

from edgewise.arguments import an_optimizer
from edgewise.optimizers.groups import floats, like_rates, rates, set_rate, set_rates
from edgewise.torch_internals import CHAINED_STEP, write_first_rates
from edgewise.warmup.state import FORMAT, Saved
from edgewise.warmup.updates import UpdateSchedule

RATES_OF_THEIR_OWN = (
    OneCycleLR,
    CyclicLR,
    SWALR,
)  # of torch's, those that do not start from the groups' rates


AnyWarmup = TypeVar("AnyWarmup", bound=UpdateSchedule)


class WarmupSequence(LRScheduler, Generic[AnyWarmup]):
    """A warmup followed by another scheduler, which begins when the warmup is over."""

    def __init__(self, warmup: AnyWarmup, follower: LRScheduler) -> None:
        # As torch's SequentialLR: the parts have made their first step already, so super().__init__ is not called.
        self.optimizer = warmup.optimizer
        self.warmup, self.follower = warmup, follower
        self.handed_over = False
        self._found = 1.0  # factor of the warmup that the follower's rates hold
        warmup._place.join(self)
        warmup._written.note()  # the follower's constructor may have written its own rates
        warmup._apply()

    @abstractmethod
    def _begin(self) -> None:
        """Tell what follows that the warmup is over, or raise where it cannot begin."""

    @abstractmethod
    def _check_state(self, saved: Saved) -> None:
        """Raise `ValueError` unless what follows can go on from a state; change nothing."""

    @abstractmethod
    def _resume(self, saved: Saved) -> None:
        """Do what is due after what follows has gone on from a state."""

    @property
    def last_epoch(self) -> int:
        """The number of updates made."""
        return self.warmup.last_epoch

    @last_epoch.setter
    def last_epoch(self, value: int) -> None:
        raise TypeError(
            "SequentialLR cannot hold what then() or then_until() returns, which is a sequence already: write what "
            "follows the warmup as one scheduler, e.g. LambdaLR."
        )

    @property
    def base_lrs(self) -> list[float | Tensor]:  # type: ignore[override]
        """The warmup's targets."""
        return self.warmup.base_lrs

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, also right after `observe` has raised them."""
        return rates(self.optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Write the rates of the coming update.

        Args:
            epoch: torch's deprecated argument; the position is the number of updates made, and nothing else.

        Raises:
            TypeError: inside a `ChainedScheduler`.
            ValueError: `epoch` is another position, or another warmup is under way on the same optimizer.
        """
        if sys._getframe(1).f_code is CHAINED_STEP:
            raise TypeError(
                "ChainedScheduler cannot hold what then() or then_until() returns: chain the other schedulers to what "
                "follows, as one LambdaLR, e.g."
            )
        self.warmup.step(epoch)

    def close(self) -> None:
        """Let go of the optimizer: nothing is written any more, and the rates stay as they are. May be repeated."""
        self.warmup.close()

    def catch_up(self) -> None:
        """Write the rates of the coming update, if updates have been made since the last time."""
        moved = self.warmup._advance()
        if moved and self.handed_over:
            self._follow(moved)
        elif self.warmup._is_over and not self.handed_over:
            self._hand_over()  # maybe not for the first time: it raises where what follows lacks its end
            self._follow(self.warmup.last_epoch - self.warmup.length)
        elif moved:
            self.warmup._apply()

    def _hand_over(self) -> None:
        self._begin()
        # Chainable schedulers compute from the current rate: give them their base rate first.
        self.handed_over = True
        self._scale_follower()
        set_rates(self.optimizer, self.follower.base_lrs)
        write_first_rates(self.follower)
        self.warmup._written.note()

    def _follow(self, updates: int) -> None:
        """Let the follower step once for each update made."""
        for _ in range(updates):
            self._scale_follower()  # the warmup may have halved its rate since
            self.follower.step()
        self.warmup._written.note()

    def _scale_follower(self) -> None:
        """Scale the rates that the follower starts from to the warmup's factor: below 1 short of the target."""
        found = self.warmup.factor_at(self.warmup.last_epoch)
        if found != self._found:
            self.follower.base_lrs = [base * (found / self._found) for base in self.follower.base_lrs]
            self._found = found

    def adopt(self, groups: list[dict[str, Any]], bases: list[float | Tensor]) -> None:
        """Let what follows know of new groups, and write their first rates."""
        self._extend_follower(bases)
        self.warmup.adopt(groups, bases)
        if self.handed_over:
            share = float(self.optimizer.param_groups[0]["lr"]) / float(self.base_lrs[0])
            for group, base in zip(groups, bases, strict=True):
                set_rate(group, base * share)

    def _extend_follower(self, bases: list[float | Tensor]) -> None:
        follower, functions = self.follower, getattr(self.follower, "lr_lambdas", [])
        if isinstance(follower, RATES_OF_THEIR_OWN) or any(f is not functions[0] for f in functions):
            raise ValueError(
                f"a parameter group was added under way, and {type(follower).__name__} has settings of its own for "
                "each group: add the group before the scheduler is made."
            )
        follower.base_lrs = [*follower.base_lrs, *(base * self._found for base in bases)]
        functions += functions[:1] * len(bases)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.warmup._place.join(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {
            "format": FORMAT,
            "last_epoch": self.last_epoch,
            "handed_over": self.handed_over,
            "found": self._found,
            "warmup": self.warmup.state_dict(),
            "follower": self.follower.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved schedule stood, with the rates it had.

        Raises:
            ValueError: the state lacks entries or has foreign ones, or is that of another warmup or follower. Then
                nothing has changed.
        """
        saved = Saved(state_dict, "the saved schedule")
        saved.check_keys(self.state_dict(), optional=("format",))
        handed_over, found = saved.flag("handed_over"), saved.number("found", positive=True)
        follower = Saved(saved["follower"], f"the saved state of {type(self.follower).__name__}")
        follower.check_keys(self.follower.state_dict(), but_private=True)
        follower.check_rates("base_lrs", len(self.base_lrs))
        self._check_state(follower)
        self.warmup.load_state_dict(saved["warmup"])
        self.follower.load_state_dict(saved["follower"])
        self.handed_over, self._found = handed_over, found
        if handed_over and saved["warmup"].get("lr") is None:
            set_rates(self.optimizer, self.follower.get_last_lr())
        self._resume(follower)
        self.warmup._written.note()


class WarmupThen(WarmupSequence[AnyWarmup]):
    """A warmup followed by a scheduler of the user's: made by `Warmup.then`."""

    def _begin(self) -> None:
        """Any scheduler can."""

    def _check_state(self, saved: Saved) -> None:
        """What is in it is the scheduler's own concern."""

    def _resume(self, saved: Saved) -> None:
        """Nothing is."""


def check_follower(warmup: UpdateSchedule, scheduler: LRScheduler, *, scaled: bool) -> None:
    """Raise where a scheduler cannot follow a warmup, or be `scaled` to the rate that it has found."""
    if isinstance(scheduler, UpdateSchedule | WarmupSequence):
        raise TypeError(
            f"then() takes what comes after the warmup, got a {type(scheduler).__name__}, which is a warmup itself: "
            "use one of the two."
        )
    compound = (ReduceLROnPlateau, SequentialLR, ChainedScheduler)
    if isinstance(scheduler, compound) or not isinstance(scheduler, LRScheduler):
        raise TypeError(
            "then() takes a single LRScheduler whose step() needs no metric, got "
            f"{type(scheduler).__name__}: write compound schedules as one LambdaLR."
        )
    if an_optimizer("the scheduler's optimizer", scheduler.optimizer) is not warmup.optimizer:
        raise ValueError("then() takes a scheduler on the same optimizer, got one on another.")
    check_first_steps(warmup, "then()", scheduler)
    if len(scheduler.base_lrs) != len(warmup.base_lrs):
        raise ValueError(
            f"then() got a scheduler of {len(scheduler.base_lrs)} parameter groups, the optimizer has "
            f"{len(warmup.base_lrs)}: add groups before the scheduler is made."
        )
    if scaled and isinstance(scheduler, RATES_OF_THEIR_OWN):
        raise TypeError(
            f"then() takes a scheduler of the optimizer's rates, got {type(scheduler).__name__}, whose rates are "
            "its own: it would ignore the rate that was found. Use CosineAnnealingLR, StepLR or LambdaLR, e.g."
        )


def check_first_steps(warmup: UpdateSchedule, call: str, scheduler: LRScheduler | None = None) -> None:
    """Raise where a warmup is under way, or what is to follow it."""
    if warmup.last_epoch > 0 or (scheduler is not None and scheduler.last_epoch > 0):
        both = "the warmup" if scheduler is None else "the warmup and of the scheduler"
        raise ValueError(f"{call} must be called before the first step of {both}.")


def agree_on_targets(warmup: UpdateSchedule, scheduler: LRScheduler) -> None:
    """Let a follower start from the warmup's targets, where it has read others from `initial_lr`.

    The targets are the rates as they stood. Where those are what the follower's own constructor wrote, as `LinearLR`
    does, they were not meant.
    """
    ours, theirs = ([float(lr) for lr in s.base_lrs] for s in (warmup, scheduler))
    if ours == theirs or isinstance(scheduler, RATES_OF_THEIR_OWN):
        return
    set_rates(warmup.optimizer, theirs)
    write_first_rates(scheduler)
    if floats(warmup.optimizer) == ours:
        warmup.base_lrs = like_rates(warmup.optimizer.param_groups, theirs)
        warmup._targets.confirm()
    else:
        scheduler.base_lrs = list(warmup.base_lrs)
