"""When a rate has settled."""

from typing import Any

from edgewise.warmup.state import Saved

CHANGE = 1.2  # a rate that changes by less than this factor …
_TIME = 1.5  # … while the number of updates grows by this one, has settled
SHORTEST_HOLD = 50  # updates that it must have stood for at least


class Settling:
    """Whether a rate has changed by less than a fifth over the last third of the updates, and over 50 at least.

    At the target it stands from the update on that arrives there.
    """

    def __init__(self) -> None:
        self.mark = (0, 0.0)  # update and factor since which the rate has changed by less than a fifth
        self.value = False

    def begin(self, update: int, factor: float) -> None:
        """Let the rate stand from here on."""
        self.mark = (update, factor)

    def add(self, update: int, factor: float) -> None:
        """Take in the factor of an update."""
        since, before = self.mark
        arrives = factor == 1.0 > before
        if arrives or not 1 / CHANGE <= factor / before <= CHANGE:
            since = update
            self.mark = (update, factor)
        self.value = update >= max(_TIME * since, since + SHORTEST_HOLD)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {"_mark": self.mark}

    def load_state_dict(self, saved: Saved) -> None:
        """Go on from a state."""
        self.mark = saved.step("_mark")
