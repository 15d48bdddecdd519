"""A warmup's place on its optimizer: one warmup alone follows it and writes its rates."""

import weakref
from typing import Any, Protocol

from torch.optim import Optimizer

from edgewise.errors import warn
from edgewise.warmup.position import StepHooks, UpdateCount, listeners
from edgewise.warmup.step_share import StepShare


class Holder(Protocol):
    """A warmup, as its place knows it."""

    last_epoch: int
    _step_share: StepShare

    @property
    def finished(self) -> bool:
        """Whether it is over."""

    def _before_update(self) -> None:
        """Prepare the coming update."""

    def _after_update(self) -> None:
        """Take in an update that was made."""


class Place:
    """Tells a warmup of the updates of its optimizer, and keeps other warmups off it.

    Nothing here keeps the warmup alive. A copy is held by nobody, until its own warmup does.

    Attributes:
        is_closed: whether the warmup has let go of the optimizer.
        is_led: whether a SequentialLR starts the warmup.
    """

    is_closed = is_led = False
    _is_used = False
    _is_superseded = False  # by another on the same optimizer, before any use
    _hooks: StepHooks | None = None
    _holder: weakref.ref[Holder] | None = None
    _then: weakref.ref[Any] | None = None

    def __init__(self, optimizer: Optimizer, updates: UpdateCount) -> None:
        self._optimizer, self._updates = optimizer, updates

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_hooks": None, "_holder": None, "_then": None}

    def take(self, holder: Holder) -> None:
        """Tell a warmup of the updates from here on, unless it is closed or another has taken its place."""
        self._holder = weakref.ref(holder)
        if not (self.is_closed or self._is_superseded):
            hooks = (holder._before_update, holder._after_update, holder._step_share.release_outside_step)
            self._hooks = StepHooks(self, self._optimizer, *hooks)

    def join(self, whole: object) -> None:
        """Let a scheduler run the warmup and what follows."""
        self._then = weakref.ref(whole)

    @property
    def whole(self) -> Any:
        """The scheduler that `then` made of the warmup, while it lives; else the warmup."""
        return (None if self._then is None else self._then()) or self._warmup

    def close(self) -> None:
        """Tell of nothing any more; may be repeated."""
        self.is_closed = True
        self._leave()

    def supersede_others(self) -> None:
        """Take the place of warmups that are not in use; say where one is."""
        for other in self._others():
            if other._updates.made > 0 or other._is_used:
                warn(
                    f"a {type(other._warmup).__name__} is under way on this optimizer: close() it, or let go of it, "
                    "before the next update."
                )
            else:
                other._is_superseded = True
                other._leave()

    def check_alone(self) -> None:
        """Raise if another warmup is on the optimizer: both would write its rates."""
        if not (self._is_used or self.is_led) and self._others():
            raise ValueError(
                f"another warmup is on this {type(self._optimizer).__name__}, and both would write its learning rates: "
                "make one only, or close() the other or let go of it before."
            )
        self._is_used = True
        self.come_back()

    def come_back(self) -> None:
        """Follow the optimizer again, where another one had taken the place and is gone."""
        if self._is_superseded:
            self._is_superseded = False
            self.take(self._warmup)

    def _leave(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()

    @property
    def _warmup(self) -> Any:
        return None if self._holder is None else self._holder()

    def _others(self) -> list["Place"]:
        """Return the places of other warmups on the optimizer that still write its rates."""
        return [other for other in listeners(self._optimizer) if other is not self and other._is_under_way]

    @property
    def _is_under_way(self) -> bool:
        warmup = self._warmup
        if warmup is None or self.is_closed or self.is_led:
            return False
        return not (warmup.finished or warmup.last_epoch < 0)
