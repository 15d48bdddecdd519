"""The start of a warmup at the edge: a rate whose first update lowers the loss and overwrites nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.critical import BestStepResult, search_best_step
from edgewise.optimizers.averages import first_share
from edgewise.parameters import absolute_sums
from edgewise.ranks import Ranks
from edgewise.warmup.state import Saved, as_plain

_SHARE = 1 / 4  # of the rate at which the first update lowers the loss most
_MOST_CHANGE = 0.01  # of a matrix's norm, that an update may be
_MOST_FORWARDS = 20  # of a search
_PATIENCE = 10  # updates, after which a matrix without a gradient is taken for one that is not used


class Start:
    """A quarter of the rate at which an update lowers the loss most, and no update of more than 1 % of any matrix.

    Behind a matrix that is zero at first, a head or LoRA's B, no other has a gradient at the first update, so that
    it says nothing of them. Once they have one, it is measured again, for those alone.

    Attributes:
        found: the result of the first batch, or `None`.
        idle: which of the parameters are such matrices, and have had no gradient yet.
    """

    def __init__(self) -> None:
        self.found: BestStepResult | None = None
        self.idle: list[int] = []

    def search(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Tensor],
        *,
        target: float,
        known: float | None,
        matrices: Sequence[Tensor] | None = None,
    ) -> BestStepResult:
        """Find the rate that lowers the loss most, of those that change none of these matrices, or of all, too much."""
        return search_best_step(
            optimizer,
            closure,
            max_lr=target / _SHARE,
            max_change=_MOST_CHANGE * first_share(optimizer),
            share=_SHARE,
            max_forwards=_MOST_FORWARDS,
            known=known,
            matrices=matrices,
        )

    def factor(self, found: BestStepResult, target: float) -> float:
        """Return the factor on the target to begin with."""
        return min(1.0, _SHARE * found.lr / target)

    def begin(self, found: BestStepResult, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        """Take the first result, and note which matrices it says nothing of."""
        self.found = found
        matrices = [i for i, p in enumerate(parameters) if p.requires_grad and p.dim() > 1]
        sizes = absolute_sums([parameters[i].detach() for i in matrices], ranks)
        gradients = absolute_sums([parameters[i].grad for i in matrices], ranks)
        self.idle = [
            i for i, size, gradient in zip(matrices, sizes, gradients, strict=True) if size > 0 == gradient
        ]

    def awake(self, update: int, parameters: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
        """Return the idle matrices that have their first gradient."""
        gradients = absolute_sums([parameters[i].grad for i in self.idle], ranks)
        pairs = list(zip(self.idle, gradients, strict=True))
        self.idle = [i for i, size in pairs if size == 0 and update < _PATIENCE]
        return [parameters[i] for i, size in pairs if size > 0]

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {"found": as_plain(self.found), "_idle": list(self.idle)}

    def load_state_dict(self, saved: Saved) -> None:
        """Go on from a state."""
        self.found = saved.result("found", BestStepResult)
        self.idle = saved.indices("_idle")
