"""What modules hold beside parameters and buffers, such as counters, lists and metrics: brought back as it was."""

from collections import deque
from collections.abc import Iterable, Iterator, MutableSet
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from edgewise.isolation.bits import write_back

_OF_ISOLATION = frozenset(vars(nn.Module()))  # parameters, buffers, modes: what `isolated` brings back


@contextmanager
def attributes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Bring back the attributes of modules at the end: the metrics of torchmetrics, counters, outputs that are kept.

    Tensors come back bit for bit, and lists, dicts, sets and deques with what they held, however deep they are nested.
    Tensors inside of these are taken for ones that nobody writes to, and objects of other classes for constants.

    Args:
        modules: whose attributes to bring back, without those of the modules below them.

    Examples:
        >>> module = nn.Identity()
        >>> module.outputs, module.calls = [1], 1
        >>> with attributes_restored([module]):
        ...     module.outputs.append(2)
        ...     module.calls += 1
        ...     module.latest = 2
        >>> module.outputs, module.calls, hasattr(module, "latest")
        ([1], 1, False)
    """
    saved = [(module, _Contents(_attributes(module))) for module in modules]
    try:
        yield
    finally:
        for module, contents in saved:
            for name in _attributes(module).keys() - contents.values.keys():
                del vars(module)[name]
            vars(module).update(contents.values)
            contents.restore()


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_ISOLATION}


class _Contents:
    """The values of a module's attributes, and what is in those that can be written to."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._tensors = [(t, t.detach().clone()) for t in values.values() if isinstance(t, Tensor)]
        self._containers: dict[int, tuple[Any, Any]] = {}
        for value in values.values():
            self._add(value)

    def _add(self, value: Any) -> None:
        if id(value) in self._containers:
            return
        if isinstance(value, dict):
            self._containers[id(value)] = (value, dict(value))
            held: Iterable[Any] = value.values()
        elif isinstance(value, list | deque):
            self._containers[id(value)] = (value, list(value))
            held = value
        elif isinstance(value, set):
            self._containers[id(value)] = (value, set(value))
            held = ()
        else:
            return
        for inner in held:
            self._add(inner)

    def restore(self) -> None:
        for tensor, contents in self._tensors:
            write_back(tensor, contents)
        for container, contents in self._containers.values():
            if isinstance(container, dict | MutableSet):
                container.clear()
                container.update(contents)  # type: ignore[union-attr]
            else:
                container.clear()
                container.extend(contents)
