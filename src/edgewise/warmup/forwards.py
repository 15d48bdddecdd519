"""What a warmup has spent on looking at the loss, and what it may spend."""

import math

MOST_FORWARDS = 60  # of one search
_FORWARDS_PER_STEP = 3  # a backward costs about two forwards


class Forwards:
    """Counts the evaluations of the loss by `observe`, and the searches among them."""

    def __init__(self) -> None:
        self.num = self.num_searches = 0

    def affordable(self, max_overhead: float | None, *, updates: int) -> int:
        """Return how many forwards are left of a share of the cost of so many updates."""
        if max_overhead is None:
            return MOST_FORWARDS
        left = max_overhead * _FORWARDS_PER_STEP * updates - self.num
        return max(0, min(MOST_FORWARDS, math.floor(left)))

    def overhead(self, updates: int) -> float:
        """Return the share of the cost of so many updates, one at least, that was spent."""
        return self.num / (_FORWARDS_PER_STEP * max(1, updates))
