"""Rates that are found along a run, and the linear warmup that takes over where nothing can be found."""

import math
from bisect import bisect_right
from typing import Any

from edgewise.warmup.schedules import linear_from, steps_to_target
from edgewise.warmup.state import Saved

STEP_BACK = 0.5  # factor on a rate at which the loss has shot up
# Of the first rate that was measured: a loss that rises below that does not rise because of the rate.
_LOWEST = 2.0**-9
_MOST = 100.0  # log-growth, from any factor to 1: slopes that are not of the update may say thousands


class RateTable:
    """Factors on the target rates, in (0, 1], by the first update that each is of.

    Args:
        fallback_length: of the linear warmup, in updates; until a rate was found the factor is its first.
    """

    def __init__(self, fallback_length: int) -> None:
        self.fallback_length = fallback_length
        self.rates: list[tuple[int, float]] = [(0, 1 / fallback_length)]  # (first update, factor)
        self.linear: tuple[int, float] | None = None  # the same, of the linear warmup
        self.lowest = 0.0  # factor, once one was measured
        self.num_step_backs = 0

    def factor_at(self, update: int) -> float:
        """Return the factor of an update."""
        if self.linear is not None and update >= self.linear[0]:
            since, start = self.linear
            return linear_from(update - since, warmup_steps=self.fallback_length, start=start)
        return self.rates[max(0, bisect_right(self.rates, (update, math.inf)) - 1)][1]

    def plan(self, update: int, fallback_length: int) -> None:
        """Let a linear warmup that has not begun have another length; before the first update, its first factor too."""
        if self.linear is None:
            self.fallback_length = fallback_length
            if update == 0 and self.lowest == 0.0:
                self.rates = [(0, 1 / fallback_length)]

    def begin(self, update: int, factor: float) -> None:
        """Take the first factor that was measured."""
        self.set(update, factor)
        self.lowest = _LOWEST * factor

    def set(self, update: int, factor: float) -> None:
        """Let a factor hold from an update on, the last of the table or a later one."""
        factor = max(factor, self.lowest)
        if self.rates[-1][0] == update:  # a step that was skipped
            self.rates.pop()
        self.rates.append((update, factor))

    def grow(self, update: int, speed: float) -> None:
        """Let the latest factor grow exponentially since its update, at a speed an update, up to 1."""
        since, factor = self.rates[-1]
        self.set(update, min(1.0, factor * math.exp(min(_MOST, speed * (update - since)))))

    def is_lowest(self, update: int) -> bool:
        """Whether the rate has been halved so often that it cannot be why the loss rises."""
        return STEP_BACK * self.factor_at(update) < self.lowest

    def step_back(self, update: int) -> None:
        """Halve the rate from an update on."""
        self.num_step_backs += 1
        self.set(update, STEP_BACK * self.factor_at(update))

    def go_linear(self, update: int, start: float) -> int:
        """Let linear warmup begin at an update and a factor; return the number of updates at which it is over."""
        self.linear = (update, start)
        return update + steps_to_target(warmup_steps=self.fallback_length, start=start) + 1

    @property
    def highest(self) -> float:
        """The highest factor that was found."""
        return max(factor for _, factor in self.rates)

    @property
    def reached(self) -> int | None:
        """The number of the first update at the target, once it is known."""
        if self.linear is not None:
            since, start = self.linear
            return since + steps_to_target(warmup_steps=self.fallback_length, start=start)
        return next((update for update, factor in self.rates if factor == 1.0), None)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            "_rates": list(self.rates),
            "_linear": self.linear,
            "_num_step_backs": self.num_step_backs,
            "_lowest": self.lowest,
            "_fallback_length": self.fallback_length,
        }

    def load_state_dict(self, saved: Saved) -> None:
        """Go on from a state; a linear warmup that has begun keeps its length, whatever the run's is now."""
        self.rates = saved.steps("_rates")
        self.linear = None if saved["_linear"] is None else saved.step("_linear")
        self.num_step_backs = saved.count("_num_step_backs")
        self.lowest = saved.number("_lowest")
        if self.linear is not None and "_fallback_length" in saved:
            self.fallback_length = saved.count("_fallback_length", least=1)
