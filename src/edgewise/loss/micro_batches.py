"""The micro-batches of one update, with shares of its loss that are given, not those of the samples."""

from collections.abc import Iterable, Sequence
from typing import Any


class MicroBatches(list[Any]):
    """Micro-batches of which the loss is L = Σᵢ shareᵢ·Lᵢ; over several ranks, the mean of that.

    Args:
        batches: of one update.
        shares: a factor > 0 for each.

    >>> MicroBatches(["a", "b"], [0.5, 0.25]).shares
    [0.5, 0.25]
    """

    def __init__(self, batches: Iterable[Any], shares: Sequence[float]) -> None:
        super().__init__(batches)
        self.shares = list(shares)
