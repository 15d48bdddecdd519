"""All that an optimizer holds, saved and brought back."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.isolation.bits import write_back


class OptimizerContents:
    """All that an optimizer holds: each object is brought back where it was, with the value it had.

    Followed are tensors, containers, optimizers inside it, and, in its state and groups, the attributes of any
    other object; of what else hangs on an optimizer, only which object it is.

    Args:
        known: objects that others bring back.
    """

    def __init__(self, optimizer: Optimizer, known: Iterable[object]) -> None:
        self.optimizers: list[Optimizer] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._seen = set(map(id, known))
        self._add(optimizer)

    def restore(self) -> None:
        """Bring each object back where it was."""
        for container, copied in self._containers:
            container.clear()
            container.update(copied) if isinstance(copied, (dict, set)) else container.extend(copied)
        for tensor, saved in self._tensors:
            write_back(tensor, saved)

    def _add(self, value: Any, *, objects: bool = False) -> None:
        """Save a value and what is in it, once; with `objects`, the attributes of an object of any class too."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._tensors.append((value, value.detach().clone()))
        elif isinstance(value, Optimizer):  # third-party optimizers wrap others
            self.optimizers.append(value)
            self._containers.append((vars(value), vars(value).copy()))
            for name, attribute in vars(value).items():
                if not name.endswith("_hooks"):  # kept by silent_hooks, also while they are silent
                    self._add(attribute, objects=name in ("state", "param_groups"))
        elif isinstance(value, (dict, list, set, deque, tuple)):
            if not isinstance(value, tuple):
                self._containers.append((value, value.copy()))
            for entry in value.values() if isinstance(value, dict) else value:
                self._add(entry, objects=objects)
        elif objects and hasattr(value, "__dict__") and not callable(value):
            self._add(vars(value), objects=True)
