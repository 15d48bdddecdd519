"""A torch scheduler whose position is that of its optimizer: updates are counted, and their rates are written, once."""

import sys
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.optimizers.groups import floats, like_rates, parameters, rates, set_rate, target_of
from edgewise.torch_internals import CHAINED_STEP
from edgewise.warmup.copies import ParameterCopies
from edgewise.warmup.gradients import GradientWatch
from edgewise.warmup.place import Place
from edgewise.warmup.position import UpdateCount, let_hooks_run
from edgewise.warmup.step_share import StepShare
from edgewise.warmup.targets import Targets
from edgewise.warmup.written_rates import WrittenRates


class UpdateSchedule(LRScheduler):
    """Factors on the rates of an optimizer's groups, its targets, by the number of updates the optimizer has made.

    `step()` writes the rates of the coming update; where it is not called, they are written when that update, or
    `observe`, begins. When the schedule is over, nothing is written. Inside a `SequentialLR` it starts when its turn
    comes; in a `ChainedScheduler`, or where another writes the rates as well, its factors multiply what is there.
    """

    _end: int | None = None  # number of updates of the whole schedule, once it is known
    _measures = True  # whether gradients are measured with, and have to be those of the update
    _is_made = False  # by its constructor

    def __init__(self, optimizer: Optimizer) -> None:
        let_hooks_run(optimizer)
        self._updates = UpdateCount(optimizer)
        self._targets = Targets(optimizer)
        self._written = WrittenRates(optimizer)
        self._step_share = StepShare(optimizer)
        self._place = Place(optimizer, self._updates)
        self._place.supersede_others()
        super().__init__(optimizer)
        self._is_made = True
        self._place.take(self)
        self._gradients = GradientWatch(optimizer, self._updates, is_on=self._measures)

    @abstractmethod
    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""

    @abstractmethod
    def _arrive(self) -> None:
        """Do what is due at a new position."""

    @property
    @abstractmethod
    def _copies(self) -> ParameterCopies:
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
            self._written.is_chained = True
            self._targets.confirm()
        if epoch is not None and epoch != self._updates.made:
            raise ValueError(
                f"step(epoch) must be left out or be the number of updates made, {self._updates.made}, got {epoch!r}: "
                "a warmup follows its optimizer."
            )
        if self.last_epoch < 0:
            self._update_lr(0)
        elif not self._place.is_closed:
            self._place.check_alone()
            self._place.whole.catch_up()

    def catch_up(self) -> None:
        """Write the rates of the coming update, if updates have been made since the last time."""
        if self._advance():
            self._apply()

    def close(self) -> None:
        """Let go of the optimizer: no update is counted any more, and the rates stay as they are. May be repeated."""
        self._place.close()
        self._gradients.close()
        self._step_share.spend()
        self._copies.give_up()

    @property
    def finished(self) -> bool:
        """Whether the updates so far include the whole warmup."""
        return self._end is not None and self._updates.made >= self._end

    @property
    def length(self) -> int:
        """How many of the updates made belong to the warmup; all of it, once it is `finished`."""
        return self._updates.made if self._end is None else min(self._updates.made, self._end)

    @property
    def _is_over(self) -> bool:
        """Whether the coming update is beyond the schedule."""
        return self._end is not None and self.last_epoch >= self._end

    def _initial_step(self) -> None:
        self._update_lr(0)

    def _update_lr(self, epoch: int | None = None) -> None:
        """Start: in the constructor, and again when a `SequentialLR`, which has undone that, comes to this."""
        if epoch != 0:
            self.step(epoch)
            return
        if self._is_made:
            self._place.is_led = True
            self._place.come_back()
            self._targets.take_initial()
        self.base_lrs = like_rates(self.optimizer.param_groups, self._targets.values)
        self._updates.made = self.last_epoch = 0
        self._step_count = 1
        self._written.note()
        self._apply()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._place.take(self)

    def _before_update(self) -> None:
        self._step_share.release()  # of a step that raised
        if self.last_epoch >= 0:
            self._place.check_alone()
            self._adopt_groups()
            # Who has written the rates since is in charge, unless step() is called.
            if self._updates.made > self.last_epoch and not self._place.is_led and self._written.stand:
                self._place.whole.catch_up()
        self._step_share.take()

    def _after_update(self) -> None:
        self._updates.add(counts=self.last_epoch >= 0)
        self._step_share.spend()
        self._copies.after_step(parameters(self.optimizer))

    def _advance(self) -> int:
        """Move to the position of the optimizer; return by how many updates."""
        moved = self._updates.since(self.last_epoch)
        if moved:
            self._targets.say_doubt()
            self.last_epoch += moved
            self._step_count += 1
            self._arrive()
            if self._is_over:
                self._targets.reach()
        return moved

    def _apply(self) -> None:
        """Write the rates of the coming update, unless the schedule is over."""
        if not self._is_over:
            self._adopt_groups()
            self._written.look_for_others(type(self).__name__, begun=self.last_epoch > 0)
            self._written.write_factor(self.factor_at(self.last_epoch), self.base_lrs)
            self._targets.leave(self._written.values, self.base_lrs)
        self._last_lr = rates(self.optimizer)

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
        self._place.whole.adopt(groups[num:], new)
        self.base_lrs += new
        self._written.values += floats(self.optimizer)[num:]
        self._copies.adopt(parameters(self.optimizer))

    def adopt(self, groups: list[dict[str, Any]], bases: list[float | Tensor]) -> None:
        """Write the first rates of new groups; when the schedule is over, they keep their own."""
        for group, base in zip(groups, bases, strict=True):
            group.setdefault("initial_lr", base)
            if not self._is_over:
                first = float(self.optimizer.param_groups[0]["lr"]) / float(self.base_lrs[0])
                set_rate(
                    group, base * (first if self._written.is_shared else self.factor_at(self.last_epoch))
                )
