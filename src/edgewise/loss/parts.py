"""A part of the samples, to look at before the whole: what it costs is in proportion, what it says is near."""

from collections.abc import Iterator
from typing import Any

from edgewise.loss.batches import Batches, rows_of
from edgewise.ranks import Ranks

_FEWEST_SAMPLES = 64  # of all: with fewer, a part of them is mostly noise, and takes Python's time


class Part:
    """About a share of the samples of some batches: the first batches, and of the last of these rows evenly apart.

    Evenly apart, as the samples of one batch may be sorted. Read anew in each pass: of a loader nothing is held.

    Args:
        batches: all of them; each has a size.
        share: of this rank's samples, in (0, 1].

    Examples:
        >>> import torch
        >>> [batch.tolist() for batch in Part(Batches([torch.arange(4), torch.arange(6)]), 0.7)]
        [[0, 1, 2, 3], [0, 2, 4]]
    """

    def __init__(self, batches: Batches, share: float) -> None:
        self._batches = batches
        sizes = [size or 0 for size in batches.sizes]
        left = max(1, int(share * sum(sizes)))
        self._counts: list[tuple[int, int]] = []  # samples taken of a batch, and its size
        for size in sizes:
            if left > 0:
                self._counts.append((min(size, left), size))
                left -= size

    def __iter__(self) -> Iterator[Any]:
        # The counts come first: another batch is not fetched to see that there is no more to take.
        for (count, size), batch in zip(self._counts, self._batches, strict=False):
            if count == size:
                yield batch
            else:
                apart = size // count
                yield rows_of(batch, slice(0, count * apart, apart))


def can_be_parted(batches: Batches, share: float, ranks: Ranks) -> bool:
    """Whether every rank has samples enough, and one at least in such a share of its batches; collective."""
    samples = sum(size or 0 for size in batches.sizes)
    enough = samples >= _FEWEST_SAMPLES and share * samples >= 1
    return all(ranks.gather(None not in batches.sizes and enough))
