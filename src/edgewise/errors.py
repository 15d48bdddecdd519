"""Statuses that explain themselves, the few exceptions, and the checks of arguments."""

import difflib
import enum
import math
import numbers
from collections.abc import Iterable


class Status(enum.Enum):
    """How a measurement ended. The value of a member is its explanation.

    >>> Status.CONVERGED.value
    'the residual is within rtol'
    """

    CONVERGED = "the residual is within rtol"
    FOUND = "the bracket holds the critical learning rate"
    ABOVE_MAX_LR = "the loss does not rise up to max_lr: the critical learning rate lies above"
    NOT_A_DESCENT_DIRECTION = (
        "the update does not point downhill for this loss (slope >= 0): wrong batch, stale or scaled "
        "gradient, or momentum that dominates"
    )
    BELOW_RESOLUTION = (
        "the loss is not precise enough to tell where it starts to rise: the noise floor exceeds rtol"
    )
    NO_CATAPULT = (
        "the loss does not rise at any rate: it levels off, or falls on up to 2^24 times the first rate"
    )
    MULTIPLE_CROSSINGS = (
        "the loss rises, falls below its value again, and rises: the bracket holds the first rise seen"
    )
    SCALED_GRADIENT = (
        "the gradients are a power of two larger than the loss says: unscale them first (GradScaler.unscale_)"
    )
    OTHER_GRADIENT = (
        "the gradients are not this loss's: another batch, stale gradients, or a closure that scales the loss"
    )
    UNDER_WAY = "the rate is still rising"
    AT_TARGET = "the target rate is reached"
    HELD_BELOW_TARGET = (
        "the loss of fresh batches did not fall better at higher rates: the rate is held below its target"
    )
    FELL_BACK = "nothing could be measured: the rate rises as in linear warmup"
    NOT_FINITE = "the Hessian is not finite here: the value is reported as infinite"
    BUDGET_EXHAUSTED = "the budget ran out before the tolerance was met: the number is provisional"
    LINEAR = "at fixed P the update is linear in the gradients: the stability limit is exact"
    NO_LINEAR_LIMIT = (
        "at fixed P the update is not a steady mean of past gradients: the optimizer has no stability limit "
        "of the form lr × preconditioned sharpness"
    )
    NO_PRECONDITIONER = (
        "no diagonal preconditioner is registered for this optimizer, so that its stability limit is in no "
        "known unit"
    )


class EdgewiseError(Exception):
    """Base of the exceptions that are edgewise's own."""


class LossError(EdgewiseError, ValueError):
    """The loss function returned something that cannot be measured."""


class SecondDerivativeError(EdgewiseError, RuntimeError):
    """A Hessian-vector product cannot be had by the chosen route, or not precisely enough."""


class UnknownNameError(EdgewiseError, ValueError):
    """A name is not in the list it was looked up in."""


class PreconditionerError(EdgewiseError, TypeError):
    """The optimizer's update has no diagonal preconditioner that edgewise can read."""


class SideEffectError(EdgewiseError, AssertionError):
    """Something that training depends on is not what it was before."""


class DataError(EdgewiseError, RuntimeError):
    """A data set is not where it should be, or not what it should be."""


class RecipeError(EdgewiseError, ValueError):
    """A recipe file does not say what to run."""


class WorkerError(EdgewiseError, RuntimeError):
    """A process that trains is gone."""


class StoreError(EdgewiseError, RuntimeError):
    """A results folder cannot be used as asked."""


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
