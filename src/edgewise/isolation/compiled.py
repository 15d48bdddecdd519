"""The modules that functions compiled by torch.compile run: what is compiled calls no hook of theirs."""

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from edgewise.torch_internals import is_compiled_module, original_of_compiled

_MOST_ENTRIES = 1000  # of a container that is looked into
_MOST_SEEN = 2000  # functions and objects


def compiled_modules(function: object) -> list[nn.Module]:
    """Return the modules that compiled functions may run, of those which this function may call.

    Looked at are what functions enclose, their defaults, the global names they use, and the objects they are methods
    of. Modules outside compiled functions are found as they run.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> forward = torch.compile(lambda x: model(x), backend="eager")
    >>> compiled_modules(functools.partial(forward, torch.ones(1, 2))), compiled_modules(model.forward)
    ([Linear(in_features=2, out_features=1, bias=True)], [])
    """
    return [
        value for value, is_compiled in _reached(function) if is_compiled and isinstance(value, nn.Module)
    ]


def runs_compiled(model: nn.Module, function: object) -> bool:
    """Whether torch.compile has a part in a module, or in what a function may call: it compiles anew for new shapes.

    >>> import torch
    >>> forward = torch.compile(lambda model, x: model(x).mean(), backend="eager")
    >>> runs_compiled(nn.Linear(2, 1), forward), runs_compiled(nn.Linear(2, 1), lambda model, x: model(x).mean())
    (True, False)
    """
    return any(is_compiled_module(module) for module in model.modules()) or any(
        is_compiled or (isinstance(value, nn.Module) and any(map(is_compiled_module, value.modules())))
        for value, is_compiled in _reached(function)
    )


def _reached(function: object) -> Iterator[tuple[Any, bool]]:
    """Yield what a function may call, the nearest first, and whether it is so inside something compiled."""
    seen: set[tuple[int, bool]] = set()
    waiting: deque[tuple[Any, bool]] = deque([(function, False)])
    while waiting and len(seen) < _MOST_SEEN:
        value, is_compiled = waiting.popleft()
        if (id(value), is_compiled) in seen:
            continue
        seen.add((id(value), is_compiled))
        yield value, is_compiled
        if isinstance(value, nn.Module):
            continue
        if (original := original_of_compiled(value)) is not None:
            waiting.append((original, True))  # of what torch.compile returned
        else:
            waiting.extend((child, is_compiled) for child in _children(value, is_compiled))


def _children(value: Any, is_compiled: bool) -> Iterable[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        return _used_by(value) if is_compiled or not _is_library(value) else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return value if len(value) <= _MOST_ENTRIES else []
    is_object = hasattr(value, "__dict__") and not isinstance(value, type) and not _is_library(type(value))
    return list(vars(value).values()) if is_object and (is_compiled or callable(value)) else []


def _used_by(function: FunctionType) -> list[Any]:
    names, known = set(_global_names(function.__code__)), function.__globals__
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    used = [known[name] for name in names if name in known]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *used]


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _is_library(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in ("torch", "edgewise")
