"""What a measurement changes in torch for all of a process, changed for the thread that measures alone.

A method of one of torch's classes is replaced while some thread asks for it, by one that only differs in threads that
do. It comes back when the last of them is done, in whatever order they end. The backward passes that such a thread
starts belong to it: torch hands thread-local objects on to its autograd threads (`torch_internals.stash`). Other
threads that it starts do not.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edgewise.torch_internals import stash, stashed

_KEY = "edgewise"  # of all that threads hold, as a tuple of `_Held`, the outermost first


class _Held:
    def __init__(self, holder: "Here", thing: Any) -> None:
        self.holder, self.thing = holder, thing
        self.is_held = True  # also where it is let go of by another thread, as a generator may be


class Here:
    """Things that a thread holds for a while, each thread its own.

    >>> here = Here()
    >>> with here.held("one"), here.held("two"):
    ...     here.things()
    ['one', 'two']
    >>> here.things()
    []
    """

    def things(self) -> list[Any]:
        """Return what this thread holds, the outermost first."""
        return [held.thing for held in _all_held() if held.holder is self and held.is_held]

    @contextmanager
    def held(self, thing: Any) -> Iterator[None]:
        """Hold a thing in this thread."""
        held = _Held(self, thing)
        stash(_KEY, (*_all_held(), held))
        try:
            yield
        finally:
            held.is_held = False
            stash(_KEY, tuple(other for other in _all_held() if other.is_held))


def _all_held() -> tuple[_Held, ...]:
    held: tuple[_Held, ...] = stashed(_KEY) or ()
    return held


class Override:
    """A method of a class, or a function of a module, that threads may replace for themselves.

    What torch.compile compiles meanwhile is compiled with the original.

    >>> class Door:
    ...     def knock(self):
    ...         return "who"
    >>> knock = Door.knock
    >>> with Override(Door, "knock").by(lambda original, door: original(door) + " is there?"):
    ...     Door().knock()
    'who is there?'
    >>> Door.knock is knock
    True
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._here = Here()
        self._lock = threading.Lock()
        self._num_users = 0
        self._original: Callable[..., Any] | None = None
        self._method: Callable[..., Any] | None = None

    @contextmanager
    def by(self, around: Callable[..., Any]) -> Iterator[None]:
        """Send this thread's calls through `around(original, *args, **kwargs)`; the outermost `around` comes first."""
        with self._lock:
            self._num_users += 1
            if self._num_users == 1:
                self._install()
        try:
            with self._here.held(around):
                yield
        finally:
            with self._lock:
                self._num_users -= 1
                if self._num_users == 0 and vars(self._owner)[self._name] is self._method:
                    setattr(self._owner, self._name, self._original)

    def _install(self) -> None:
        original: Callable[..., Any] = vars(self._owner)[self._name]
        if original is self._method:
            return
        if original is not self._original:  # else code that was compiled knows the method
            self._original, self._method = original, self._around(original)
        setattr(self._owner, self._name, self._method)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        here = self._here

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            # What is compiled stays, and serves training. A method that others had wrapped may stay beneath the next.
            if torch.compiler.is_compiling() or self._method is not method:
                return original(*args, **kwargs)
            call = original
            for around in reversed(here.things()):
                call = functools.partial(around, call)
            return call(*args, **kwargs)

        return method
