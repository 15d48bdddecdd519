"""Checks of what is measured: the model, its optimizer, the functions that return a loss, the batch.

The order of arguments is that of `CURVATURE_ORDER` and `TRAINING_ORDER`; what stands in another's place is told so.
"""

import inspect
import numbers
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from edgewise.arguments.values import learning_rate
from edgewise.arguments.words import described
from edgewise.errors import LossError

CURVATURE_ORDER = ("model", "loss_fn", "batches", "optimizer")
TRAINING_ORDER = ("model", "optimizer", "loss_fn", "batch")
_DEFERRED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR  # flags of code

# Wrappers of frameworks whose step() is that of the optimizer inside; an optimizer that changes the step of another
# (Lookahead) is one of its own.
_WRAPPERS = (
    "accelerate.optimizer.AcceleratedOptimizer",
    "lightning.pytorch.core.optimizer.LightningOptimizer",
    "lightning.fabric.wrappers._FabricOptimizer",
    "pytorch_lightning.core.optimizer.LightningOptimizer",
    "lightning_fabric.wrappers._FabricOptimizer",
)
# Modules of optimizers whose step is that of an engine, which accumulates, clips and holds gradients out of sight;
# those in deepspeed.ops are ordinary ones.
_ENGINES = ("accelerate.utils.deepspeed.", "deepspeed.runtime.")


def a_module(name: str, value: object, order: tuple[str, ...] = ()) -> nn.Module:
    """Return `value`, or raise: it must be a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"{name} must be a torch.nn.Module, got {described(value)}: pass the model itself."
            f"{_place(name, value, order)}"
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
    return check_restorable(model)


def check_restorable(model: nn.Module) -> nn.Module:
    """Return `model`, or raise: its parameters and buffers must hold values that can be brought back."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError(
            "model must be of Python code, got a torch.jit.ScriptModule or one inside, whose buffers cannot be put "
            "back: pass the module it was made from."
        )
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
    name: str,
    value: object,
    order: tuple[str, ...] = (),
    *,
    may_be_empty: bool = False,
    has_rates: bool = False,
) -> Optimizer:
    """Return the optimizer that steps, out of the wrappers of accelerate and Lightning, or raise: it must be one.

    Its groups must hold parameters, unless it `may_be_empty`, and with `has_rates` learning rates. Those of DeepSpeed's
    engine are refused.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    >>> an_optimizer("optimizer", sgd) is sgd
    True
    """
    given = value
    while _is_wrapper(value) and not _is_engines(value):
        value = value.optimizer  # type: ignore[attr-defined]
    if _is_engines(value):
        raise TypeError(
            f"{name} must be one whose gradients stand in .grad before its step, got {described(given)}: DeepSpeed's "
            "engine clips and steps out of sight. Record a warmup in a run without it, and train with that schedule: "
            "warmup.export() says how to replay it."
        )
    if not isinstance(value, Optimizer):
        raise TypeError(
            f"{name} must be a torch.optim.Optimizer, got {described(given)}: pass the optimizer that trains."
            f"{_place(name, given, order)}"
        )
    if not may_be_empty and not any(group["params"] for group in value.param_groups):
        raise ValueError(
            f"{name} must hold parameters, got {described(value)} without: construct it on model.parameters()."
        )
    for i, group in enumerate(value.param_groups if has_rates else ()):
        learning_rate(group, i)
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
        raise TypeError(f"{name} must be a function of {takes}; {problem}.{_place(name, value, order)}")
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


def _place(name: str, value: object, order: tuple[str, ...]) -> str:
    """Say where a value of another argument's kind belongs."""
    if isinstance(value, nn.Module) and _takes_outputs(value):
        return ""  # one of torch's losses
    for kind, role in ((nn.Module, "model"), (Optimizer, "optimizer"), (FunctionType, "loss_fn")):
        if isinstance(value, kind) and role in order and role != name:
            return f" The order is ({', '.join(order)}), and this looks like {role}: are arguments swapped?"
    return ""


def _is_wrapper(value: object) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" in _WRAPPERS for cls in type(value).__mro__)


def _is_engines(value: object) -> bool:
    return any(f"{cls.__module__}.".startswith(_ENGINES) for cls in type(value).__mro__)


def _is_deferred(function: object) -> bool:
    if type(function) is FunctionType and not vars(function):  # quick: closures come at every step
        return bool(function.__code__.co_flags & _DEFERRED)
    return (
        inspect.isgeneratorfunction(function)
        or inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
    )


def _accepts(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments; True where Python cannot tell."""
    if type(function) is FunctionType and not function.__kwdefaults__:
        code = function.__code__
        if not code.co_kwonlyargcount and not code.co_flags & inspect.CO_VARARGS:  # quick, too
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
