"""The climb of a warmup at the edge: by what the gradients say, at no forward."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.optimizers.averages import momentum, num_averages
from edgewise.ranks import Ranks
from edgewise.signals.slopes import RateShare
from edgewise.warmup.copies import ParameterCopies
from edgewise.warmup.state import Saved

_ENOUGH = 0.6  # share ζ of the critical rate at which climbing ends
_FEWEST_SLOPES = 5  # updates, before which ζ is what a batch or two say
# Climbs, and updates, that a warmup may take where the run's length is not known.
_LONGEST, _SHORTEST = 5, 200
_FASTEST = 0.3  # log-growth of the rate an update, without momentum


class Climb(ParameterCopies):
    """Where the updates fall short of the edge: η ← η·exp(ρ(1 − ζ/0.6)), until ζ ≥ 0.6 of five updates or more.

    ρ is the share of an update that momentum has forgotten by the next one, half of it where squares are averaged, too.
    """

    def __init__(self) -> None:
        self.ended: int | None = None  # with which update
        self.slopes = RateShare()

    def add(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        """Take in the gradients of the next batch."""
        self.slopes.add(parameters, ranks)
        if self.slopes.value is None and not self.slopes.kept:
            self.go_on(parameters)

    def growth(self, optimizer: Optimizer) -> float | None:
        """Return the log-growth of the rate an update; `None` if the last gradients say nothing."""
        share = self.slopes.value
        if share is None:
            return None
        return forgetting(optimizer) / num_averages(optimizer) * max(0.0, 1 - share / _ENOUGH)

    @property
    def is_on(self) -> bool:
        """Whether it has not ended."""
        return self.ended is None

    @property
    def latest_end(self) -> float:
        """The update that ends the warmup at the latest, where the run's length is not known."""
        return math.inf if self.ended is None else max(_SHORTEST, _LONGEST * self.ended)

    @property
    def is_high(self) -> bool:
        """Whether the updates take enough of the critical rate, by the slopes of five of them at least."""
        share = self.slopes.value
        return share is not None and share >= _ENOUGH and self.slopes.num_updates >= _FEWEST_SLOPES

    def go_on(self, parameters: Sequence[Tensor]) -> None:
        """Measure the coming update."""
        self.slopes.before_step(parameters)

    def end(self, update: int) -> None:
        """Climb no more, from an update on."""
        self.ended = update
        self.give_up()

    def after_step(self, parameters: Sequence[Tensor]) -> None:
        """Take the slope at the start of the update."""
        self.slopes.after_step(parameters)

    def adopt(self, parameters: Sequence[Tensor]) -> None:
        """Let the update go that not all parameters were part of."""
        self.slopes.give_up_copies()

    def give_up(self) -> None:
        """Forget all slopes."""
        self.slopes = RateShare()

    def state_dict(self, *, copies: bool = True) -> dict[str, Any]:
        """Return plain numbers, and copies of parameters if they are wanted: the averages stay in any case."""
        slopes = self.slopes.state_dict()
        if not copies:
            slopes |= {"kept": [], "moved": False}
        return {"_climb_ended": self.ended, "rate_share": slopes}

    def load_state_dict(self, saved: Saved) -> None:
        """Go on from a state."""
        self.ended = saved.count_or_none("_climb_ended")
        self.slopes = saved.signal("rate_share", RateShare())


def forgetting(optimizer: Optimizer) -> float:
    """Return 1 − β, the share of an update that momentum has forgotten by the next one; at most the fastest climb."""
    return min(_FASTEST, 1 - momentum(optimizer))
