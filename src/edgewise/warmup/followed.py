"""What comes after a warmup: a scheduler of the user's, or a decay that ends at a given update."""

from abc import abstractmethod
from typing import Self, TypeVar

from torch.optim.lr_scheduler import LRScheduler

from edgewise.arguments import positive_count
from edgewise.optimizers.groups import set_rates
from edgewise.warmup.decay import Decay, DecayFactor, a_decay_factor
from edgewise.warmup.state import Saved
from edgewise.warmup.then import (
    WarmupSequence,
    WarmupThen,
    agree_on_targets,
    check_first_steps,
    check_follower,
)
from edgewise.warmup.updates import UpdateSchedule

AnyFollowed = TypeVar("AnyFollowed", bound="FollowedSchedule")


class WarmupThenUntil(WarmupSequence[AnyFollowed]):
    """A warmup followed by a decay that ends at a given update: made by `Warmup.then_until`."""

    follower: Decay

    @property
    def num_steps(self) -> int | None:
        """The number of the update, from 0, that the decay ends at; `None` while it is not known.

        It may be set, also anew while the decay is under way: from the coming update on it goes to the new end. It is 1
        or greater, and more than the steps of a `LinearWarmup`.
        """
        return self.follower.num_steps

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self.warmup._end_run(self.follower, positive_count("num_steps", value))
        if self.warmup._place.is_closed:
            return
        if self.handed_over:
            set_rates(self.optimizer, self.follower.get_lr())
            self.warmup._written.note()
        elif self.warmup._updates.made == 0:
            self.warmup._apply()  # the first rate of a fallback is one of the run's length

    def _begin(self) -> None:
        self.follower.begin(self.warmup.length)

    def _check_state(self, saved: Saved) -> None:
        self.follower.check_state(saved)

    def _resume(self, saved: Saved) -> None:
        if self.num_steps is None and saved["num_steps"] is not None:
            self.warmup._end_run(self.follower, saved["num_steps"])
        if self.handed_over and saved["num_steps"] != self.num_steps:  # the rates are those of another end
            set_rates(self.optimizer, self.follower.get_lr())


class FollowedSchedule(UpdateSchedule):
    """A schedule of factors on an optimizer's rates, followed by another on the rates that it has come to."""

    _scales_follower = False  # whether it may end below the target, at a rate that what follows starts from
    _has_follower = False
    num_steps: int | None = None  # of the run, where a warmup asks for them
    _latest_end: int | None = None  # number of updates by which what follows must begin

    @abstractmethod
    def _plan(self, num_steps: int) -> None:
        """Take in how many updates the run has, or raise `ValueError` where they are too few; change nothing then."""

    @abstractmethod
    def _end_early(self) -> None:
        """Prepare for an end before the warmup is over by itself."""

    def then(self, scheduler: LRScheduler) -> WarmupThen[Self]:
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
        self._check_no_follower()
        self._has_follower = True
        agree_on_targets(self, scheduler)
        return WarmupThen(self, scheduler)

    def then_until(self, num_steps: int | None, factor: DecayFactor) -> WarmupThenUntil[Self]:
        """Return a scheduler that runs this warmup and then a decay that ends at update `num_steps`, on time.

            η_t = η·factor(t, W),  t = W, W + 1, …,  W the number of updates that the warmup has had, η its last rate

            "linear":  (N − t)/(N − W),    "cosine":  ½(1 + cos(π(t − W)/(N − W))),    N = num_steps

        The rates of the named ones are those of `get_linear_schedule_with_warmup` and `get_cosine_schedule_with_warmup`
        of transformers with `num_warmup_steps` = W: 0 at update N, and from there on. So that they end on time,
        `CatapultWarmup` and `EdgeWarmup`, which gets `num_steps` if it has none, end at half of the run at the latest,
        at the rate that they have.

        Args:
            num_steps: updates of the run, ≥ 1. `None` if they are not known yet: then set `schedule.num_steps` before
                the warmup is over. It may be set anew, and a saved state may be loaded where it is another: the decay
                then goes to the new end. Where it is `None`, a saved state brings its own.
            factor: "cosine", "linear", or a function of (update, warmup_length) that returns a finite number, ≥ 0, of
                updates ≥ warmup_length, counted from 0 for the first of the run. A saved state does not hold a
                function.

        Raises:
            ValueError: the run is no longer than a `LinearWarmup`, or another than `EdgeWarmup` was made for. Or the
                warmup is under way, or has a follower already. Or the factor is unknown, or out of range when it is
                tried or used. And by `step()`: the warmup is over, and there is no `num_steps` yet.
            TypeError: an argument has the wrong type.

        Examples:
            >>> import torch
            >>> from edgewise import LinearWarmup
            >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=1.0)
            >>> schedule = LinearWarmup(optimizer, warmup_steps=2).then_until(6, "linear")
            >>> seen = []
            >>> for _ in range(7):
            ...     seen.append(schedule.get_last_lr()[0])
            ...     optimizer.step()
            ...     schedule.step()
            >>> seen
            [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
        """
        factor = a_decay_factor(factor)
        num_steps = None if num_steps is None else positive_count("num_steps", num_steps)
        check_first_steps(self, "then_until()")
        self._check_no_follower()
        if num_steps is not None:
            self._check_agrees(num_steps)
        decay = Decay(self.optimizer, factor)
        decay.base_lrs = list(self.base_lrs)
        if num_steps is not None:
            self._end_run(decay, num_steps)
        self._has_follower = True
        return WarmupThenUntil(self, decay)

    def _check_no_follower(self) -> None:
        if self._has_follower:
            raise ValueError(
                "then() or then_until() was already called on this warmup: write what follows as one scheduler, "
                "e.g. LambdaLR."
            )

    def _check_agrees(self, num_steps: int) -> None:
        if self.num_steps not in (None, num_steps):
            raise ValueError(
                f"then_until() got num_steps = {num_steps}, and the {type(self).__name__} was made for a run of "
                f"{self.num_steps}: give it the same number, or none."
            )

    def _end_run(self, decay: Decay, num_steps: int) -> None:
        """Let a decay end at an update, or raise where it cannot: then nothing has changed."""
        decay.try_factor(self._end or 1, num_steps)
        self._plan(num_steps)
        decay.num_steps = num_steps

    def _end_in_time(self) -> None:
        """Let what follows begin with the coming update, if it must."""
        if self._latest_end is not None and self.last_epoch >= self._latest_end and not self._is_over:
            self._end_early()
            self._end = self.last_epoch
