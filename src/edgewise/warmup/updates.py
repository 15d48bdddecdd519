"""A torch scheduler whose position is that of its optimizer: updates are counted, and their rates are written, once."""

import sys
import weakref
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.errors import warn
from edgewise.optimizers.groups import floats, initial_rates, like_rates, rates, set_rate, target_of, targets
from edgewise.torch_internals import CHAINED_STEP
from edgewise.warmup.copies import ParameterCopies
from edgewise.warmup.gradients import GradientWatch
from edgewise.warmup.position import StepHooks, UsedGradients, let_hooks_run, listeners, steps_running
from edgewise.warmup.step_share import StepShare
from edgewise.warmup.written_rates import WrittenRates

_IDLE_CALLS = 1000  # of step() in a row without a step of the optimizer, at which to warn
_UNCOPIED = ("_hooks", "_used", "_then", "_ranks")  # belong to one optimizer, or one process

# What warmups that have not come to their end wrote, and their targets: the next one on that optimizer takes these.
_UNFINISHED = weakref.WeakKeyDictionary[Optimizer, tuple[list[float], list[float | Tensor]]]()


class UpdateSchedule(LRScheduler):
    """Factors on the rates of an optimizer's groups, its targets, by the number of updates the optimizer has made.

    `step()` writes the rates of the coming update; where it is not called, they are written when that update, or
    `observe`, begins. When the schedule is over, nothing is written. Inside a `SequentialLR` it starts when its turn
    comes; in a `ChainedScheduler`, or where another writes the rates as well, its factors multiply what is there.
    """

    _end: int | None = None  # number of updates of the whole schedule, once it is known
    _measures = True  # whether gradients are measured with, and have to be those of the update
    _is_made = False  # by its constructor
    _is_used = False
    _is_closed = False
    _is_superseded = False  # by another on the same optimizer, before any use
    _is_led = False  # by a SequentialLR, which starts it
    _is_chained = False  # by a ChainedScheduler
    _is_shared = False  # whether another has written the rates since
    _doubt: str | None = None  # about the targets, to be said if no state is loaded
    _complaint: str | None = None  # about another who writes the rates, to be said once
    _then: "weakref.ref[Any] | None" = None  # the scheduler that runs this and what follows

    def __init__(self, optimizer: Optimizer) -> None:
        let_hooks_run(optimizer)
        self._updates = self._idle_calls = 0
        self._made_with = _targets(optimizer)
        self._doubt = _doubt(optimizer, self._made_with)
        self._written = WrittenRates(optimizer)
        self._written_factor = 1.0
        self._gradients = GradientWatch()
        self._step_share = StepShare(optimizer)
        _supersede(optimizer)
        super().__init__(optimizer)
        self._is_made = True
        self._attach()

    @abstractmethod
    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""

    @abstractmethod
    def _arrive(self) -> None:
        """Do what is due at a new position."""

    @property
    @abstractmethod
    def _copies(self) -> tuple[ParameterCopies, ...]:
        """What is kept of the parameters from one update to the next."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, one a group."""
        factor = self.factor_at(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Write the rates of the coming update.

        Args:
            epoch: torch's deprecated argument; the position is the number of updates made, and nothing else.

        Raises:
            ValueError: `epoch` is another position, or another warmup is under way on the same optimizer.
        """
        if sys._getframe(1).f_code is CHAINED_STEP:
            self._is_chained, self._doubt = True, None
        if epoch is not None and epoch != self._updates:
            raise ValueError(
                f"step(epoch) must be left out or be the number of updates made, {self._updates}, got {epoch!r}: a "
                "warmup follows its optimizer."
            )
        if self.last_epoch < 0:
            self._update_lr(0)
        elif not self._is_closed:
            self._check_alone()
            self._whole.catch_up()

    def catch_up(self) -> None:
        """Write the rates of the coming update, if updates have been made since the last time."""
        if self._advance():
            self._apply()

    def close(self) -> None:
        """Let go of the optimizer: no update is counted any more, and the rates stay as they are. May be repeated."""
        if not self._is_closed:
            self._is_closed = True
            self._hooks.remove()  # also if they are gone
        self._gradients.close()
        self._step_share.spend()
        self._give_up_copies()

    def _give_up_copies(self) -> None:
        for copies in self._copies:
            copies.give_up()

    @property
    def finished(self) -> bool:
        """Whether the updates so far include the whole warmup."""
        return self._end is not None and self._updates >= self._end

    @property
    def _is_over(self) -> bool:
        """Whether the coming update is beyond the schedule."""
        return self._end is not None and self.last_epoch >= self._end

    @property
    def _is_under_way(self) -> bool:
        return not (self._is_closed or self.finished or self._is_led or self.last_epoch < 0)

    @property
    def _whole(self) -> Any:
        """The scheduler that `then` made of this, while it lives; else this."""
        return (None if self._then is None else self._then()) or self

    def _initial_step(self) -> None:
        self._update_lr(0)

    def _update_lr(self, epoch: int | None = None) -> None:
        """Start: in the constructor, and again when a `SequentialLR`, which has undone that, comes to this."""
        if epoch != 0:
            self.step(epoch)
            return
        if self._is_made:
            self._is_led, self._doubt = True, None
            self._come_back()
            self._made_with = initial_rates(self.optimizer)
        self.base_lrs = like_rates(self.optimizer.param_groups, self._made_with)
        self._updates = self.last_epoch = 0
        self._step_count = 1
        self._written.note()
        self._apply()

    def _attach(self) -> None:
        self._used = UsedGradients()
        hooks = (self._before_update, self._after_update, self._before_saving)
        self._hooks = StepHooks(self, self.optimizer, *hooks)
        if self._measures:
            self._gradients.attach(self.optimizer, self._position)

    def _position(self) -> int:
        return self._updates

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _UNCOPIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not (self._is_closed or self._is_superseded):
            self._attach()

    def _before_update(self) -> None:
        self._step_share.release()  # of a step that raised
        if self.last_epoch >= 0:
            self._check_alone()
            self._adopt_groups()
            # Who has written the rates since is in charge, unless step() is called.
            if self._updates > self.last_epoch and not self._is_led and self._written.stand:
                self._whole.catch_up()
        self._step_share.take()

    def _after_update(self) -> None:
        """Count an update, unless a GradScaler told a fused one to skip it."""
        found_inf = getattr(self.optimizer, "found_inf", None)
        if self.last_epoch >= 0 and (found_inf is None or not found_inf.item()):
            self._updates += 1
        self._used.note(self.optimizer)
        self._step_share.spend()
        for copies in self._copies:
            copies.after_step(self._parameters)

    def _before_saving(self) -> None:
        """Leave nothing in the optimizer that its saved state must not hold."""
        if not steps_running(self.optimizer):
            self._step_share.release()  # of a step that raised

    def _check_alone(self) -> None:
        """Raise if another warmup is on the optimizer: both would write its rates."""
        others = [] if self._is_used or self._is_led else _under_way(self.optimizer, but=self)
        if others:
            raise ValueError(
                f"another warmup is on this {type(self.optimizer).__name__}, and both would write its learning rates: "
                "make one only, or close() the other or let go of it before."
            )
        self._is_used = True
        self._come_back()

    def _come_back(self) -> None:
        """Follow the optimizer again, where another one had taken the place and is gone."""
        if self._is_superseded:
            self._is_superseded = False
            self._attach()

    def _advance(self) -> int:
        """Move to the position of the optimizer; return by how many updates."""
        moved = self._updates - self.last_epoch
        if moved == 0:
            self._idle_calls += 1
            if self._idle_calls == _IDLE_CALLS:
                warn(
                    f"step() was called {_IDLE_CALLS} times without a step of the optimizer, so that the warmup does "
                    "not advance: construct it on the optimizer whose step() runs, and leave that method in place."
                )
            return 0
        if self._doubt is not None:
            doubt, self._doubt = self._doubt, None
            warn(doubt)
        self._idle_calls = 0
        self.last_epoch = self._updates
        self._step_count += 1
        self._arrive()
        if self._is_over:
            _UNFINISHED.pop(self.optimizer, None)
        return moved

    def _apply(self) -> None:
        """Write the rates of the coming update, unless the schedule is over."""
        if not self._is_over:
            self._adopt_groups()
            self._note_others()
            self._write()
        self._last_lr = rates(self.optimizer)

    def _write(self) -> None:
        factor = self.factor_at(self.last_epoch)
        values = self._shared_rates(factor) if self._is_shared else self.get_lr()
        self._written.write(values)
        self._written_factor = factor
        _UNFINISHED[self.optimizer] = (self._written.values, self.base_lrs)

    def _shared_rates(self, factor: float) -> list[float | Tensor]:
        """Return what others have made of the rates, times what the factor has grown by; at most the targets' share."""
        grown = [lr * (factor / self._written_factor) for lr in floats(self.optimizer)]
        if self._is_chained:
            return list(grown)
        return [min(lr, float(base) * factor) for lr, base in zip(grown, self.base_lrs, strict=True)]

    def _note_others(self) -> None:
        """See whether another has written the rates, and say so, once: a ChainedScheduler shows at the first step."""
        if not self._written.stand and not self._is_shared:
            self._is_shared = True
            self._complaint = (
                f"the groups' learning rates are {floats(self.optimizer)} where {type(self).__name__} wrote "
                f"{self._written.values}: another scheduler steps beside it, or a rate was set by hand, or the "
                "optimizer's saved state was loaded without the warmup's. It goes on in proportion to them, at most "
                "at its own rates: let what follows come by then(), and load both states to resume."
            )
        if self._complaint is not None and self.last_epoch > 0:
            complaint, self._complaint = self._complaint, None
            if not self._is_chained:
                warn(complaint)

    def _adopt_groups(self) -> None:
        """Let parameter groups that are new warm up to their own rates."""
        groups, num = self.optimizer.param_groups, len(self.base_lrs)
        if len(groups) < num:
            raise ValueError(
                f"the optimizer has {len(groups)} parameter groups left of {num}: a warmup follows groups that are "
                "added, not ones that are taken away."
            )
        if len(groups) == num:
            return
        new = like_rates(groups[num:], [target_of(self.optimizer, i) for i in range(num, len(groups))])
        self._whole.adopt(groups[num:], new)
        self.base_lrs += new
        self._written.values += floats(self.optimizer)[num:]
        for copies in self._copies:
            copies.adopt(self._parameters)

    def adopt(self, groups: list[dict[str, Any]], bases: list[float | Tensor]) -> None:
        """Write the first rates of new groups; when the schedule is over, they keep their own."""
        for group, base in zip(groups, bases, strict=True):
            group.setdefault("initial_lr", base)
            if not self._is_over:
                first = float(self.optimizer.param_groups[0]["lr"]) / float(self.base_lrs[0])
                set_rate(group, base * (first if self._is_shared else self.factor_at(self.last_epoch)))


def _under_way(optimizer: Optimizer, *, but: UpdateSchedule | None = None) -> list[UpdateSchedule]:
    """Return the warmups on an optimizer that still write its rates."""
    known = [other for other in listeners(optimizer) if isinstance(other, UpdateSchedule)]
    return [other for other in known if other is not but and other._is_under_way]


def _supersede(optimizer: Optimizer) -> None:
    """Take the place of warmups that are not in use; say where one is."""
    for other in _under_way(optimizer):
        if other._updates > 0 or other._is_used:
            warn(
                f"a {type(other).__name__} is under way on this optimizer: close() it, or let go of it, before the "
                "next update."
            )
        else:
            other._is_superseded = True
            other._hooks.remove()


def _targets(optimizer: Optimizer) -> list[float]:
    """Return the rates as they stand, or, where they are what a warmup that ended early wrote, its targets."""
    own = targets(optimizer)
    written, meant = _UNFINISHED.get(optimizer, ([], []))
    if not written or floats(optimizer)[: len(written)] != written:
        return own
    return [float(lr) for lr in meant] + own[len(meant) :]


def _doubt(optimizer: Optimizer, made_with: list[float]) -> str | None:
    """Return what to say where the rates are not those that an earlier scheduler has started from."""
    initial = initial_rates(optimizer)
    if made_with == initial:
        return None
    return (
        f"the warmup's targets are the optimizer's learning rates as they stood, {made_with}, where an earlier "
        f"scheduler started from {initial}: if this run goes on from a checkpoint, load the warmup's state, too."
    )
