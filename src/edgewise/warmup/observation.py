"""The loss and the gradients that a warmup measures with, as all ranks that train the model have them."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import a_closure, a_loss_value
from edgewise.critical import closure_loss, gradient_size
from edgewise.errors import UnrepeatableError, warn
from edgewise.loss.checks import checked_loss
from edgewise.loss.update_loss import UpdateLoss
from edgewise.optimizers.groups import parameters
from edgewise.ranks import Ranks
from edgewise.warmup.apart import check_not_apart
from edgewise.warmup.forwards import Forwards
from edgewise.warmup.position import UsedGradients
from edgewise.warmup.state import Result


def closure_and_loss(
    closure: Callable[[], Tensor], loss: Tensor | float | None, optimizer: Optimizer
) -> tuple[Callable[[], Tensor], Tensor | float | None]:
    """Return the arguments of `observe`, or raise; the loss of an `UpdateLoss` is the sum of what was added."""
    if not isinstance(closure, UpdateLoss):
        return a_closure(closure), a_loss_value("loss", loss)
    if loss is not None:
        raise ValueError(
            "loss must be left out with an UpdateLoss, which knows the losses that were added to it: call "
            "observe(update_loss)."
        )
    if not closure.is_moved_by(optimizer):
        raise ValueError(
            "the UpdateLoss is of another model than the warmup's optimizer moves, which has none of its parameters: "
            "construct both on the model that trains."
        )
    closure.observed()
    return closure, closure.value


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
        self.find_shares(closure)
        self._forwards.num += 1
        value, self._ranks = closure_loss(closure, parameters(self._optimizer), finite=False)
        if not math.isfinite(value) and self.has_gradient(closure):
            checked_loss(torch.tensor(value, device="cpu"), "the current parameters")
        return value

    def given_loss(self, closure: Callable[[], Tensor], loss: Tensor | float) -> float:
        """Return the mean of a given loss over the ranks that train the model."""
        ranks = self.ranks(closure)
        given = loss if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64, device="cpu")
        own = checked_loss(given, "this update", finite=False).detach()
        return own.item() if ranks.num == 1 else float(ranks.sum(own.double().cpu())) / ranks.num

    def ranks(self, closure: Callable[[], Tensor]) -> Ranks:
        """Return the ranks that train the model: the closure shows which modules run."""
        if self._ranks is None:
            if isinstance(closure, UpdateLoss):
                self._ranks = closure.ranks
            elif dist.is_available() and dist.is_initialized():
                _, self._ranks = closure_loss(closure, parameters(self._optimizer), finite=False)
            else:
                self._ranks = Ranks()
        return self._ranks

    def affordable(self, closure: Callable[[], Tensor], max_overhead: float | None, *, updates: int) -> int:
        """Return how many forwards are left of a share of the cost of so many updates, after `find_shares`."""
        left = self._forwards.affordable(max_overhead, updates=updates)
        lacks_shares = isinstance(closure, UpdateLoss) and closure.lacks_shares
        return max(0, left - lacks_shares)

    def find_shares(self, closure: Callable[[], Tensor]) -> None:
        """Find the shares of an `UpdateLoss`, before its loss is evaluated elsewhere; count what that took."""
        if isinstance(closure, UpdateLoss):
            self._forwards.num += closure.find_shares()

    def search(self, closure: Callable[[], Tensor], search: Callable[[], Result]) -> Result:
        """Search along the loss of a closure, and count what that took.

        Raises:
            UnrepeatableError: the loss does not repeat.
        """
        self.find_shares(closure)
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
