"""The loss over all batches and ranks as a function of the parameters, and its gradient."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.isolation import Snapshot
from edgewise.loss.checks import LossFunction, forward_only
from edgewise.loss.evaluation import Evaluation
from edgewise.loss.gradients import Gradients
from edgewise.loss.graph_budget import GraphBudget
from edgewise.loss.measuring import ALL, Measuring


class Objective:
    r"""L(θ) = Σᵢ nᵢ Lᵢ(θ) / Σᵢ nᵢ over batches i of nᵢ samples, as a function of the selected parameters θ.

    Batches are weighted by their size, so that splitting a batch unevenly changes nothing. `Evaluation` says how
    one of them is evaluated.

    Where several ranks train the model, the batches are those of all ranks, and all of them call the methods alike:
    each takes its own part of the sum, then parts are added up, the same bits on each rank. An error on one is one on
    all. Under FSDP2, flat vectors hold the entries of this rank's shards.

    Args:
        model: any module; inside `DistributedDataParallel`, it is the module that is evaluated.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch, a scalar tensor.
        batches: a re-iterable of batches: a list (one batch: `[batch]`) or a data loader without shuffling.
        snapshot: of the surrounding `isolated`.
        measuring: which parameters, the precision, and what graphs may hold.

    Raises:
        TypeError: `batches` can be read only once, or is a bare tensor.
        ValueError: no batch, no parameter that requires a gradient, a dtype that does not do, or a budget or another
            precision for a sharded model. Raised by the first gradient: a budget that one sample exceeds, or that
            BatchNorm forbids to meet.
        LossError: the loss is not a finite scalar with a graph (raised by the first evaluation), batches differ
            between passes, or the loss of a split batch is not the mean over its micro-batches.
        EdgewiseError: another rank raised one of these.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> objective = Objective(model, lambda model, x: 0.5 * model(x).square().mean(), [x])
        >>> objective.value(), objective.gradient()
        (1.25, tensor([0.5000, 2.0000]))
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        snapshot: Snapshot | None = None,
        measuring: Measuring = ALL,
    ) -> None:
        self.evaluation = Evaluation(model, loss_fn, batches, snapshot, measuring)
        self.ranks, self.originals = self.evaluation.ranks, self.evaluation.originals
        self.dtype, self.noise = self.evaluation.dtype, self.evaluation.noise
        self.shares = self.evaluation.batches.shares  # of all ranks' samples, for each of this rank's batches
        self.size = sum(tensor.numel() for tensor in self.tensors)  # of this rank's shards
        self.dimension = sum(p.numel() for p in self.originals.values())  # of all shards
        self.device = self.tensors[0].device
        self.budget = GraphBudget(
            self.evaluation.batches, self.evaluation.model, measuring.max_graph_bytes, self.noise
        )
        self.gradients = Gradients(self.evaluation, self.budget)

    @property
    def tensors(self) -> list[Tensor]:
        """The selected parameters, in the order of the flat vectors; of sharded ones this rank's shards."""
        return self.evaluation.tensors

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of what each computed of its shards; without shards, every rank has all."""
        return self.ranks.sum(partial) if self.ranks.sharded else partial

    def add_up(self, part: Tensor) -> Tensor:
        """Return the sum over ranks of what each computed of its batches; a shard has been summed with its gradient."""
        return part if self.ranks.sharded else self.ranks.sum(part)

    def norm(self, vector: Tensor) -> Tensor:
        """Return ‖vector‖, of the entries on all ranks."""
        return self.reduce(vector.norm().square()).sqrt() if self.ranks.sharded else vector.norm()

    def value(self) -> float:
        """Return L(θ)."""
        value = sum(share * loss for share, loss in zip(self.shares, self.values(), strict=True))
        return float(self.ranks.sum(torch.tensor(value, dtype=torch.float64, device="cpu")))

    def values(self, *, finite: bool = True) -> list[float]:
        """Return Lᵢ(θ) of each of this rank's batches; unless they must be `finite`, also NaN and infinities."""
        evaluation = self.evaluation
        with evaluation.together(), forward_only():
            return [evaluation.loss(i, batch, finite=finite).item() for i, _, batch in evaluation.weighted()]

    def value_at(self, direction: Tensor, step: float) -> float:
        """Return L(θ + step·direction), as `gradient_at` does."""
        with self.evaluation.shifted(direction, step):
            return self.value()

    def values_at(self, direction: Tensor, step: float) -> list[float]:
        """Return Lᵢ(θ + step·direction) of each of this rank's batches, finite or not, as `gradient_at` does."""
        with self.evaluation.shifted(direction, step):
            return self.values(finite=False)

    def gradient(self) -> Tensor:
        """Return ∇L(θ), shape (size,)."""
        with self.evaluation.together():
            gradient = self.gradients.total()
        return self.add_up(gradient)

    def gradient_at(self, direction: Tensor, step: float) -> Tensor:
        """Return ∇L(θ + step·direction), shape (size,). Needs a snapshot, from which θ comes back."""
        with self.evaluation.shifted(direction, step):
            return self.gradient()

    def values_and_gradients(self) -> tuple[list[float], list[Tensor | None]]:
        """Return Lᵢ(θ) of each of this rank's batches, and ∇L(θ), like the parameters, from the same forwards.

        Where no batch's loss depends on a parameter, its gradient is `None`, as `loss.backward()` would leave it; of
        sharded ones, zero.
        """
        with self.evaluation.together():
            return self.gradients.values_and_gradients()
