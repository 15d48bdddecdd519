"""What measuring along a run has cost, and what it may."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

_RECENT = 5  # warm measurements whose median predicts the next one's cost
_MOST_HVPS, _FEWEST_HVPS = 200, 20  # budget of one measurement: without a share of time, and at least


class Overhead:
    """What measuring has cost, and what it may."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._elapsed = 0.0  # before a resume
        self._spent = 0.0
        self.per_product = 0.0  # seconds, of the latest measurement
        self._cold: float | None = None  # latest cost of a cold start
        self._warm: deque[float] = deque(maxlen=_RECENT)

    def start(self, now: float) -> None:
        """Begin to count, once."""
        if self._started is None:
            self._started = now - self._elapsed

    def seconds_to_wait(self, share: float, now: float, *, cold: bool) -> float:
        """Return the time until one more measurement stays within the share; none if it does now."""
        if self._cold is None or self._started is None:
            return 0.0
        expected = median(self._warm) if self._warm and not cold else self._cold
        left = share * (now - self._started) - (self._spent + expected)
        return max(0.0, -left / share)

    def steps_in(self, seconds: float, now: float, step: int) -> int:
        """Return how many of the run's steps so far, ≥ 1, take a time > 0."""
        if seconds <= 0 or self._started is None:
            return 0
        pace = (now - self._started - self._spent) / max(1, step)
        return max(1, min(10**6, int(seconds / pace))) if pace > 0 else 1

    def products(self, share: float | None, now: float, measurements: int) -> int:
        """Return how many products each measurement may take: twice what is left of the share, for a hard one."""
        if share is None or self._cold is None or self._started is None or self.per_product == 0:
            return _MOST_HVPS
        left = (share * (now - self._started) - self._spent) / (self.per_product * measurements)
        return int(min(_MOST_HVPS, max(_FEWEST_HVPS, 2 * left)))

    def spend(self, seconds: float, *, cold: bool) -> None:
        """Add what a measurement took."""
        self._spent += seconds
        if cold:
            self._cold = seconds
        else:
            self._warm.append(seconds)

    def share(self, now: float) -> float:
        """Return the share of the time so far."""
        elapsed = 0.0 if self._started is None else now - self._started
        return self._spent / elapsed if elapsed > 0 else 0.0

    def state_dict(self, now: float) -> dict[str, Any]:
        """Return plain numbers."""
        elapsed = self._elapsed if self._started is None else now - self._started
        return {
            "elapsed": elapsed,
            "spent": self._spent,
            "per_product": self.per_product,
            "cold": self._cold,
            "warm": list(self._warm),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the count; the time between does not count.

        Raises:
            ValueError: entries are missing, foreign or no numbers. Then nothing has changed.
        """
        if not isinstance(state, Mapping) or set(state) != set(self.state_dict(0.0)):
            raise ValueError(
                f"the saved budget has the entries {', '.join(self.state_dict(0.0))}; got {state!r:.200}."
            )
        warm = state["warm"] if isinstance(state["warm"], list | tuple) else [None]
        numbers = [state["elapsed"], state["spent"], state["per_product"], state["cold"] or 0, *warm]
        if not all(isinstance(n, int | float) and 0 <= n < math.inf for n in numbers):
            raise ValueError(f"the saved budget must be of numbers, 0 or greater, got {dict(state)}.")
        self._started, self._elapsed = None, state["elapsed"]
        self._spent, self._cold, self.per_product = state["spent"], state["cold"], state["per_product"]
        self._warm = deque(state["warm"], maxlen=_RECENT)
