"""A share of the rates for a single update: within `optimizer.step()` alone, where no one else sees it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from edgewise.warmup.scheduler import rates, set_rates


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
        self._full: list[float | Tensor] = []  # during an update that takes a share of them
        optimizer.register_step_pre_hook(torch.compiler.disable(self._take))

    def release(self) -> None:
        """Give back the full rates: after the step, also one that raised."""
        if self._full:
            set_rates(self._optimizer, self._full)
            self._full = []

    def _take(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.release()
        if self.share < 1:
            self._full = rates(optimizer)
            set_rates(optimizer, [rate * self.share for rate in self._full])
        self.share = 1.0
