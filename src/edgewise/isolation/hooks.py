"""Hooks on all modules and all optimizers of a process, for this thread alone."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from edgewise.isolation.threads import Here, Override
from edgewise.torch_internals import GLOBAL_STEP_HOOKS, step_post_hooks, step_pre_hooks

CALLS = Override(nn.Module, "__call__")
_USES = [
    CALLS,
    *(
        Override(nn.Module, name)
        for name in ("train", "named_parameters", "named_buffers", "load_state_dict")
    ),
]
_MAKERS = [Override(nn.Module, name) for name in ("__init__", "__setstate__")]  # copies are given a state
_SILENT = Here()
_LOCK = threading.Lock()
_silencing: list[object] = []  # one for each measurement that keeps hooks from running


@contextmanager
def noticing_modules(
    use: Callable[[nn.Module], object], *, made: Callable[[nn.Module], object]
) -> Iterator[None]:
    """Tell of each module before it is used here: called, asked for its tensors, or switched; and of each that is made.

    >>> with noticing_modules(lambda module: print("using", module), made=lambda module: print("made")):
    ...     _ = nn.Tanh().eval()
    made
    using Tanh()
    """

    def told(tell: Callable[[nn.Module], object]) -> Callable[..., Any]:
        def call(original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            tell(module)
            return original(module, *args, **kwargs)

        return call

    with ExitStack() as stack:
        for overrides, tell in ((_USES, use), (_MAKERS, made)):
            for override in overrides:
                stack.enter_context(override.by(told(tell)))
        yield


@contextmanager
def silent_hooks(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Keep the user's step hooks, also those on all optimizers, from running on trial steps in this thread."""
    own = [
        hooks for optimizer in optimizers for hooks in (step_pre_hooks(optimizer), step_post_hooks(optimizer))
    ]
    with _LOCK:
        _silencing.append(own)
        _replace_all(_Silenced.of)
    try:
        with _SILENT.held(True), _emptied(own):
            yield
    finally:
        with _LOCK:
            _silencing.pop()
            if not _silencing:
                _replace_all(_Silenced.inside)


def _replace_all(replacement: Callable[[Any], Any]) -> None:
    """Replace each hook in place, as other threads may be running them, adding or removing some."""
    for hooks in GLOBAL_STEP_HOOKS:
        for key, hook in list(hooks.items()):
            if key in hooks:
                hooks[key] = replacement(hook)


class _Silenced:
    """A hook that does nothing in a thread that measures."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    @staticmethod
    def of(hook: Callable[..., Any]) -> "_Silenced":
        return hook if isinstance(hook, _Silenced) else _Silenced(hook)

    @staticmethod
    def inside(hook: Callable[..., Any]) -> Callable[..., Any]:
        return hook.hook if isinstance(hook, _Silenced) else hook

    def __call__(self, *args: Any) -> Any:
        return None if _SILENT.things() else self.hook(*args)


@contextmanager
def _emptied(hooks: Sequence[dict[int, Any]]) -> Iterator[None]:
    saved = [hook.copy() for hook in hooks]
    for hook in hooks:
        hook.clear()
    try:
        yield
    finally:
        for hook, entries in zip(hooks, saved, strict=True):
            hook.clear()
            hook.update(entries)
