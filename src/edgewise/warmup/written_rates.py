"""Who wrote an optimizer's learning rates last: a warmup's own note of its rates, and what it makes of others'."""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from edgewise.errors import warn
from edgewise.optimizers.groups import floats, set_rates


class WrittenRates:
    """The rates of an optimizer's groups as they were written last, to see whether somebody else has written since.

    Attributes:
        values: the rates.
        is_chained: whether a ChainedScheduler multiplies them on purpose.
        is_shared: whether another has written the rates since.
    """

    is_chained = is_shared = False
    _factor = 1.0  # that was written last
    _complaint: str | None = None  # about another who writes the rates, to be said once

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.values: list[float] = []

    def write(self, values: Sequence[float | Tensor]) -> None:
        """Write the rates."""
        set_rates(self._optimizer, values)
        self.note()

    def write_factor(self, factor: float, bases: Sequence[float | Tensor]) -> None:
        """Write the targets times a factor; where others write as well, what these have made of it, in proportion."""
        self.write(self._shared(factor, bases) if self.is_shared else [base * factor for base in bases])
        self._factor = factor

    def note(self) -> None:
        """Take the rates as they stand for written."""
        self.values = floats(self._optimizer)

    def forget(self) -> None:
        """Take whatever the rates are for written."""
        self.values = []

    def resume(self, factor: float, *, is_shared: bool) -> None:
        """Go on from a factor that was written."""
        self._factor, self.is_shared, self._complaint = factor, is_shared, None

    @property
    def stand(self) -> bool:
        """Whether the groups that were written to hold these rates still."""
        return floats(self._optimizer)[: len(self.values)] == self.values

    def look_for_others(self, owner: str, *, begun: bool) -> None:
        """See whether another has written the rates, and say so, once: a ChainedScheduler shows at the first step."""
        if not self.stand and not self.is_shared:
            self.is_shared = True
            self._complaint = (
                f"the groups' learning rates are {floats(self._optimizer)} where {owner} wrote {self.values}: another "
                "scheduler steps beside it, or a rate was set by hand, or the optimizer's saved state was loaded "
                "without the warmup's. It goes on in proportion to them, at most at its own rates: let what follows "
                "come by then(), and load both states to resume."
            )
        if self._complaint is not None and begun:
            complaint, self._complaint = self._complaint, None
            if not self.is_chained:
                warn(complaint)

    def _shared(self, factor: float, bases: Sequence[float | Tensor]) -> list[float | Tensor]:
        """Return what others have made of the rates, times what the factor has grown by; at most the targets' share."""
        grown = [lr * (factor / self._factor) for lr in floats(self._optimizer)]
        if self.is_chained:
            return list(grown)
        return [min(lr, float(base) * factor) for lr, base in zip(grown, bases, strict=True)]
