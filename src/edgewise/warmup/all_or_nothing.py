"""A call that raises leaves a warmup as it was: its averages, counters and rates."""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

_Self = TypeVar("_Self")
_Options = ParamSpec("_Options")
_T = TypeVar("_T")

_OWN = ("edgewise.warmup.", "edgewise.signals.")  # modules of the parts that a warmup is made of


def all_or_nothing(
    method: Callable[Concatenate[_Self, _Options], _T],
) -> Callable[Concatenate[_Self, _Options], _T]:
    """Let a method that raises have done nothing to its object: to attributes, containers, and parts of its own.

    Tensors are not copied: the method must not write to one before the last line that can raise.

    >>> class Counter:
    ...     num, seen = 0, None
    ...     @all_or_nothing
    ...     def count(self, number):
    ...         self.num += 1
    ...         return 1 / number
    >>> counter = Counter()
    >>> counter.count(1)
    1.0
    >>> counter.count(0)
    Traceback (most recent call last):
    ZeroDivisionError: division by zero
    >>> counter.num
    1
    """

    @functools.wraps(method)
    def call(self: _Self, /, *args: _Options.args, **kwargs: _Options.kwargs) -> _T:
        before = [(container, container.copy()) for container in _containers(self)]
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            for container, contents in before:
                container.clear()
                container.update(contents) if isinstance(contents, dict) else container.extend(contents)
            raise

    return call


def _containers(owner: object) -> list[Any]:
    """Return what an object's state is in, each once, also that of parts of it that this package defines."""
    found: list[Any] = []
    parts, seen = [owner], {id(owner)}
    for part in parts:  # which grow in number on the way
        found.append(vars(part))
        for value in vars(part).values():
            if isinstance(value, dict | list | deque):
                found.append(value)
            elif type(value).__module__.startswith(_OWN) and id(value) not in seen:
                seen.add(id(value))
                parts.append(value)
    return found
