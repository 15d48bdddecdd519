"""The loss as a function of the parameters: value, gradient, Hessian-vector product."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from edgewise.errors import LossError
from edgewise.isolation import Snapshot
from edgewise.parameters import flatten, select_parameters, unflatten

LossFunction = Callable[[nn.Module, Any], Tensor]


class Objective:
    r"""L(θ) = Σᵢ nᵢ Lᵢ(θ) / Σᵢ nᵢ over batches i of nᵢ samples, as a function of the selected parameters θ.

    Batches are weighted by their size, so that splitting a batch unevenly changes nothing. Each evaluation
    starts from the same random state and buffers when a `snapshot` is given. With one batch, the graph of the
    gradient is kept, and a Hessian-vector product costs one backward pass through it; with several, each
    product recomputes the gradient batch by batch.

    Args:
        model: any module.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch, a scalar tensor.
        batches: a re-iterable of batches: a list (one batch: `[batch]`) or a data loader without shuffling.
        snapshot: of the surrounding `isolated`.
        params: shell-style name patterns of the parameters θ; `None` means all that require a gradient.

    Raises:
        TypeError: `batches` can be read only once, or is a bare tensor.
        ValueError: no batch, or no parameter that requires a gradient.
        LossError: the loss is not a finite scalar with a graph (raised by the first evaluation).

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> objective = Objective(model, lambda model, x: 0.5 * model(x).square().mean(), [x])
        >>> objective.hvp(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 2.0000])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        *,
        snapshot: Snapshot | None = None,
        params: str | Iterable[str] | None = None,
    ) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.batches = _re_iterable(batches)
        self.parameters = select_parameters(model, params)
        self.size = sum(p.numel() for p in self.parameters.values())
        first = next(iter(self.parameters.values()))
        self.dtype, self.device = first.dtype, first.device
        self._snapshot = snapshot
        self._graph: list[Tensor | None] = []  # ∇L with its graph, of the only batch

    @property
    def tensors(self) -> list[Tensor]:
        """The selected parameters, in the order of the flat vectors."""
        return list(self.parameters.values())

    def value(self) -> float:
        """Return L(θ)."""
        with torch.no_grad():
            return sum(weight * self._loss(i, batch).item() for i, weight, batch in self._weighted())

    def gradient(self, *, keep_graph: bool = False) -> Tensor:
        """Return ∇L(θ), shape (size,); with `keep_graph`, products on one batch then need no second gradient."""
        if keep_graph and len(self.batches) == 1:
            self._graph = self._gradient(0, self.batches[0], create_graph=True)
            return self._flat(self._graph)
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for i, weight, batch in self._weighted():
            total += weight * self._flat(self._gradient(i, batch, create_graph=False))
        return total

    def hvp(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector; both of shape (size,)."""
        parts = unflatten(vector, self.tensors)
        if len(self.batches) == 1:
            if not self._graph:
                self.gradient(keep_graph=True)
            return self._flat(_differentiate(self._graph, parts, self.tensors, keep=True))
        total = torch.zeros_like(vector)
        for i, weight, batch in self._weighted():
            graph = self._gradient(i, batch, create_graph=True)
            total += weight * self._flat(_differentiate(graph, parts, self.tensors, keep=False))
        return total

    def _weighted(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, share of the samples, and batch."""
        if len(self.batches) == 1:
            yield 0, 1.0, self.batches[0]
            return
        sizes = [_batch_size(i, batch) for i, batch in enumerate(self.batches)]
        for i, (size, batch) in enumerate(zip(sizes, self.batches, strict=True)):
            yield i, size / sum(sizes), batch

    def _gradient(self, index: int, batch: Any, *, create_graph: bool) -> list[Tensor | None]:
        # The fast attention kernels have no second derivative; the plain one is the same function.
        attention = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
        with torch.enable_grad(), attention:
            loss = self._loss(index, batch)
            if not loss.requires_grad:
                raise LossError(
                    f"the loss of batch {index} has no graph to the parameters: do not call .item(), .detach() "
                    "or torch.no_grad() inside loss_fn, and use the model it is given."
                )
            return list(torch.autograd.grad(loss, self.tensors, create_graph=create_graph, allow_unused=True))

    def _loss(self, index: int, batch: Any) -> Tensor:
        if self._snapshot is not None:
            self._snapshot.rewind()
        try:
            loss = self.loss_fn(self.model, batch)
        except Exception as error:
            error.add_note(f"raised by loss_fn on batch {index} of {len(self.batches)}")
            raise
        return checked_loss(loss, f"batch {index}")

    def _flat(self, tensors: Iterable[Tensor | None]) -> Tensor:
        return flatten(
            [
                torch.zeros_like(parameter) if tensor is None else tensor.detach()
                for tensor, parameter in zip(tensors, self.tensors, strict=True)
            ]
        )


def checked_loss(loss: object, of: str) -> Tensor:
    """Return `loss` if it is a finite scalar tensor, or raise `LossError`; `of` names where it came from."""
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss of {of} must be a scalar tensor, got {type(loss).__name__}: return the mean loss "
            "as computed by torch, without .item()."
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise LossError(
            f"the loss of {of} must be one floating-point number, got shape {tuple(loss.shape)} and "
            f"{loss.dtype}: reduce it with .mean()."
        )
    if not torch.isfinite(loss):
        raise LossError(
            f"the loss of {of} is {loss.item()}: measure at finite parameters and check the inputs for NaN."
        )
    return loss.reshape(())


def _differentiate(
    graph: list[Tensor | None], parts: list[Tensor], parameters: list[Tensor], *, keep: bool
) -> list[Tensor | None]:
    """Return Σⱼ ∂graphⱼ/∂θ · partsⱼ; gradients that do not depend on θ (linear entries) contribute zero."""
    pairs = [(g, v) for g, v in zip(graph, parts, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return [None] * len(parameters)
    outputs, vectors = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, parameters, vectors, retain_graph=keep, allow_unused=True))


def _re_iterable(batches: Iterable[Any]) -> list[Any]:
    """Return the batches as a list, or raise if they are not a collection of batches."""
    if isinstance(batches, Tensor | dict):
        raise TypeError(
            f"batches must be a list of batches, got one {type(batches).__name__}: write [batch] for a single one."
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            "batches can be read only once (it is an iterator): pass list(batches), or the data loader itself."
        )
    collected = list(batches)
    if not collected:
        raise ValueError("batches is empty: pass at least one batch.")
    return collected


def _batch_size(index: int, batch: Any) -> int:
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise ValueError(
        f"cannot tell the size of batch {index}: it holds no tensor with a batch dimension. "
        "Pass a single batch, or batches whose first tensor has one row per sample."
    )
