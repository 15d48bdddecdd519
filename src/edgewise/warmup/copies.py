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


class NoCopies(ParameterCopies):
    """Keeps nothing."""

    def after_step(self, parameters: Sequence[Tensor]) -> None:
        """Do nothing."""

    def adopt(self, parameters: Sequence[Tensor]) -> None:
        """Do nothing."""

    def give_up(self) -> None:
        """Do nothing."""


def are_saved(asked: bool | None, parameters: Sequence[Tensor]) -> bool:
    """Return whether a state holds copies: as asked; if nothing was, unless parameters are sharded over ranks."""
    return not any(is_sharded(p) for p in parameters) if asked is None else asked
