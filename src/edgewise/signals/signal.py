"""The contract of all signals."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar


class Signal(ABC):
    """What one reading after another says: `add` takes one in, and `value` is what they say so far.

    Its attributes are its state: numbers, flags, and lists of tensors.
    """

    _passing: ClassVar[
        tuple[str, ...]
    ] = ()  # attributes that hold until the next reading: no part of the state

    @abstractmethod
    def add(self, *readings: Any, **options: Any) -> None:
        """Take in a reading."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: copies, which later readings do not change."""
        return {
            name: [tensor.clone() for tensor in value] if isinstance(value, list) else value
            for name, value in vars(self).items()
            if name not in self._passing
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the entries of `state_dict`, each checked to be of its kind."""
        vars(self).update(state)


def average(old: float, new: float, kept: float) -> float:
    """Return a moving average after one more value, of which it keeps a share."""
    return kept * old + (1 - kept) * new
