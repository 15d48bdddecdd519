"""Whether the gradients that a warmup has measured with are those that the update is made of."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from edgewise.errors import warn
from edgewise.optimizers.groups import parameters
from edgewise.ranks import local
from edgewise.torch_internals import num_writes, step_pre_hooks
from edgewise.warmup.position import UpdateCount, stands

_MOST_PARAMETERS, _MOST_ENTRIES = 16, 64  # that are compared by value, and of each of them
_SAME = 0.01  # relative difference that does not matter


class GradientWatch:
    """Warns, once, where gradients change between `observe` and the update: clipped too late, replaced, noise added.

    A write shows in a tensor's version counter. Only where there was one are values compared, a few of them, so that
    clipping that changes nothing is not taken for a change. Those of the first update always are: torch's kernel that
    unscales gradients leaves no trace.
    """

    def __init__(self, optimizer: Optimizer, updates: UpdateCount, *, is_on: bool = True) -> None:
        self.warned = False
        self._is_first = True  # nothing was compared yet
        self._optimizer, self._updates = optimizer, updates
        self._update = -1  # that was measured
        self._noted: list[
            tuple[weakref.ref[Tensor], weakref.ref[Tensor], int]
        ] = []  # parameter, gradient, its version
        self._values: list[tuple[Tensor, Tensor]] = []  # parameter, and some entries of its gradient
        self._handle: RemovableHandle | None = None
        if is_on:
            check = torch.compiler.disable(_Check(self))
            self._handle = optimizer.register_step_pre_hook(check)
            weakref.finalize(self, self._handle.remove).atexit = False

    def note(self) -> None:
        """Take the gradients as they are for those of the coming update, and compare last: another hook may clip."""
        if self.warned or self._handle is None:
            return
        self._update = self._updates.made
        own: list[Any] = [p for p in parameters(self._optimizer) if p.grad is not None]
        self._noted = [(weakref.ref(p), weakref.ref(p.grad), num_writes(p.grad)) for p in own]
        some = [p for p in own if p.grad.layout is torch.strided]
        some = some[:: -(-len(some) // _MOST_PARAMETERS) or 1]
        self._values = [(p, _entries(p.grad).clone()) for p in some]
        hooks = step_pre_hooks(self._optimizer)
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

    def compare(self) -> None:
        """Warn if the gradients are not those that were noted for the coming update."""
        noted, values = self._noted, self._values
        self.forget()
        if self._updates.made != self._update or not noted:
            return
        if not self._is_first and all(stands(*each) for each in noted):
            return
        self._is_first = False
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
        # A copy has noted nothing: the gradients are another optimizer's.
        is_on = self._handle is not None
        return {"warned": self.warned, "of": (self._optimizer, self._updates), "is_on": is_on}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["of"], is_on=state["is_on"])  # type: ignore[misc]
        self.warned = state["warned"]


class _Check:
    """The hook: it does not keep the watch alive."""

    def __init__(self, watch: GradientWatch) -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        watch = self._watch()
        if watch is not None:
            watch.compare()


def _entries(gradient: Tensor) -> Tensor:
    """Return some entries of a gradient, evenly spread."""
    flat = local(gradient.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // _MOST_ENTRIES)]


def _joined(parts: list[Tensor]) -> Tensor:
    whole = [torch.view_as_real(part).reshape(-1) if part.is_complex() else part for part in parts]
    return torch.cat([part.cpu().double() for part in whole]) if whole else torch.zeros(0)
