"""First derivatives of the loss: of one batch, and summed over this rank's batches in place."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgewise.errors import LossError
from edgewise.loss.checks import differentiable_loss
from edgewise.loss.evaluation import Evaluation
from edgewise.loss.graph import has_reentrant_checkpoint
from edgewise.loss.graph_budget import GraphBudget
from edgewise.parameters import FlatSum, unflatten


class Gradients:
    """∇Lᵢ of batches, and their sum, in micro-batches where the budget asks for them.

    Args:
        evaluation: of the loss.
        budget: what a graph may hold.
    """

    def __init__(self, evaluation: Evaluation, budget: GraphBudget) -> None:
        self._evaluation, self._budget = evaluation, budget
        self._by_backward: bool | None = (
            None  # whether only loss.backward() finds all; unknown before the first loss
        )

    def total(self) -> Tensor:
        """Return this rank's part of ∇L, shape (size,); of sharded parameters, its shards of the sum of all parts."""
        if self._evaluation.ranks.sharded:
            return self._sharded()[1]
        total = FlatSum(self._evaluation.tensors)
        for i, share, batch in self.pieces():
            total.add_all(share, self._of_batch(i, batch)[1])
        return total.vector()

    def values_and_gradients(self) -> tuple[list[float], list[Tensor | None]]:
        """Do what `Objective.values_and_gradients` documents."""
        evaluation = self._evaluation
        if evaluation.ranks.sharded:
            values, gradient = self._sharded()
            return values, list(unflatten(gradient, evaluation.tensors))
        values, totals = self._own_values_and_gradients()
        if evaluation.ranks.num > 1:
            totals = [
                self._over_ranks(total, like) for total, like in zip(totals, evaluation.tensors, strict=True)
            ]
        if all(total is None for total in totals):
            raise LossError(
                "the loss does not depend on the selected parameters: use the model that loss_fn is given, without "
                ".detach(), or select parameters that the loss depends on."
            )
        return values, totals

    def pieces(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index of the batch, share of the samples, and batch or micro-batch, for graphs of Lᵢ."""
        self._budget.plan(False, loss=self._evaluation.value, gradient=self._of_batch)
        yield from self._budget.pieces()

    def _own_values_and_gradients(self) -> tuple[list[float], list[Tensor | None]]:
        shares = self._evaluation.batches.shares
        values = [0.0] * len(shares)
        totals: list[Tensor | None] = [None] * len(self._evaluation.tensors)
        for i, share, batch in self.pieces():
            loss, gradients = self._of_batch(i, batch)
            values[i] += share / shares[i] * loss.item()
            for j in range(len(gradients)):
                # One at a time, so that there is one copy of the parameters; gradients may share memory.
                gradient, gradients[j] = gradients[j], None
                if gradient is not None:
                    before, own = totals[j], gradient.detach() * share
                    totals[j] = own if before is None else before.add_(own)
        return values, totals

    def _over_ranks(self, total: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the sum over ranks of what some of them may not have."""
        ranks = self._evaluation.ranks
        if not any(ranks.gather(total is not None)):
            return None
        return ranks.sum(torch.zeros_like(like) if total is None else total)

    def _of_batch(self, index: int, batch: Any) -> tuple[Tensor, list[Tensor | None]]:
        """Return Lᵢ and ∇Lᵢ of a batch or micro-batch, `None` where it does not depend on a parameter."""
        evaluation = self._evaluation
        with evaluation.measuring(), torch.enable_grad():
            loss, tensors = evaluation.differentiable(index, batch), evaluation.tensors
            if self._by_backward:
                loss.backward()
                return loss.detach(), [tensor.grad for tensor in tensors]
            if self._by_backward is None:
                self._by_backward = has_reentrant_checkpoint(loss)
            if not self._by_backward:
                return loss.detach(), list(torch.autograd.grad(loss, tensors, allow_unused=True))
        # loss.backward() would fill the gradients of all parameters and run their hooks: let it be copies'.
        evaluation.copy_model()
        return self._of_batch(index, batch)

    def _sharded(self) -> tuple[list[float], Tensor]:
        """Return Lᵢ of this rank's batches, and its shards of ∇L.

        FSDP2 leaves them in `.grad`, averaged over the ranks, and only after loss.backward().
        """
        evaluation = self._evaluation
        ranks, tensors = evaluation.ranks, evaluation.tensors
        values, total = [], FlatSum(tensors)
        for i, share, batch in evaluation.weighted():
            with torch.enable_grad():
                loss = evaluation.loss(i, batch)
            with ranks.in_lockstep():
                differentiable_loss(loss, f"batch {i}")
            (share * ranks.num * loss).backward()
            values.append(loss.item())
            gradients = [parameter.grad for parameter in evaluation.originals.values()]
            if all(gradient is None for gradient in gradients):
                raise LossError(
                    f"no gradient of batch {i} arrived at the shards: call set_requires_gradient_sync(True) on the "
                    "model, and select parameters that the loss depends on."
                )
            total.add_all(1.0, gradients)
        evaluation.rewind()  # drops the gradients
        return values, total.vector()
