"""What a warmup keeps of the parameters from one update to the next."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from edgewise.ranks import is_sharded


class ParameterCopies(ABC):
    """Keeps copies of the parameters, and is told of what happens to these."""

    @abstractmethod
    def after_step(self, parameters: Sequence[Tensor]) -> None:
        """An update was made; its gradients still stand."""

    @abstractmethod
    def adopt(self, parameters: Sequence[Tensor]) -> None:
        """There are more parameters than before: those of new groups, at the end."""

    @abstractmethod
    def give_up(self) -> None:
        """Keep nothing any more: the warmup is over."""


class SeveralCopies(ParameterCopies):
    """All that a warmup keeps, as one."""

    def __init__(self, *parts: ParameterCopies) -> None:
        self._parts = parts

    def after_step(self, parameters: Sequence[Tensor]) -> None:
        """Tell each part."""
        for part in self._parts:
            part.after_step(parameters)

    def adopt(self, parameters: Sequence[Tensor]) -> None:
        """Tell each part."""
        for part in self._parts:
            part.adopt(parameters)

    def give_up(self) -> None:
        """Tell each part."""
        for part in self._parts:
            part.give_up()


def are_saved(asked: bool | None, parameters: Sequence[Tensor]) -> bool:
    """Return whether a state holds copies: as asked; if nothing was, unless parameters are sharded over ranks."""
    return not any(is_sharded(p) for p in parameters) if asked is None else asked
