"""The checks of arguments that every public entry uses: what was given, what is allowed, how to mend it."""

import difflib
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from edgewise.errors import EdgewiseError

# Wrappers of frameworks whose step() is that of the optimizer inside; an optimizer that changes the step of another
# (Lookahead) is one of its own.
_WRAPPERS = (
    "accelerate.optimizer.AcceleratedOptimizer",
    "lightning.pytorch.core.optimizer.LightningOptimizer",
    "lightning.fabric.wrappers._FabricOptimizer",
    "pytorch_lightning.core.optimizer.LightningOptimizer",
    "lightning_fabric.wrappers._FabricOptimizer",
)


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


def positive_count(name: str, value: object) -> int:
    """Return `value` as an int, or raise: it must be a whole number, one or greater.

    >>> positive_count("warmup_steps", 100)
    100
    """
    return _count(name, value, least=1)


def nonnegative_count(name: str, value: object) -> int:
    """Return `value` as an int, or raise: it must be a whole number, zero or greater."""
    return _count(name, value, least=0)


def known_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name`, or raise `UnknownNameError` that lists the known names and the nearest one.

    >>> known_name("figure", "fig1", ["fig1", "fig2"])
    'fig1'
    """
    names = sorted(known)
    if name in names:
        return name
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.3)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise UnknownNameError(f"unknown {kind} {name!r}; known: {', '.join(names)}.{hint}")


def a_module(name: str, value: object) -> nn.Module:
    """Return `value`, or raise: it must be a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {described(value)}: pass the model itself.")
    return value


def an_optimizer(name: str, value: object) -> Optimizer:
    """Return the optimizer that steps, out of the wrappers of accelerate and Lightning, or raise: it must be one.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    >>> an_optimizer("optimizer", sgd) is sgd
    True
    """
    while _is_wrapper(value):
        value = value.optimizer  # type: ignore[attr-defined]
    if not isinstance(value, Optimizer):
        raise TypeError(
            f"{name} must be a torch.optim.Optimizer, got {described(value)}: pass the optimizer that trains."
        )
    return value


def a_function(name: str, value: object, takes: str) -> Callable[..., Any]:
    """Return `value`, or raise: it must be callable; `takes` says with what.

    >>> a_function("loss_fn", "mse", "(model, batch), which returns the mean loss")
    Traceback (most recent call last):
    TypeError: loss_fn must be a function of (model, batch), which returns the mean loss; got 'mse' of type str.
    """
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{name} must be a function of {takes}; got {described(value)}.")
    return value


def described(value: object) -> str:
    """Return a value and its type, in few words."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, nn.Module | Optimizer):
        return f"a {type(value).__name__}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"


def _is_wrapper(value: object) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" in _WRAPPERS for cls in type(value).__mro__)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}.")
    return float(value)


def _count(name: str, value: object, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r} of type {type(value).__name__}.")
    if value < least:
        raise ValueError(f"{name} must be {least} or greater, got {value!r}.")
    return int(value)
