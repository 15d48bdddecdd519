"""The creep of a warmup at the edge: by what the loss on fresh batches says, now and some updates ago."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from edgewise.critical import BestStepResult, closure_loss
from edgewise.isolation.bits import exchanged
from edgewise.signals.losses import LossTrend
from edgewise.warmup.copies import ParameterCopies
from edgewise.warmup.state import Saved

_FASTEST = 0.1  # log-growth of the rate an update
_POWER = 2.0  # p: while every look finds that the loss has fallen, the rate grows like tᵖ
_SPACING = 1 / 10  # of the updates so far: how many lie between two looks
_SAME_LOSS = 8.0  # roundings, of float32 at most, up to which the closure's loss is the one given
_FLOAT32 = 2.0**-23  # relative


class Creep(ParameterCopies):
    """Near the edge: η ← η·exp(2s/t), s the trend of the loss, from looks that are ⌈t/10⌉ updates apart.

    A look is a forward at the parameters of the last one, of which a copy is kept, on the batch of the coming update.
    """

    def __init__(self) -> None:
        self.trend = LossTrend()
        self.reference: list[Tensor] = []  # the parameters at the last look
        self.next_look = 0
        self.loss_is_exact = False  # whether the closure returns the loss that is given, to rounding

    def begin(self, found: BestStepResult, given: float | None) -> None:
        """Take in the loss of the first batch: by the closure, and as it was given."""
        self.trend.begin(found.loss)
        rounding = min(found.resolution, _FLOAT32 * abs(found.loss))
        self.loss_is_exact = given is not None and abs(given - found.loss) <= _SAME_LOSS * rounding

    def refer_to(self, parameters: Sequence[Tensor], update: int) -> None:
        """Let the next look compare with the parameters as they are."""
        if self.reference:
            for kept, parameter in zip(self.reference, parameters, strict=True):
                kept.copy_(parameter.detach())
        else:
            self.reference = [p.detach().clone() for p in parameters]
        self.next_look = update + math.ceil(_SPACING * (update + 1))

    def add(
        self, loss: float, closure: Callable[[], Tensor], parameters: Sequence[Tensor], update: int
    ) -> None:
        """Compare the loss of the coming batch, finite, with what it was at the last look: one forward."""
        with exchanged(parameters, self.reference):
            before, _ = closure_loss(closure, parameters, finite=False)
        self.trend.add(loss, before)
        self.refer_to(parameters, update)

    def growth(self, update: int) -> float:
        """Return the log-growth of the rate an update."""
        return min(_FASTEST, _POWER / (update + 1)) * self.trend.value

    def after_step(self, parameters: Sequence[Tensor]) -> None:
        """Stay: the reference is that of the last look."""

    def adopt(self, parameters: Sequence[Tensor]) -> None:
        """Let new parameters be part of the reference as they are."""
        if self.reference:
            self.reference += [p.detach().clone() for p in parameters[len(self.reference) :]]

    def give_up(self) -> None:
        """Look no more."""
        self.reference = []

    def state_dict(self, *, copies: bool = True) -> dict[str, Any]:
        """Return plain numbers, and a copy of parameters if it is wanted."""
        return {
            "trend": self.trend.state_dict(),
            "reference": [p.clone() for p in self.reference] if copies else [],
            "_next_look": self.next_look,
            "_loss_is_exact": self.loss_is_exact,
        }

    def load_state_dict(self, saved: Saved) -> None:
        """Go on from a state."""
        self.trend = saved.signal("trend", LossTrend())
        self.reference = saved.tensors("reference", whole=True)
        self.next_look = saved.count("_next_look")
        self.loss_is_exact = saved.flag("_loss_is_exact")
