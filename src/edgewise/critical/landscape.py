"""The loss along the optimizer's update: a closure's, or a model's on given batches."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgewise.errors import UnrepeatableError
from edgewise.isolation import Snapshot, isolated
from edgewise.loss.checks import GraphOnDemand, calling, checked_loss, forward_only
from edgewise.loss.objective import Objective
from edgewise.loss.precision import without_autocast
from edgewise.loss.repeats import MARGIN, first_unrepeatable, refuse_to_repeat, repeated, told
from edgewise.loss.update_loss import UpdateLoss
from edgewise.parameters import unflatten
from edgewise.ranks import Ranks, is_sharded, local, ranks_of

_HERE = "the current parameters"


def closure_loss(
    closure: Callable[[], Tensor], parameters: Sequence[Tensor] = (), *, finite: bool = True
) -> tuple[float, Ranks]:
    """Return the loss, the mean over the ranks that train the modules which run, and these ranks; leave no trace.

    The `parameters` are protected from the start, those of modules as these are found. With `finite`, raise where the
    loss is not.
    """
    with isolated() as snapshot:
        snapshot.add_parameters(parameters)
        loss = ClosureLoss(closure, (), snapshot, finite=finite)
        return loss.base, loss.ranks


class ClosureLoss:
    """L as a closure; parameters are moved in place, to θ + ηu from the saved θ, and autocast is off.

    The loss is averaged over the ranks that train the modules seen to run, or an `UpdateLoss`'s model.
    """

    def __init__(
        self,
        closure: Callable[[], Tensor],
        parameters: Sequence[Tensor],
        snapshot: Snapshot,
        *,
        finite: bool = True,
        known: float | None = None,
    ) -> None:
        of_update = closure if isinstance(closure, UpdateLoss) else None
        snapshot.add_compiled(closure if of_update is None else of_update.loss_fn)
        if of_update is not None:
            snapshot.add_module(of_update.model)  # a compiled function that is given it calls no hook of its
        self._closure = closure
        self._known = known  # the loss, as an earlier evaluation had it
        self._parameters = list(parameters)
        self._snapshot = snapshot
        self._forward = GraphOnDemand(self._parameters)
        self.ranks = Ranks() if of_update is None else of_update.ranks
        loss = checked_loss(self._evaluate(), _HERE, finite=False)
        if of_update is None:
            self.ranks = _ranks_among(snapshot.modules)
        self.base = self._mean(loss.item())
        checked_loss(_as_tensor(self.base), _HERE, finite=finite)  # on all ranks alike
        # A step may vanish in parameters of half precision, where the loss is float32.
        self._eps = max(
            torch.finfo(dtype).eps for dtype in {loss.dtype, *(p.dtype for p in self._parameters)}
        )
        self.resolution = self._eps * abs(self.base)
        self.num_forwards = 1

    def check_repeats(self) -> None:
        """Raise `UnrepeatableError` where the loss is another one again; a small difference limits the resolution.

        Free where the known loss is the same; else it takes a forward.
        """
        if self._known == self.base:
            return
        again, width = repeated(self.base, self._again)
        self.resolution = max(self.resolution, MARGIN * width)
        if not width <= self._eps**0.5 * abs(self.base):
            culprit = first_unrepeatable(None, self._again, others=self._snapshot.modules)
            message = told(_HERE, self.base, again, culprit, others="the closure or its batch does")
            raise UnrepeatableError(message, num_forwards=self.num_forwards)

    def _again(self) -> float:
        self.num_forwards += 1
        return self._mean(float(self._evaluate()))

    def change(self, direction: Tensor, lr: float) -> float:
        """Return L(θ + lr·direction) − L(θ)."""
        self.num_forwards += 1
        return self._mean(float(self._evaluate(direction, lr))) - self.base

    def _evaluate(self, direction: Tensor | None = None, lr: float = 0.0) -> Any:
        def moved() -> Any:
            try:
                if direction is not None:
                    self._move(direction, lr)
                return self._closure()
            finally:
                self._snapshot.rewind()

        with self.ranks.together(), without_autocast(), forward_only(), calling("the closure"):
            return self._forward(moved)

    def _move(self, direction: Tensor, lr: float) -> None:
        for parameter, part in zip(self._parameters, unflatten(direction, self._parameters), strict=True):
            saved = local(self._snapshot.saved(parameter)).to(part.dtype)
            local(parameter).data.copy_(saved.add(part, alpha=lr))

    def _mean(self, loss: float) -> float:
        return float(self.ranks.sum(_as_tensor(loss))) / self.ranks.num


def _ranks_among(modules: list[nn.Module]) -> Ranks:
    """Return the ranks that train the first module among these that is trained by several."""
    for module in modules:
        if isinstance(module, DistributedDataParallel) or any(map(is_sharded, module.parameters())):
            return ranks_of(module)
    return Ranks()


class BatchesLoss:
    """L as an `Objective`, the mean over batches weighted by size; remembers how each batch's loss changes."""

    def __init__(self, objective: Objective, values: list[float] | None) -> None:
        self.ranks = objective.ranks
        self.num_forwards = 0
        self._objective = objective
        self._changes: dict[float, Tensor] = {}
        self._shares = _as_tensor(objective.shares)
        self._values = self._evaluated() if values is None else _as_tensor(values)
        self.base = self._mean(self._values)
        self.resolution = torch.finfo(objective.dtype).eps * abs(self.base)

    def check_repeats(self) -> None:
        """Raise `LossError` where the loss is another one again; a small difference limits the resolution.

        One forward, whose values are those that changes are measured from: they are taken without a graph, too.
        """
        first = self.base
        self._values = self._evaluated()
        self.base = self._mean(self._values)
        if self.base == first:
            return
        again, width = repeated(self.base, lambda: self._mean(self._evaluated()))
        self.resolution = max(self.resolution, MARGIN * width)
        if not width <= self._objective.noise * abs(self.base):
            refuse_to_repeat(self._objective.evaluation, _HERE, self.base, again)

    def _evaluated(self) -> Tensor:
        self.num_forwards += 1
        return _as_tensor(self._objective.values())

    def change(self, direction: Tensor, lr: float) -> float:
        """Return L(θ + lr·direction) − L(θ)."""
        self.num_forwards += 1
        values = _as_tensor(self._objective.values_at(direction, lr))
        self._changes[lr] = values - self._values
        return self._mean(self._changes[lr])

    def interval(self, low: float, high: float) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the rate where the mean change is zero, or `None` for one batch.

        The batches are taken for independent draws, the direction as given. With Δᵢ(η) affine between the bracket's
        ends, the standard error of the root is that of the mean of Δᵢ there, over the slope of the mean (delta method).
        """
        at_low, at_high = self._changes[low], self._changes[high]
        num = sum(self.ranks.gather(len(self._shares)))
        mean_low, mean_high = self._mean(at_low), self._mean(at_high)
        if num < 2 or not math.isfinite(mean_low + mean_high) or mean_high == mean_low:
            return None
        place = mean_low / (mean_low - mean_high)  # of the root between the ends
        deviations = self._shares * ((1 - place) * at_low + place * at_high)
        variance = float(self.ranks.sum(deviations.square().sum())) * num / (num - 1)
        root = low + place * (high - low)
        half = 1.96 * variance**0.5 * (high - low) / (mean_high - mean_low)
        return max(0.0, root - half), root + half

    def _mean(self, values: Tensor) -> float:
        return float(self.ranks.sum((self._shares * values).sum()))


def _as_tensor(values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
