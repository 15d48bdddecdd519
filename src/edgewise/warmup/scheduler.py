"""What all warmups share beside their position and what follows: `observe`, the report, a state of plain numbers."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import an_optimizer, positive_share
from edgewise.errors import UnrepeatableError, warn
from edgewise.optimizers.groups import floats, like_rates, parameters
from edgewise.warmup.followed import FollowedSchedule
from edgewise.warmup.forwards import Forwards
from edgewise.warmup.observation import Observation
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.standing import Standing, check_settings
from edgewise.warmup.state import FORMAT, Result, Saved

_SINCE_FORMAT = ("format", "lr")  # entries that states without a format lack
_MOST_WAITS = 200  # updates that say nothing, before the first that can be measured


class Warmup(FollowedSchedule):
    """A schedule of factors, at most 1, on the rates the optimizer was made with: its targets.

    The position, `last_epoch`, is the number of steps that the optimizer has made, whenever and however often `step()`
    is called: one that a `GradScaler` skips does not count. Subclasses say the factor of each update, when the warmup
    is over, and what `observe` does.

    Args:
        optimizer: any; its groups' rates are the targets, and their ratios are kept.
        max_overhead: share of the training's cost that `observe` may add, above 0 and at most 1; no limit if not
            given. Counted in forwards, of which a training step is three.
    """

    _since_format: tuple[str, ...] = ()  # further entries that states without a format lack
    _argument_names: tuple[str, ...] = ()  # arguments that a saved state must agree with …
    _may_differ: tuple[str, ...] = ()  # … but for these

    def __init__(self, optimizer: Optimizer, *, max_overhead: float | None = None) -> None:
        self.max_overhead = (
            None
            if max_overhead is None
            else positive_share("max_overhead", max_overhead, "0.03 is 3 %, None is no limit")
        )
        optimizer = an_optimizer("optimizer", optimizer)
        self._forwards = Forwards()
        self._observation = Observation(optimizer, self._forwards)
        self.fallback: str | None = None
        self._waits_until = 0  # the first update that has to be measured before it is made
        super().__init__(optimizer)

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

    @property
    def num_forwards(self) -> int:
        """How many evaluations of the loss `observe` has made."""
        return self._forwards.num

    @property
    def num_searches(self) -> int:
        """How many searches for a rate there were."""
        return self._forwards.num_searches

    def export(self) -> list[float]:
        """Return the realised warmup: the factor on the target rates of each update made, to the end of the warmup.

        Replay it with `LambdaLR(optimizer, lambda update: factors[min(update, len(factors) - 1)])`.
        """
        return [self.factor_at(update) for update in range(self.length)]

    def metrics(self, prefix: str = "edgewise/") -> dict[str, float | int]:
        """Return the numbers of `report()` by flat names, for a tracker: see `WarmupReport.metrics`."""
        return self.report().metrics(prefix)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, and copies of parameters where needed; `weights_only=True` loads them."""
        self._step_share.release_outside_step()
        if self.last_epoch >= 0:
            self._adopt_groups()
        return {
            "format": FORMAT,
            "warmup": type(self).__name__,
            **{name: getattr(self, name) for name in self._argument_names},
            **self._progress(),
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "lr": floats(self.optimizer) if self._is_over or self._written.is_shared else None,
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_updates": self._updates.made,
            "num_forwards": self.num_forwards,
            "num_searches": self.num_searches,
            "fallback": self.fallback,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved warmup stood; writes its rates to the optimizer.

        Raises:
            ValueError: the state is that of another class of warmup, or of other arguments, or lacks entries, or has
                foreign ones. Then nothing has changed.
        """
        saved, own = Saved(state_dict, "the saved state", parameters(self.optimizer)), self.state_dict()
        fixed = [name for name in ("warmup", *self._argument_names) if name not in self._may_differ]
        check_settings(saved, {name: own[name] for name in fixed})
        saved.check_keys(own, optional=_SINCE_FORMAT + self._since_format)
        is_led = self._place.is_led or self.last_epoch < 0
        standing = Standing.read(saved, self.optimizer, least_epoch=-2 if is_led else 0)
        vars(self).update(self._read(saved))
        self._place.is_led = is_led
        self._stand_at(standing)

    def _stand_at(self, standing: Standing) -> None:
        self.base_lrs, self.last_epoch = standing.base_lrs, standing.last_epoch
        self._step_count, self._updates.made = standing.step_count, standing.updates
        self._forwards.num, self._forwards.num_searches = standing.num_forwards, standing.num_searches
        self.fallback = standing.fallback
        self._step_share.spend()
        self._targets.confirm()
        is_shared = standing.lr is not None and not self._is_over
        self._written.resume(self.factor_at(self.last_epoch), is_shared=is_shared)
        if self._place.is_led:
            self._written.forget()  # whose turn it is, SequentialLR knows: the rates come with the optimizer's state
        else:
            self._written.write(self.get_lr() if standing.lr is None else standing.lr)
        self._last_lr = like_rates(self.optimizer.param_groups, floats(self.optimizer))

    def _arrive(self) -> None:
        if self._unmeasured:
            self._fall_back(
                "nothing was measured before the first update; call observe() between backward() and step()"
            )
        self._end_in_time()

    def _observes(self, *, looks: bool = True) -> bool:
        """Whether it is on: bring the position up to date, and say if what it `looks` at is too late."""
        is_ahead = self._updates.made > self.last_epoch
        if self._place.is_closed or self.last_epoch < 0 or (self._place.is_led and is_ahead):
            return False  # a SequentialLR has not come to it yet, or is past it
        self._place.check_alone()
        if looks:
            self._observation.check_in_time(self._updates.used)
        if is_ahead:
            self._place.whole.catch_up()
        self._adopt_groups()
        return True

    def _search(self, closure: Callable[[], Tensor], search: Callable[[], Result]) -> Result | None:
        """Search along a closure's loss, and count what that took; if it does not repeat, fall back, return `None`.

        See that it is the update of these gradients that is made, and of all ranks.
        """
        try:
            found = self._observation.search(closure, search)
        except UnrepeatableError as error:
            self._fall_back(str(error).removesuffix("."))
            return None
        self._gradients.note()
        self._observation.check_all_ranks(found)
        return found

    def _wait(self) -> None:
        """Let the coming update be made although it was not measured: its loss or gradients say nothing."""
        self._waits_until = self._updates.made + 1
        if self._updates.made >= _MOST_WAITS:
            self._fall_back(
                f"of {_MOST_WAITS} updates none could be measured: losses or gradients were zero or not finite"
            )

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
            updates=self._updates.made,
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
            overhead=self._forwards.overhead(self._updates.made),
            fallback=self.fallback,
        )

    def _fall_back(self, reason: str, *, start: float | None = None) -> None:
        """Give up looking: from here on this is plain linear warmup."""
        self.fallback = reason
        self._gradients.forget()
        self._go_linear(start)
        self._copies.give_up()
        warn(f"{type(self).__name__} goes on as plain linear warmup: {reason}.")
