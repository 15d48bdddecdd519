"""Warmups of an optimizer set aside, so that a trial on it can have one of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from edgewise.warmup.position import LISTENERS
from edgewise.warmup.targets import UNFINISHED


@contextmanager
def warmups_aside(optimizer: Optimizer) -> Iterator[None]:
    """Let an optimizer seem new to warmups that are made inside, and know of none of them afterwards.

    Inside `isolated`, which keeps the hooks of the optimizer from telling those that follow it. Close a warmup that is
    made inside before leaving.
    """
    known: list[WeakKeyDictionary[Optimizer, Any]] = [LISTENERS, UNFINISHED]
    kept = [notes.pop(optimizer, None) for notes in known]
    try:
        yield
    finally:
        for notes, own in zip(known, kept, strict=True):
            notes.pop(optimizer, None)
            if own is not None:
                notes[optimizer] = own
