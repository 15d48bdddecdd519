"""Warmups that find their rates along the run: a table of them, and linear warmup where nothing can be found."""

import math
from bisect import bisect_right
from typing import Any

from torch.optim import Optimizer

from edgewise.arguments import an_optimizer
from edgewise.critical import check_steps_alone
from edgewise.parameters import check_real_groups
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.schedules import linear_from, steps_to_target
from edgewise.warmup.signals import Overflows
from edgewise.warmup.state import Saved

STEP_BACK = 0.5  # factor on a rate at which the loss has shot up
_LOWEST = (
    2.0**-9
)  # of the first rate that was measured: a loss that rises below that does not rise because of the rate


class AdaptiveWarmup(Warmup):
    """A warmup without a length: `observe` sets the factor of the coming update.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        fallback_length: of the linear warmup that it goes on as, once, where nothing can be measured.
        max_overhead: share of the training's cost that `observe` may add, above 0 and at most 1; no limit if not given.

    Attributes:
        fallback: why it goes on as linear warmup, or `None`.
    """

    _since_format = ("_fallback_length",)

    def __init__(
        self, optimizer: Optimizer, *, fallback_length: int, max_overhead: float | None = None
    ) -> None:
        optimizer = an_optimizer("optimizer", optimizer)
        check_steps_alone(optimizer)
        check_real_groups(optimizer)
        self._fallback_length = fallback_length
        self._rates: list[tuple[int, float]] = [(0, 1 / fallback_length)]  # (first update, factor)
        self._linear: tuple[int, float] | None = None  # the same, of the linear warmup it falls back to
        self._num_step_backs = 0
        self._lowest = 0.0  # factor, once one was measured
        self._overflows = Overflows()
        super().__init__(optimizer, max_overhead=max_overhead)

    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""
        if self._linear is not None and update >= self._linear[0]:
            since, start = self._linear
            return linear_from(update - since, warmup_steps=self._fallback_length, start=start)
        return self._rates[max(0, bisect_right(self._rates, (update, math.inf)) - 1)][1]

    @property
    def _factor(self) -> float:
        """The factor of the coming update."""
        return self.factor_at(self._updates)

    def _set_factor(self, factor: float) -> None:
        factor = max(factor, self._lowest)
        if self._rates[-1][0] == self._updates:  # a step that was skipped
            self._rates.pop()
        self._rates.append((self._updates, factor))

    def _set_first_factor(self, factor: float) -> None:
        self._set_factor(factor)
        self._lowest = _LOWEST * factor

    @property
    def _is_lowest(self) -> bool:
        """Whether the rate has been halved so often that it cannot be why the loss rises."""
        return STEP_BACK * self._factor < self._lowest

    @property
    def _reached(self) -> int | None:
        """The number of the first update at the target, once it is known."""
        if self._linear is not None:
            since, start = self._linear
            return since + steps_to_target(warmup_steps=self._fallback_length, start=start)
        return next((update for update, factor in self._rates if factor == 1.0), None)

    def _fall_back(self, reason: str, *, start: float | None = None) -> None:
        super()._fall_back(reason)
        start = self._factor if start is None else start
        self._linear = (self._updates, start)
        self._end = self._updates + steps_to_target(warmup_steps=self._fallback_length, start=start) + 1

    def _progress(self) -> dict[str, Any]:
        return {
            "_rates": list(self._rates),
            "_linear": self._linear,
            "_num_step_backs": self._num_step_backs,
            "_lowest": self._lowest,
            "_waits_until": self._waits_until,
            "overflows": dict(vars(self._overflows)),
            "_end": self._end,
            "_fallback_length": self._fallback_length,
        }

    def _read(self, saved: Saved) -> dict[str, Any]:
        linear = None if saved["_linear"] is None else saved.step("_linear")
        # A linear warmup that has begun keeps its length, whatever the run's is now.
        begun = linear is not None and "_fallback_length" in saved
        return {
            "_rates": saved.steps("_rates"),
            "_linear": linear,
            "_num_step_backs": saved.count("_num_step_backs"),
            "_lowest": saved.number("_lowest"),
            "_waits_until": saved.count("_waits_until"),
            "_overflows": saved.parts("overflows", Overflows()),
            "_end": saved.count_or_none("_end"),
            "_fallback_length": saved.count("_fallback_length", least=1) if begun else self._fallback_length,
        }
