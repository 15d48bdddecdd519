"""The batches of a trial: read one by one, from the start again where they run out."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from edgewise.arguments import described

_NO_COLLECTIONS = (Tensor, Mapping, nn.Module, np.ndarray, str, bytes)


class Supply:
    """Yields batches without end, each pass anew; a loader that shuffles does so in each.

    Args:
        batches: a list or tuple of batches, or another iterable that can be read again, such as a data loader.

    Raises:
        TypeError: `batches` can be read only once, or is a single batch.
        ValueError: there is no batch (raised when the first is read).

    Examples:
        >>> supply = Supply(["a", "b"])
        >>> [next(supply) for _ in range(5)], supply.num_passes
        (['a', 'b', 'a', 'b', 'a'], 3)
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        check_batches(batches)
        self._batches = batches
        self._iterator: Iterator[Any] | None = None
        self.num_passes = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for _ in range(2):  # the second: where the pass is over
            if self._iterator is None:
                self._iterator = iter(self._batches)
                self.num_passes += 1
            for batch in self._iterator:
                return batch
            self._iterator = None
        raise ValueError("batches is empty: pass at least one batch.")

    def take(self, number: int) -> list[Any]:
        """Return the next batches."""
        return [next(self) for _ in range(number)]


def check_batches(batches: object) -> None:
    """Raise unless these are batches that can be read again."""
    if isinstance(batches, _NO_COLLECTIONS) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be a list of batches or a data loader, got one {described(batches)}: write [batch] for a "
            "single one."
        )
    if isinstance(batches, tuple) and batches and all(isinstance(element, Tensor) for element in batches):
        raise TypeError(
            f"batches must be a list of batches, got one tuple of {len(batches)} tensors: write [batch] for a single "
            "one; tensors that are batches each come in a list."
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            "batches can be read only once (it is an iterator), and a trial that leaves no trace has to give them "
            "back: pass the data loader itself, or list(itertools.islice(batches, 200))."
        )
    if isinstance(batches, list | tuple) and not batches:
        raise ValueError("batches is empty: pass at least one batch.")


def generators_of(batches: object) -> list[torch.Generator]:
    """Return the generators that a data loader and its samplers draw from, besides torch's own."""
    if not isinstance(batches, DataLoader):
        return []
    sources = [batches, batches.sampler, batches.batch_sampler]
    if isinstance(batches.batch_sampler, BatchSampler):
        sources.append(batches.batch_sampler.sampler)
    found = [getattr(source, "generator", None) for source in sources]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
