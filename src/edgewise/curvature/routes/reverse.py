"""Hessian-vector products by a second backward pass, through the graph of the gradient."""

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from edgewise.curvature.routes.attention import plain_attention
from edgewise.curvature.routes.route import HvpRoute
from edgewise.curvature.routes.second_derivative import GradientGraph, gradient_with_graph
from edgewise.errors import SecondDerivativeError
from edgewise.loss.objective import Objective
from edgewise.parameters import FlatSum, unflatten


class ReverseRoute(HvpRoute):
    """∇²L·v = ∂(∇L·v)/∂θ: reverse-over-reverse.

    With one batch, or where a budget allows it for several, the graph of the gradient is kept, and a product costs one
    backward pass through it; else each product recomputes the gradient batch by batch.

    Examples:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> objective = Objective(model, lambda model, x: 0.5 * model(x).square().mean(), [x])
        >>> ReverseRoute(objective).product(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 2.0000])
    """

    name = "reverse"
    is_exact = True

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self._kept: list[tuple[float, GradientGraph]] = []  # share of the samples, graph of ∇Lᵢ

    def product(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector; both of shape (size,)."""
        self._objective.ranks.check_whole("reverse-over-reverse")
        parts, total = unflatten(vector, self._objective.tensors), FlatSum(self._objective.tensors)
        with self._evaluation.together():
            self._keep_graphs()
            keep = bool(self._kept)
            for share, graph in self._kept or self._fresh_graphs():
                product = graph.differentiate(parts, keep=keep)
                del graph  # before the sum, and before the next is built: the budget is for one
                total.add_all(share, product)
        self.num_products += 1
        return self._objective.add_up(total.vector())

    def gradient(self) -> Tensor:
        """Return ∇L(θ), shape (size,), of the graphs that are kept for products, where these are built for it."""
        if self._objective.ranks.sharded:
            return self._objective.gradient()
        total = FlatSum(self._objective.tensors)
        with self._evaluation.together():
            # A product will say why there is no graph; the gradient is there all the same.
            is_whole = False
            with suppress(SecondDerivativeError):
                is_whole = self._keep_graphs(total)
            gradient = total.vector() if is_whole else self._objective.gradients.total()
        return self._objective.add_up(gradient)

    def release(self) -> None:
        """Keep no graph from here on."""
        self._kept, self.graph_bytes, self._objective.budget.keeps = [], 0, False

    def _fresh_graphs(self) -> Iterator[tuple[float, GradientGraph]]:
        for i, share, batch in self._objective.budget.pieces():
            yield share, self._graph(i, batch)

    def _keep_graphs(self, total: FlatSum | None = None) -> bool:
        """Build the graphs, once, where they are to be kept; return whether ∇L was then added to the total."""
        budget = self._objective.budget
        budget.plan(True, loss=self._evaluation.value, gradient=self._graph)
        if self._kept or not budget.keeps:
            return False
        saved = budget.saved_bytes()
        graphs = []
        for i, share, batch in budget.pieces():
            with nullcontext() if budget.most is None else saved.counting(batch):
                graphs.append((share, self._graph(i, batch, share, total)))
        budget.keeps = budget.most is None or saved.total <= budget.most
        if budget.keeps:  # what was extrapolated has proved true
            self._kept, self.graph_bytes = graphs, saved.total
        return total is not None

    def _graph(
        self, index: int, batch: Any, share: float = 0.0, total: FlatSum | None = None
    ) -> GradientGraph:
        """Return the graph of ∇Lᵢ, and add share · ∇Lᵢ to a total."""
        # The fast attention kernels have no second derivative; the plain one is the same function.
        with self._evaluation.measuring(), torch.enable_grad(), plain_attention():
            loss = self._evaluation.differentiable(index, batch)
            gradient, is_custom = gradient_with_graph(loss, self._objective.tensors)
        self.has_custom_functions |= is_custom
        graph = GradientGraph(gradient, self._objective.tensors)
        if total is not None:
            total.add_all(share, gradient)
        return graph
