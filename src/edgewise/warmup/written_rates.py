"""Who wrote an optimizer's learning rates last: the warmups' own note of theirs."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from edgewise.optimizers.groups import floats, set_rates


class WrittenRates:
    """The rates of an optimizer's groups as they were written last, to see whether somebody else has written since."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.values: list[float] = []

    def write(self, values: Sequence[float | Tensor]) -> None:
        """Write the rates."""
        set_rates(self._optimizer, values)
        self.note()

    def note(self) -> None:
        """Take the rates as they stand for written."""
        self.values = floats(self._optimizer)

    def forget(self) -> None:
        """Take whatever the rates are for written."""
        self.values = []

    @property
    def stand(self) -> bool:
        """Whether the groups that were written to hold these rates still."""
        return floats(self._optimizer)[: len(self.values)] == self.values
