"""The loss as a function of the parameters: value, gradient, Hessian-vector product."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from edgewise.errors import LossError, SecondDerivativeError
from edgewise.isolation import Snapshot
from edgewise.parameters import flatten, select_parameters, unflatten

LossFunction = Callable[[nn.Module, Any], Tensor]


class Objective:
    r"""L(θ) = Σᵢ nᵢ Lᵢ(θ) / Σᵢ nᵢ over batches i of nᵢ samples, as a function of the selected parameters θ.

    Batches are weighted by their size, so that splitting a batch unevenly changes nothing. Each evaluation
    starts from the same random state and buffers when a `snapshot` is given.

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
        SecondDerivativeError: some operation has no derivative of the kind a product needs.

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
        self._shift: list[Tensor] = []  # added to the parameters in each evaluation
        self._graph: list[Tensor | None] = []  # ∇L with its graph, of the only batch

    @property
    def tensors(self) -> list[Tensor]:
        """The selected parameters, in the order of the flat vectors."""
        return list(self.parameters.values())

    def value(self) -> float:
        """Return L(θ)."""
        with torch.no_grad():
            return sum(weight * self._loss(i, batch).item() for i, weight, batch in self._weighted())

    def gradient_at(self, shift: Tensor) -> Tensor:
        """Return ∇L(θ + shift); both of shape (size,). Needs a snapshot, from which θ comes back."""
        assert self._snapshot is not None
        self._shift = unflatten(shift, self.tensors)
        try:
            return self.gradient()
        finally:
            self._shift = []
            self._snapshot.rewind()

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
        """Return ∇²L(θ) · vector by reverse-over-reverse; both of shape (size,).

        With one batch, the graph of the gradient is kept, and a product costs one backward pass through it;
        with several, each product recomputes the gradient batch by batch.
        """
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

    def hvp_forward(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector by forward-over-reverse: no graph is kept, no second backward is needed."""
        tangents = dict(zip(self.parameters, unflatten(vector, self.tensors), strict=True))
        primals = {name: parameter.detach() for name, parameter in self.parameters.items()}
        total = torch.zeros_like(vector)
        for i, weight, batch in self._weighted():
            gradient = torch.func.grad(lambda parameters, i=i, batch=batch: self._loss(i, batch, parameters))
            with sdpa_kernel(SDPBackend.MATH), _as_second_derivative_error("forward-over-reverse"):
                product = torch.func.jvp(gradient, (primals,), (tangents,))[1]
            total += weight * self._flat(product.values())
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
            loss = differentiable_loss(loss, f"batch {index}")
            return list(torch.autograd.grad(loss, self.tensors, create_graph=create_graph, allow_unused=True))

    def _loss(self, index: int, batch: Any, parameters: dict[str, Tensor] | None = None) -> Tensor:
        if self._snapshot is not None:
            self._snapshot.rewind()
        for tensor, shift in zip(self.tensors, self._shift, strict=False):
            tensor.data.add_(shift)
        try:
            loss = self._call(batch, parameters)
        except Exception as error:
            error.add_note(f"raised by loss_fn on batch {index} of {len(self.batches)}")
            raise
        return checked_loss(loss, f"batch {index}")

    def _call(self, batch: Any, parameters: dict[str, Tensor] | None) -> Any:
        if parameters is None:
            return self.loss_fn(self.model, batch)
        return torch.func.functional_call(
            _LossModule(self.model, self.loss_fn), self._replaced(parameters), (batch,), tie_weights=False
        )

    def _replaced(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what each module is to hold instead: the given parameters, and buffers it may write to.

        Tied parameters are named once for each module that holds them. torch's own tie_weights would also name a
        module twice that is registered under two names, and not put its parameters back.
        """
        given = {id(self.parameters[name]): tensor for name, tensor in parameters.items()}
        replaced = {}
        for prefix, module in _LossModule(self.model, self.loss_fn).named_modules():
            path = f"{prefix}." if prefix else ""
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                if id(parameter) in given:
                    replaced[path + name] = given[id(parameter)]
            for name, buffer in module.named_buffers(recurse=False):
                replaced[path + name] = buffer.clone()
        return replaced

    def _flat(self, tensors: Iterable[Tensor | None]) -> Tensor:
        return flatten(
            [
                torch.zeros_like(parameter) if tensor is None else tensor.detach()
                for tensor, parameter in zip(tensors, self.tensors, strict=True)
            ]
        )


def differentiable_loss(loss: Tensor, of: str) -> Tensor:
    """Return `loss` if it has a graph, or raise `LossError`; `of` names where it came from."""
    if not loss.requires_grad:
        raise LossError(
            f"the loss of {of} has no graph to the parameters: do not call .item(), .detach() "
            "or torch.no_grad() inside loss_fn, and use the model it is given."
        )
    return loss


class _LossModule(nn.Module):
    """The loss as a module's forward, so that torch.func can replace the parameters inside."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


@contextmanager
def _as_second_derivative_error(route: str) -> Iterator[None]:
    """Turn torch's refusal to differentiate into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        raise SecondDerivativeError(
            f"{route} is not possible for this loss ({str(error).strip().splitlines()[0]}): "
            'use hvp="difference", or kernels that can be differentiated twice.'
        ) from error


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
    _check_twice_differentiable(outputs)
    with _as_second_derivative_error("reverse-over-reverse"):
        return list(torch.autograd.grad(outputs, parameters, vectors, retain_graph=keep, allow_unused=True))


def _check_twice_differentiable(gradients: tuple[Tensor, ...]) -> None:
    """Raise where a custom function is marked once_differentiable.

    torch raises on such a node only when the path behind it is asked for; here it ends at a detached tensor, and
    torch.autograd.grad would leave its terms out in silence.
    """
    pending = [gradient.grad_fn for gradient in gradients]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise SecondDerivativeError(
                "reverse-over-reverse is not possible for this loss (a custom autograd.Function is marked "
                'once_differentiable): use hvp="difference", or a function that can be differentiated twice.'
            )
        pending.extend(following for following, _ in node.next_functions)


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
