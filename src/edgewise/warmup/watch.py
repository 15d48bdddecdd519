"""The watch over the losses: which update takes a share of its rate, when to halve it, and whether they fall."""

import math
from typing import Any

from edgewise.signals.losses import LossTrend, Overflows, RiseAlarm, SpikeGuard, Surge
from edgewise.warmup.settling import SHORTEST_HOLD
from edgewise.warmup.state import Saved

_LASTS = 4  # lengths of the warmup, of 50 updates at least, in which a rise of the loss halves the rate


class LossWatch:
    """Takes in the losses, also when the warmup is over.

    Attributes:
        rises: whether the last loss says that the rate is to be halved.
        trend: whether they fall.
    """

    def __init__(self) -> None:
        self.guard, self.trend = SpikeGuard(), LossTrend()
        self.alarm, self.surge, self.overflows = RiseAlarm(), Surge(), Overflows()
        self.rises = False

    def add(self, loss: float, update: int, *, recovery: float) -> None:
        """Take in the loss of the coming update; a share of the rate grows back by exp(`recovery`) an update."""
        self.overflows.add(loss, update)
        self.rises = self.overflows.value
        if math.isfinite(loss):
            self.guard.add(loss, recovery=recovery)
            self.alarm.add(loss)
            self.trend.add(loss, update)
            self.surge.add(loss)
            self.rises = self.rises or self.alarm.value or self.surge.value
            if self.surge.value:  # one event
                self.alarm.restart()

    @property
    def share(self) -> float:
        """The share of the rate that the coming update takes."""
        return self.guard.value

    def lasts(self, end: int | None, update: int) -> bool:
        """Whether a rise is still the concern of a warmup with this end, if it has one."""
        return end is None or update < _LASTS * max(end, SHORTEST_HOLD)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            name: getattr(self, name).state_dict()
            for name in ("guard", "trend", "alarm", "surge", "overflows")
        }

    def load_state_dict(self, saved: Saved) -> None:
        """Go on from a state."""
        self.guard = saved.signal("guard", SpikeGuard())
        self.alarm = saved.signal("alarm", RiseAlarm())
        self.overflows = saved.signal("overflows", Overflows())
        self.surge = saved.signal("surge", Surge())
        self.trend = saved.signal("trend", LossTrend())
