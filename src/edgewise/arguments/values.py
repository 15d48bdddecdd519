"""Checks of numbers, names, flags and vectors."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgewise.arguments.words import described
from edgewise.errors import EdgewiseError

_T = TypeVar("_T")

_MOST_COUNTED = 2**63 - 1  # what torch's counters and generators hold


class UnknownNameError(EdgewiseError, ValueError):
    """A name is not in the list it was looked up in."""


def positive_number(name: str, value: object) -> float:
    """Return `value` as a float, or raise: it must be a finite number greater than zero.

    >>> positive_number("lr", 0.1)
    0.1
    """
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number greater than 0, got {value!r}.")
    return number


def nonnegative_number(name: str, value: object) -> float:
    """Return `value` as a float, or raise: it must be a finite number, zero or greater."""
    number = _number(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or greater, got {value!r}.")
    return number


def number_below_one(name: str, value: object) -> float:
    """Return `value` as a float, or raise: it must be a number from 0 to below 1."""
    number = nonnegative_number(name, value)
    if number >= 1:
        raise ValueError(f"{name} must be from 0 to below 1, got {value!r}.")
    return number


def positive_share(name: str, value: object, mend: str) -> float:
    """Return `value` as a float, or raise: it must be a number above 0, and 1 at most; `mend` says what instead.

    >>> positive_share("rtol", 2.5, "1e-3 is a tenth of a per cent")
    Traceback (most recent call last):
    ValueError: rtol must be above 0 and at most 1, got 2.5: 1e-3 is a tenth of a per cent.
    """
    number = positive_number(name, value)
    if number > 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}: {mend}.")
    return number


def positive_count(name: str, value: object) -> int:
    """Return `value` as an int, or raise: it must be a whole number, one or greater.

    >>> positive_count("warmup_steps", 100)
    100
    """
    return _count(name, value, least=1)


def nonnegative_count(name: str, value: object) -> int:
    """Return `value` as an int, or raise: it must be a whole number, zero or greater."""
    return _count(name, value, least=0)


def a_flag(name: str, value: object) -> bool:
    """Return `value`, or raise: it must be True or False; "False" would count as true.

    >>> a_flag("maximize", "False")
    Traceback (most recent call last):
    TypeError: maximize must be True or False, got 'False' of type str.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {described(value)}.")
    return value


def known_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name`, or raise `UnknownNameError` that lists the known names and the nearest one.

    >>> known_name("figure", "fig1", ["fig1", "fig2"])
    'fig1'
    """
    names = sorted(known)
    if isinstance(name, str) and name in names:
        return name
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.3)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise UnknownNameError(f"unknown {kind} {name!r}; known: {', '.join(names)}.{hint}")


def name_patterns(name: str, value: object) -> list[str] | None:
    """Return shell-style patterns as a list, or `None` for all, or raise: they are a string or several.

    >>> name_patterns("params", "head.*")
    ['head.*']
    """
    if value is None:
        return None
    several = isinstance(value, Iterable) and not isinstance(value, str | Tensor)
    patterns: list[Any] = list(value) if several else [value]  # type: ignore[call-overload]
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"{name} must be a pattern of parameters' names, such as 'layers.0.*', a list of at least one, or None "
            f"for all; got {described(value)}."
        )
    return patterns


def an_instance(name: str, value: object, kind: type[_T], mend: str) -> _T:
    """Return `value`, or raise: it must be of a class; `mend` says where one comes from."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {described(value)}: {mend}.")
    return value


def a_vector(name: str, value: object, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `value`, or raise: it must be a tensor of shape (size,), of the dtype and on the device of an operator."""
    if not isinstance(value, Tensor):
        mend = "torch.as_tensor(vector), or to_scipy() for NumPy's"
        raise TypeError(f"{name} must be a tensor of shape ({size},), got {described(value)}: pass {mend}.")
    if value.shape != (size,) or value.dtype != dtype or value.device.type != device.type:
        raise ValueError(
            f"{name} must be of shape ({size},) and {dtype} on {device.type}, got {described(value)} on "
            f"{value.device.type}: use operator.size, operator.dtype and operator.device."
        )
    return value


def learning_rate(group: Mapping[str, Any], index: int) -> float:
    """Return the rate of a parameter group, or raise: it must be a finite number, zero or greater.

    >>> learning_rate({"lr": torch.tensor(0.5)}, 0)
    0.5
    """
    name = f"the learning rate of parameter group {index}"
    if "lr" not in group:
        raise TypeError(
            f"{name} must be its option 'lr', got {', '.join(group)}: pass an optimizer that has rates."
        )
    rate = group["lr"]
    return nonnegative_number(name, rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {described(value)}.")
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def _count(name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {described(value)}.")
    if value < least:
        raise ValueError(f"{name} must be {least} or greater, got {value!r}.")
    if not value <= _MOST_COUNTED:
        raise ValueError(f"{name} must be at most 2^63 - 1, got {value!r}.")
    return int(value)
