"""The loss and the gradients that a warmup measures with, as all ranks that train the model have them."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from edgewise.critical import closure_loss, gradient_size
from edgewise.errors import UnrepeatableError, warn
from edgewise.loss.checks import checked_loss
from edgewise.optimizers.groups import parameters
from edgewise.ranks import Ranks
from edgewise.warmup.apart import check_not_apart
from edgewise.warmup.forwards import Forwards
from edgewise.warmup.position import UsedGradients
from edgewise.warmup.state import Result


class Observation:
    """Looks at the coming update, by the closure that `observe` is given, and counts the forwards.

    Args:
        optimizer: whose update it is.
        forwards: where they are counted.
    """

    def __init__(self, optimizer: Optimizer, forwards: Forwards) -> None:
        self._optimizer, self._forwards = optimizer, forwards
        self._ranks: Ranks | None = None  # once they are known
        self._has_warned_late = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ranks": None}  # which belong to one process

    def check_in_time(self, used: UsedGradients) -> None:
        """Warn, once, if the gradients are those of the update that was made before."""
        if not self._has_warned_late and used.stand:
            self._has_warned_late = True
            warn(
                "observe() was called after optimizer.step(): the gradients are those of the update already made. "
                "Call it between loss.backward() and optimizer.step()."
            )

    def has_gradient(self, closure: Callable[[], Tensor]) -> bool:
        """Whether the gradients can be measured with: not all zero, and all finite, on every rank."""
        return 0 < gradient_size(self._optimizer, self.ranks(closure)) < math.inf

    def loss(self, closure: Callable[[], Tensor]) -> float:
        """Return the closure's loss, not finite only where the gradients are not: the step is about to be skipped."""
        self._forwards.num += 1
        value, self._ranks = closure_loss(closure, parameters(self._optimizer), finite=False)
        if not math.isfinite(value) and self.has_gradient(closure):
            checked_loss(torch.tensor(value, device="cpu"), "the current parameters")
        return value

    def given_loss(self, closure: Callable[[], Tensor], loss: Tensor | float) -> float:
        """Return the mean of a given loss over the ranks that train the model."""
        ranks = self.ranks(closure)
        given = loss if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64, device="cpu")
        own = checked_loss(given, "this update", finite=False).detach().double()
        return float(ranks.sum(own.cpu())) / ranks.num

    def ranks(self, closure: Callable[[], Tensor]) -> Ranks:
        """Return the ranks that train the model: the closure shows which modules run."""
        if self._ranks is None:
            if dist.is_available() and dist.is_initialized():
                _, self._ranks = closure_loss(closure, parameters(self._optimizer), finite=False)
            else:
                self._ranks = Ranks()
        return self._ranks

    def search(self, search: Callable[[], Result]) -> Result:
        """Search, and count what that took.

        Raises:
            UnrepeatableError: the loss does not repeat.
        """
        self._forwards.num_searches += 1
        try:
            found = search()
        except UnrepeatableError as error:
            self._forwards.num += error.num_forwards
            raise
        self._forwards.num += found.num_forwards
        return found

    def check_all_ranks(self, found: Result) -> None:
        """Raise what `check_not_apart` does, if this is the first search."""
        if self._forwards.num_searches == 1:
            check_not_apart(self._optimizer, found.loss, self._ranks)
