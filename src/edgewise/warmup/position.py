"""The updates of an optimizer, each once, and which gradients they were made of; nothing here keeps a warmup alive."""

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from edgewise.errors import warn
from edgewise.optimizers.groups import parameters
from edgewise.torch_internals import HOOKED_STEP, has_step_hooks, let_class_run_hooks, num_writes

_IDLE_CALLS = 1000  # of step() in a row without a step of the optimizer, at which to warn
# Who is told of the updates of an optimizer.
LISTENERS: "weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[Any]]" = weakref.WeakKeyDictionary()


def steps_running(optimizer: Optimizer) -> int:
    """Return how many calls of the optimizer's hooked steps are on the stack, one inside the other.

    From the stack, as a step that raises runs no hook that could tell. A class that calls super().step() may have
    several around one update.
    """
    frame, number = sys._getframe(1), 0
    while frame is not None:
        number += frame.f_code is HOOKED_STEP and frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return number


def _hook(optimizer: Optimizer, method: Callable[[], None]) -> Callable[..., None]:
    """Return a hook that calls a method, as long as its object lives, once in every class hierarchy."""
    owner, told = weakref.ref(optimizer), weakref.WeakMethod(method)

    def tell(optimizer: Optimizer, *arguments: Any) -> None:
        method = told()
        if method is not None and optimizer is owner() and steps_running(optimizer) <= 1:
            method()

    return torch.compiler.disable(tell)


def let_hooks_run(optimizer: Optimizer) -> None:
    """See that the optimizer's class runs hooks, also where its constructor did not call `Optimizer.__init__`.

    Before anything patches the method of the instance, as torch's schedulers do.
    """
    if not has_step_hooks(optimizer):
        raise TypeError(
            f"the steps of {type(optimizer).__name__} cannot be followed, as it has not called Optimizer.__init__: "
            "pass the optimizer inside it."
        )
    let_class_run_hooks(optimizer)


class StepHooks:
    """Tell an object before and after each update of an optimizer, until it is gone or this is removed.

    Args:
        listener: the object.
        optimizer: whose updates count.
        before: its method, called before each.
        after: the same after each that did not raise.
        saving: the same before the optimizer's state is taken.
    """

    def __init__(
        self,
        listener: object,
        optimizer: Optimizer,
        before: Callable[[], None],
        after: Callable[[], None],
        saving: Callable[[], None],
    ) -> None:
        handles = [
            optimizer.register_step_pre_hook(_hook(optimizer, before)),
            optimizer.register_step_post_hook(_hook(optimizer, after)),
            optimizer.register_state_dict_pre_hook(_hook(optimizer, saving)),
        ]
        self._optimizer, self._listener = weakref.ref(optimizer), weakref.ref(listener)
        LISTENERS.setdefault(optimizer, weakref.WeakSet()).add(listener)
        self._finalizer = weakref.finalize(listener, _remove, handles)
        self._finalizer.atexit = False

    def remove(self) -> None:
        """Tell nobody any more; may be repeated."""
        self._finalizer()
        optimizer, listener = self._optimizer(), self._listener()
        if optimizer is not None and listener is not None:
            LISTENERS[optimizer].discard(listener)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def listeners(optimizer: Optimizer) -> list[Any]:
    """Return the objects that are told of the optimizer's updates."""
    return list(LISTENERS.get(optimizer, ()))


class UsedGradients:
    """The gradients that the latest update was made of: whether they still stand, as before `backward` they do."""

    def __init__(self) -> None:
        self._used: list[tuple[Callable[[], Tensor | None], Callable[[], Tensor | None], int]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return UsedGradients, ()  # a copy has used none: the gradients are another optimizer's

    def note(self, optimizer: Optimizer) -> None:
        """Take the gradients as they are for used; the first and the last are enough to tell."""
        own: list[Any] = parameters(optimizer)
        ends = [next((p for p in order if p.grad is not None), None) for order in (own, own[::-1])]
        self._used = [
            (weakref.ref(p), weakref.ref(p.grad), num_writes(p.grad)) for p in ends if p is not None
        ]

    @property
    def stand(self) -> bool:
        """Whether no gradient has changed since, nor been replaced."""
        return bool(self._used) and all(stands(*used) for used in self._used)


def stands(
    parameter: Callable[[], Tensor | None], gradient: Callable[[], Tensor | None], version: int
) -> bool:
    """Whether a parameter, by weak references, has the gradient that it had, in the version that it was."""
    owner, used = parameter(), gradient()
    return owner is not None and used is not None and owner.grad is used and num_writes(used) == version


class UpdateCount:
    """How many updates an optimizer has made.

    Attributes:
        made: the number.
        used: the gradients that the latest was made of.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.made = self._idle_calls = 0
        self.used = UsedGradients()

    def add(self, *, counts: bool) -> None:
        """Count an update, if it is one that counts, and unless a GradScaler told a fused one to skip it."""
        found_inf = getattr(self._optimizer, "found_inf", None)
        if counts and (found_inf is None or not found_inf.item()):
            self.made += 1
        self.used.note(self._optimizer)

    def since(self, position: int) -> int:
        """Return how many updates were made since a position; warn where again and again there are none."""
        moved = self.made - position
        self._idle_calls = 0 if moved else self._idle_calls + 1
        if self._idle_calls == _IDLE_CALLS:
            warn(
                f"step() was called {_IDLE_CALLS} times without a step of the optimizer, so that the warmup does not "
                "advance: construct it on the optimizer whose step() runs, and leave that method in place."
            )
        return moved
