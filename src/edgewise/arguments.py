"""The checks of arguments that every public entry uses: what was given, what is allowed, how to mend it.

A value of the wrong kind is a TypeError, one out of range a ValueError, both before anything is computed. The order
of arguments is that of `CURVATURE_ORDER` and `TRAINING_ORDER`; what stands in another's place is told so.
"""

import difflib
import inspect
import math
import numbers
import reprlib
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from edgewise.errors import EdgewiseError, LossError

_T = TypeVar("_T")

CURVATURE_ORDER = ("model", "loss_fn", "batches", "optimizer")
TRAINING_ORDER = ("model", "optimizer", "loss_fn", "batch")

_MOST_COUNTED = 2**63 - 1  # what torch's counters and generators hold

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


# Numbers, names and flags


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


# What is measured


def a_module(name: str, value: object, order: tuple[str, ...] = ()) -> nn.Module:
    """Return `value`, or raise: it must be a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name} must be a torch.nn.Module, got {described(value)}: pass the model itself.{_place(value, order)}"
        )
    return value


def a_model(value: object, order: tuple[str, ...] = ()) -> nn.Module:
    """Return the argument `model`, or raise: it must be a module with parameters that hold values."""
    model = a_module("model", value, order)
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"model must have parameters, got {described(model)} without: pass the module that is trained; what is "
            "packed by quantization has no derivatives."
        )
    return check_materialized(model)


def check_materialized(model: nn.Module) -> nn.Module:
    """Return `model`, or raise: its parameters and buffers must hold values."""
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    lazy = [name for name, tensor in held.items() if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"model must be initialized, but {lazy[0]!r} is lazy and has no shape yet: run the model on a batch once."
        )
    empty = [name for name, tensor in held.items() if tensor.is_meta]
    if empty:
        raise ValueError(
            f"model must hold values, but {empty[0]!r} is on the meta device: load it with "
            "model.to_empty(device=...) and load_state_dict, or do not construct it under torch.device('meta')."
        )
    return model


def an_optimizer(
    name: str, value: object, order: tuple[str, ...] = (), *, may_be_empty: bool = False
) -> Optimizer:
    """Return the optimizer that steps, out of the wrappers of accelerate and Lightning, or raise: it must be one.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    >>> an_optimizer("optimizer", sgd) is sgd
    True
    """
    given = value
    while _is_wrapper(value):
        value = value.optimizer  # type: ignore[attr-defined]
    if not isinstance(value, Optimizer):
        raise TypeError(
            f"{name} must be a torch.optim.Optimizer, got {described(given)}: pass the optimizer that trains."
            f"{_place(given, order)}"
        )
    if not may_be_empty and not any(group["params"] for group in value.param_groups):
        raise ValueError(
            f"{name} must hold parameters, got {described(value)} without: construct it on model.parameters()."
        )
    return value


def a_function(
    name: str, value: object, takes: str, *, count: int | None = None, order: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Return `value`, or raise: it must be callable; `takes` says with what, and `count` how many arguments that is.

    >>> a_function("loss_fn", "mse", "(model, batch), which returns the mean loss")
    Traceback (most recent call last):
    TypeError: loss_fn must be a function of (model, batch), which returns the mean loss; got 'mse' of type str.
    """
    problem = ""
    if isinstance(value, type) or not callable(value):
        problem = f"got {described(value)}"
    elif _is_deferred(value):
        problem = f"got {described(value)}, whose body does not run when it is called: write return, not yield or async"
    elif count is not None and not _accepts(value, count):
        problem = f"got {described(value)}, which takes {_signature(value)}"
    elif count == 2 and _takes_outputs(value):
        problem = (
            f"got {described(value)}, which takes outputs and targets: call it in a function of your own"
        )
    if problem:
        raise TypeError(f"{name} must be a function of {takes}; {problem}.{_place(value, order)}")
    return value  # type: ignore[return-value]


def a_loss_function(value: object, order: tuple[str, ...]) -> Callable[..., Any]:
    """Return the argument `loss_fn`, or raise: it must be a function of model and batch."""
    takes = "(model, batch) that returns the mean loss, a scalar tensor"
    return a_function("loss_fn", value, takes, count=2, order=order)


def a_closure(value: object) -> Callable[..., Any]:
    """Return the argument `closure`, or raise: it must be a function without arguments."""
    takes = "no arguments that returns the loss, such as lambda: loss_fn(model, batch)"
    return a_function("closure", value, takes, count=0)


def a_batch(value: object) -> object:
    """Return the argument `batch`, or raise: it may be anything but a source of batches."""
    if isinstance(value, Iterator | DataLoader):
        raise TypeError(
            f"batch must be one batch, got {described(value)}, which yields them: pass next(iter(loader)), or the "
            "loader itself as batches=."
        )
    return value


def a_loss_value(name: str, value: object) -> Tensor | float | None:
    """Return `value`, or raise: it must be a scalar tensor of floating point, a number, or `None`; also not finite.

    >>> a_loss_value("loss", [0.5])
    Traceback (most recent call last):
    TypeError: loss must be the value given to backward(), a scalar tensor or a number, got [0.5] of type list.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise LossError(
                f"{name} must be one floating-point number, got {described(value)}: pass the mean that was "
                "differentiated."
            )
        if value.is_meta:
            raise LossError(f"{name} must hold a value, got one on the meta device.")
    elif value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(
            f"{name} must be the value given to backward(), a scalar tensor or a number, got {described(value)}."
        )
    return value  # type: ignore[return-value]


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
            f"expected a vector of shape ({size},), {dtype} on {device.type}, got {described(value)} on "
            f"{value.device.type}: use operator.size, operator.dtype and operator.device."
        )
    return value


# Words


def described(value: object) -> str:
    """Return a value and its type, in few words."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, nn.Module | Optimizer):
        return f"a {kind}"
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    words = reprlib.repr(value)
    return f"a {kind}" if words.startswith("<") else f"{words} of type {kind}"


def _place(value: object, order: tuple[str, ...]) -> str:
    """Say where a value of another argument's kind belongs."""
    if isinstance(value, nn.Module) and _takes_outputs(value):
        return ""  # one of torch's losses
    for kind, role in ((nn.Module, "model"), (Optimizer, "optimizer"), (FunctionType, "loss_fn")):
        if isinstance(value, kind) and role in order:
            return f" The order is ({', '.join(order)}), and this looks like {role}: are arguments swapped?"
    return ""


def _is_wrapper(value: object) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" in _WRAPPERS for cls in type(value).__mro__)


def _is_deferred(function: object) -> bool:
    return (
        inspect.isgeneratorfunction(function)
        or inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
    )


def _accepts(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments; True where Python cannot tell."""
    if type(function) is FunctionType and not function.__kwdefaults__:
        code = function.__code__
        if (
            not code.co_kwonlyargcount and not code.co_flags & inspect.CO_VARARGS
        ):  # quick: closures come at every step
            return code.co_argcount - len(function.__defaults__ or ()) <= count <= code.co_argcount
    try:
        signature = _signature(function)
    except (TypeError, ValueError):  # of C code
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _takes_outputs(function: object) -> bool:
    """Whether it is one of torch's losses, or takes what they take."""
    try:
        return list(_signature(function).parameters)[:2] == ["input", "target"]
    except (TypeError, ValueError):  # of C code
        return False


def _signature(function: Any) -> inspect.Signature:
    """Return what the function itself takes, not what it wraps; a module takes what its forward does."""
    return inspect.signature(
        function.forward if isinstance(function, nn.Module) else function, follow_wrapped=False
    )


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
