"""A share of the rates for a single update: within `optimizer.step()` alone, where no one else sees it."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.optimizers.groups import set_rate
from edgewise.warmup.position import steps_running


class StepShare:
    """Lets the coming update take a share of the groups' rates, whoever set them.

    Within the step the groups hold that share, and afterwards the full rates, so that neither a scheduler nor a
    checkpoint sees it. It counts for one update: set it before each that is to take less than all.

    Attributes:
        share: of the coming update, in (0, 1].
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.share = 1.0
        self._optimizer = optimizer
        self._full: list[tuple[dict[str, Any], float | Tensor]] = []  # group and rate, while it takes a share

    def take(self) -> None:
        """Let the groups hold the share: in the step, before it reads them."""
        self.release()
        if self.share < 1:
            for group in self._optimizer.param_groups:
                full = group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
                self._full.append((group, full))
                set_rate(group, full * self.share)

    def release(self) -> None:
        """Give back the full rates: after the step, also one that raised."""
        for group, full in self._full:
            set_rate(group, full)
        self._full = []

    def release_outside_step(self) -> None:
        """Leave nothing of a step that raised in the optimizer, whose saved state must not hold it."""
        if not steps_running(self._optimizer):
            self.release()

    def spend(self) -> None:
        """Give back the full rates of an update that was made; the next one takes all of them."""
        self.release()
        self.share = 1.0
