"""Methods of an object replaced for a while, and the object as it was before."""

import copy
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

_LEAVES = (type(None), bool, int, float, complex, str)
_DATA = ("train_dataset", "eval_dataset")  # plain lists at times, and large: training does not change them


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an attribute of one object be `value` inside, and what it was afterwards.

    >>> class Greeter:
    ...     def greet(self):
    ...         return "good day"
    >>> greeter = Greeter()
    >>> with replaced(greeter, "greet", lambda: "hello"):
    ...     greeter.greet()
    'hello'
    >>> greeter.greet(), vars(greeter)
    ('good day', {})
    """
    own = vars(owner)
    was_own, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if was_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def unchanged(owner: Any) -> Iterator[None]:
    """Let what is assigned to attributes inside, or written into plain ones, be undone afterwards.

    Plain are numbers, strings, tensors of one number, and containers of those. Inside, the object has copies of them.
    Other lists, dicts, sets and deques get back what they held, such as a list of tensors that one was appended to.

    >>> class Counter:
    ...     total, names = 0, ["a"]
    >>> counter = Counter()
    >>> counter.names, counter.rows = ["a"], [object()]
    >>> with unchanged(counter):
    ...     counter.total += 1
    ...     counter.names.append("b")
    ...     counter.rows.append(object())
    >>> counter.total, counter.names, len(counter.rows)
    (0, ['a'], 1)
    """
    own = vars(owner)
    before = dict(own)
    own.update(
        {
            name: copy.deepcopy(value)
            for name, value in before.items()
            if name not in _DATA and is_plain(value)
        }
    )
    held = [
        (value, copy.copy(value))
        for name, value in before.items()
        if name not in _DATA and type(value) in (list, dict, set, deque) and own[name] is value
    ]
    try:
        yield
    finally:
        for name in own.keys() - before.keys():
            del own[name]
        own.update(before)
        for value, contents in held:
            value.clear()
            value.extend(contents) if isinstance(contents, list | deque) else value.update(contents)


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a string, a tensor of one number, or a container of those.

    >>> is_plain({"loss": [0.5, 1.0]}), is_plain(object())
    (True, False)
    """
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.requires_grad  # a parameter is what the loss depends on
    if isinstance(value, Mapping):
        return all(is_plain(key) and is_plain(child) for key, child in value.items())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(map(is_plain, value))
    return isinstance(value, _LEAVES)
