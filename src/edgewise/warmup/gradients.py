"""Whether the gradients that a warmup has measured with are those that the update is made of."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from edgewise.errors import warn
from edgewise.ranks import local
from edgewise.torch_internals import num_writes, step_pre_hooks
from edgewise.warmup.position import stands

_MOST_PARAMETERS, _MOST_ENTRIES = 16, 64  # that are compared by value, and of each of them
_SAME = 0.01  # relative difference that does not matter


class GradientWatch:
    """Warns, once, where gradients change between `observe` and the update: clipped too late, replaced, noise added.

    A write shows in a tensor's version counter. Only where there was one are values compared, a few of them, so that
    clipping that changes nothing is not taken for a change.
    """

    def __init__(self) -> None:
        self.warned = False
        self._update = -1  # that was measured
        self._noted: list[
            tuple[weakref.ref[Tensor], weakref.ref[Tensor], int]
        ] = []  # parameter, gradient, its version
        self._values: list[tuple[Tensor, Tensor]] = []  # parameter, and some entries of its gradient
        self._handle: RemovableHandle | None = None

    def attach(self, optimizer: Optimizer, position: Callable[[], int]) -> None:
        """Compare before each update from here on; `position` is a method that says which one comes."""
        if self._handle is None:
            check = _Check(self, position)
            self._handle = optimizer.register_step_pre_hook(torch.compiler.disable(check))
            weakref.finalize(self, self._handle.remove).atexit = False

    def note(self, optimizer: Optimizer, update: int) -> None:
        """Take the gradients as they are for those of this update, and compare last: another hook may clip."""
        if self.warned or self._handle is None:
            return
        self._update = update
        own = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._noted = [(weakref.ref(p), weakref.ref(p.grad), num_writes(p.grad)) for p in own]
        some = [p for p in own if p.grad.layout is torch.strided]
        some = some[:: -(-len(some) // _MOST_PARAMETERS) or 1]
        self._values = [(p, _entries(p.grad).clone()) for p in some]
        hooks = step_pre_hooks(optimizer)
        if next(reversed(hooks)) != self._handle.id:
            hooks.move_to_end(self._handle.id)

    def forget(self) -> None:
        """Take no gradients for noted: none were measured with, or what was measured does not count."""
        self._noted, self._values = [], []

    def close(self) -> None:
        """Compare no more: remove the hook."""
        self.forget()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def compare(self, update: int) -> None:
        """Warn if the gradients are not those that were noted for this update."""
        noted, values = self._noted, self._values
        self.forget()
        if update != self._update or all(stands(*each) for each in noted):
            return
        before = _joined([entries for _, entries in values])
        now = _joined([_entries(p.grad) if p.grad is not None else torch.zeros_like(e) for p, e in values])
        if not (now - before).norm() > _SAME * before.norm():
            return
        self.warned = True
        warn(
            "the gradients were changed between observe() and optimizer.step(), so that what was measured is not the "
            "update that is made: clip them, unscale them and add to them before observe(), and call it right before "
            "optimizer.step()."
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"warned": self.warned}  # a copy has noted nothing: the gradients are another optimizer's

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.warned = state["warned"]


class _Check:
    """The hook: it keeps neither the watch nor the warmup alive."""

    def __init__(self, watch: GradientWatch, position: Callable[[], int]) -> None:
        self._watch, self._position = weakref.ref(watch), weakref.WeakMethod(position)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        watch, position = self._watch(), self._position()
        if watch is not None and position is not None:
            watch.compare(position())


def _entries(gradient: Tensor) -> Tensor:
    """Return some entries of a gradient, evenly spread."""
    flat = local(gradient.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // _MOST_ENTRIES)]


def _joined(parts: list[Tensor]) -> Tensor:
    whole = [torch.view_as_real(part).reshape(-1) if part.is_complex() else part for part in parts]
    return torch.cat([part.cpu().double() for part in whole]) if whole else torch.zeros(0)
