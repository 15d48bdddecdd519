"""Warmups of an optimizer set aside, so that a trial on it can have one of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer

from edgewise.warmup.position import listeners_aside
from edgewise.warmup.targets import unfinished_aside


@contextmanager
def warmups_aside(optimizer: Optimizer) -> Iterator[None]:
    """Let an optimizer seem new to warmups that are made inside, and know of none of them afterwards.

    Inside `isolated`, which keeps the hooks of the optimizer from telling those that follow it. Close a warmup that is
    made inside before leaving.
    """
    with listeners_aside(optimizer), unfinished_aside(optimizer):
        yield
