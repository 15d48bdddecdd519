"""Warmups that find their rates along the run: a table of them, and linear warmup where nothing can be found."""

import math
from bisect import bisect_right
from typing import Any

from torch.optim import Optimizer

from edgewise.critical import check_steps_alone
from edgewise.parameters import check_real_groups
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.schedules import linear_from, steps_to_target

STEP_BACK = 0.5  # factor on a rate at which the loss has shot up


class AdaptiveWarmup(Warmup):
    """A warmup without a length: `observe` sets the factor of the coming update.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        fallback_length: of the linear warmup that it goes on as, once, where nothing can be measured.
        max_overhead: share of the training's cost that `observe` may add, above 0 and at most 1; no limit if not given.

    Attributes:
        fallback: why it goes on as linear warmup, or `None`.
    """

    def __init__(
        self, optimizer: Optimizer, *, fallback_length: int, max_overhead: float | None = None
    ) -> None:
        check_steps_alone(optimizer)
        check_real_groups(optimizer)
        self._fallback_length = fallback_length
        self._rates: list[tuple[int, float]] = [(0, 1 / fallback_length)]  # (first update, factor)
        self._linear: tuple[int, float] | None = None  # the same, of the linear warmup it falls back to
        self._num_step_backs = 0
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
        if self._rates[-1][0] == self._updates:  # a step that was skipped
            self._rates.pop()
        self._rates.append((self._updates, factor))

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
            "_end": self._end,
        }

    def _restore(self, progress: dict[str, Any]) -> None:
        self._rates = [(update, factor) for update, factor in progress["_rates"]]
        self._linear, self._end = progress["_linear"], progress["_end"]
        self._num_step_backs = progress["_num_step_backs"]
