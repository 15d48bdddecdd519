"""The rates that a warmup leads to."""

import weakref

from torch import Tensor
from torch.optim import Optimizer

from edgewise.errors import warn
from edgewise.optimizers.groups import floats, initial_rates, targets

# What warmups that have not come to their end wrote, and their targets: the next one on that optimizer takes these.
UNFINISHED = weakref.WeakKeyDictionary[Optimizer, tuple[list[float], list[float | Tensor]]]()


class Targets:
    """The rates of the groups when a warmup is made; where a warmup that ended early wrote them, its targets.

    Attributes:
        values: one a group.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.values = _meant(optimizer)
        self._doubt = _doubt(optimizer, self.values)  # to be said if no state is loaded

    def take_initial(self) -> None:
        """Lead to the rates that the first scheduler on the optimizer has started from."""
        self._doubt = None
        self.values = initial_rates(self._optimizer)

    def confirm(self) -> None:
        """Have no doubt that these are meant."""
        self._doubt = None

    def say_doubt(self) -> None:
        """Warn, once, where they may not be meant."""
        if self._doubt is not None:
            doubt, self._doubt = self._doubt, None
            warn(doubt)

    def leave(self, written: list[float], bases: list[float | Tensor]) -> None:
        """Leave word to the next warmup of what was written on the way to them."""
        UNFINISHED[self._optimizer] = (written, bases)

    def reach(self) -> None:
        """Leave no word: the warmup is over, and the rates are what they are."""
        UNFINISHED.pop(self._optimizer, None)


def _meant(optimizer: Optimizer) -> list[float]:
    own = targets(optimizer)
    written, meant = UNFINISHED.get(optimizer, ([], []))
    if not written or floats(optimizer)[: len(written)] != written:
        return own
    return [float(lr) for lr in meant] + own[len(meant) :]


def _doubt(optimizer: Optimizer, made_with: list[float]) -> str | None:
    """Return what to say where the rates are not those that an earlier scheduler has started from."""
    initial = initial_rates(optimizer)
    if made_with == initial:
        return None
    return (
        f"the warmup's targets are the optimizer's learning rates as they stood, {made_with}, where an earlier "
        f"scheduler started from {initial}: if this run goes on from a checkpoint, load the warmup's state, too."
    )
