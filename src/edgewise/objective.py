"""The loss as a function of the parameters: value, gradient, Hessian-vector product."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from edgewise.batches import Batches, GraphSize, SavedBytes, batch_size, cast, share_of, split
from edgewise.errors import LossError, SecondDerivativeError, positive_count
from edgewise.isolation import CastCopy, Snapshot, first_unrepeatable, without_autocast
from edgewise.parameters import flatten, select_parameters, unflatten

LossFunction = Callable[[nn.Module, Any], Tensor]

_REENTRANT = "incompatible with .grad()"  # torch's refusal of torch.autograd.grad over a reentrant checkpoint


class Objective:
    r"""L(θ) = Σᵢ nᵢ Lᵢ(θ) / Σᵢ nᵢ over batches i of nᵢ samples, as a function of the selected parameters θ.

    Batches are weighted by their size, so that splitting a batch unevenly changes nothing. Each evaluation
    starts from the same random state and buffers when a `snapshot` is given, and runs without autocast.

    Where the model is not of the `dtype` to measure in, its modules hold cast copies during each evaluation, of which
    the selected ones are θ; the batch is cast likewise. The model's own tensors are only read.

    Args:
        model: any module.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch, a scalar tensor.
        batches: a re-iterable of batches: a list (one batch: `[batch]`) or a data loader without shuffling.
        snapshot: of the surrounding `isolated`.
        params: shell-style name patterns of the parameters θ; `None` means all that require a gradient.
        dtype: to measure in; see `measuring_dtype`.
        max_graph_bytes: what the kept graphs may hold. Graphs of all batches are kept if they fit together, else
            each product computes them anew, a batch that does not fit alone in micro-batches of the largest size
            that does. That size is extrapolated, affinely, from the bytes that autograd saves for one sample and
            for two (BatchNorm in training: two and three). Without it, the graph of a single batch is kept.

    Raises:
        TypeError: `batches` can be read only once, or is a bare tensor.
        ValueError: no batch, no parameter that requires a gradient, a dtype that does not do, or a budget that one
            sample exceeds or that BatchNorm forbids to meet (raised by the first gradient).
        LossError: the loss is not a finite scalar with a graph (raised by the first evaluation), batches differ
            between passes, or the loss of a split batch is not the mean over its micro-batches.
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
        dtype: torch.dtype | None = None,
        max_graph_bytes: int | None = None,
    ) -> None:
        if max_graph_bytes is not None:
            positive_count("max_graph_bytes", max_graph_bytes)
        self.model = model
        self.loss_fn = loss_fn
        self.originals: dict[str, nn.Parameter] = select_parameters(model, params)
        self.parameters: dict[str, Tensor] = dict(self.originals)  # θ: copies of them, where cast
        self.size = sum(p.numel() for p in self.originals.values())
        self.dtype = measuring_dtype(model, dtype)
        self.device = next(iter(self.originals.values())).device
        self.batches = Batches(batches)
        self.graph_bytes = 0  # held by the kept graphs, counted where there is a budget
        self._snapshot = snapshot
        self._copies: CastCopy | None = None
        self._by_backward = False  # the loss only allows loss.backward()
        self._shift: list[Tensor] = []  # added to the parameters in each evaluation
        self._max_graph_bytes = max_graph_bytes
        self._planned_for: bool | None = None  # the create_graph that _rows and _keeps were found for
        self._rows: dict[int, int] = {}  # index of a batch that is split → samples of a micro-batch
        self._keeps = False  # whether the graphs are kept
        self._graphs: list[tuple[float, list[Tensor | None]]] = []  # share of the samples, ∇L with its graph
        if any(p.dtype != self.dtype for p in model.parameters() if p.is_floating_point()):
            self._copy_model()

    @property
    def tensors(self) -> list[Tensor]:
        """The selected parameters, in the order of the flat vectors."""
        return list(self.parameters.values())

    def value(self) -> float:
        """Return L(θ)."""
        with self._measuring(), _forward_only():
            return sum(share * self._loss(i, batch).item() for i, share, batch in self.batches.weighted())

    def check_repeats(self) -> None:
        """Raise `LossError` if the loss of the first batch is another when it is evaluated again."""
        with self._measuring(), _forward_only():
            first, again = (self._loss(0, next(iter(self.batches))).item() for _ in range(2))
            if abs(again - first) <= torch.finfo(self.dtype).eps ** 0.5 * abs(first):
                return
            batch = next(iter(self.batches))
            culprit = first_unrepeatable(self.model, lambda: self._loss(0, batch))
        raise LossError(
            f"the loss of batch 0 is {first:.6g} and, evaluated again from the same random state, {again:.6g}: "
            + (f"the first to differ is {culprit}" if culprit else "no module differs, loss_fn or batches do")
            + ". Call model.eval(), or draw from the generators of torch, numpy or random, which are rewound."
        )

    def gradient_at(self, shift: Tensor) -> Tensor:
        """Return ∇L(θ + shift); both of shape (size,). Needs a snapshot, from which θ comes back."""
        assert self._snapshot is not None
        with self._measuring():
            self._shift = unflatten(shift, self.tensors)
            try:
                return self.gradient()
            finally:
                self._shift = []
                self._rewind()

    def gradient(self, *, keep_graph: bool = False) -> Tensor:
        """Return ∇L(θ), shape (size,); with `keep_graph`, products need no second gradient if the graphs fit."""
        with self._measuring():
            if keep_graph:
                # A product will say why there is no graph; the gradient is there all the same.
                with suppress(SecondDerivativeError):
                    self._keep_graphs()
                if self._graphs:
                    return self._sum((share, self._flat(graph)) for share, graph in self._graphs)
            self._plan(create_graph=False)
            return self._sum(
                (share, self._flat(self._gradient(i, batch, create_graph=False)))
                for i, share, batch in self._pieces()
            )

    def hvp(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector by reverse-over-reverse; both of shape (size,).

        With one batch, or where a budget allows it for several, the graph of the gradient is kept, and a product
        costs one backward pass through it; else each product recomputes the gradient batch by batch.
        """
        parts = unflatten(vector, self.tensors)
        total = torch.zeros_like(vector)
        with self._measuring():
            self._keep_graphs()
            keep = bool(self._graphs)
            try:
                for share, graph in self._graphs or self._fresh_graphs():
                    total += share * self._flat(_differentiate(graph, parts, self.tensors, keep=keep))
                    del graph  # before the next is built: the budget is for one
            except SecondDerivativeError:  # another route has no use for the graphs
                self._graphs, self.graph_bytes, self._keeps = [], 0, False
                raise
        return total

    def hvp_forward(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector by forward-over-reverse: no graph is kept, no second backward is needed."""
        tangents = dict(zip(self.parameters, unflatten(vector, self.tensors), strict=True))
        primals = {name: parameter.detach() for name, parameter in self.parameters.items()}
        total = torch.zeros_like(vector)
        with self._measuring():
            self._plan(create_graph=False)
            for i, share, batch in self._pieces():
                self._rewind()  # before: torch.func forbids to write to tensors inside, or to make leaves
                batch = self._cast(batch)  # noqa: PLW2901
                gradient = torch.func.grad(
                    lambda parameters, i=i, batch=batch: self._evaluate(i, batch, parameters)
                )
                with sdpa_kernel(SDPBackend.MATH), _as_second_derivative_error("forward-over-reverse"):
                    product = torch.func.jvp(gradient, (primals,), (tangents,))[1]
                total += share * self._flat(product.values())
        return total

    def _copy_model(self) -> None:
        """Let θ be copies from here on."""
        self._copies = CastCopy(self.model, self.dtype)
        self.parameters = {name: self._copies.of(p) for name, p in self.originals.items()}

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Hold the copies, without autocast; around backward as well, which may recompute a checkpoint."""
        with without_autocast(), nullcontext() if self._copies is None else self._copies.held():
            yield

    def _pieces(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index of the batch, share of the samples, and batch or micro-batch."""
        for i, share, batch in self.batches.weighted():
            if i not in self._rows:
                yield i, share, batch
                continue
            for piece in split(batch, self._rows[i]):
                yield i, share * share_of(piece, batch), piece

    def _fresh_graphs(self) -> Iterator[tuple[float, list[Tensor | None]]]:
        for i, share, batch in self._pieces():
            yield share, self._gradient(i, batch, create_graph=True)

    def _keep_graphs(self) -> None:
        """Build the graphs of the gradient, once, where they are to be kept."""
        self._plan(create_graph=True)
        if self._graphs or not self._keeps:
            return
        saved = SavedBytes(self._held_anyway())
        graphs = []
        for i, share, batch in self._pieces():
            with nullcontext() if self._max_graph_bytes is None else saved.counting(batch):
                graphs.append((share, self._gradient(i, batch, create_graph=True)))
        self._keeps = self._max_graph_bytes is None or saved.total <= self._max_graph_bytes
        if self._keeps:  # what was extrapolated has proved true
            self._graphs, self.graph_bytes = graphs, saved.total

    def _plan(self, *, create_graph: bool) -> None:
        """Decide, once, which batches are split and whether graphs are kept; a graph of ∇L is the larger."""
        if self._planned_for or self._planned_for is create_graph:
            return
        keeps = len(self.batches) == 1
        if self._max_graph_bytes is not None:
            total = 0
            for i, _, batch in self.batches.weighted():
                whole, rows = self._rows_that_fit(i, batch, self._max_graph_bytes, create_graph)
                total += whole
                if rows is not None:
                    self._check_split(i, batch, rows)
                    self._rows[i] = rows
            keeps = total <= self._max_graph_bytes
        self._keeps, self._planned_for = keeps, create_graph

    def _rows_that_fit(
        self, index: int, batch: Any, budget: int, create_graph: bool
    ) -> tuple[int, int | None]:
        """Return the bytes of a batch's graph and, if they exceed the budget, the samples of a micro-batch."""
        normalized = _batch_normalized(self.model)
        least = 2 if normalized else 1  # BatchNorm refuses a single sample
        held = GraphSize(batch, least, lambda piece: self._bytes_of(index, piece, create_graph))
        if held.bytes <= budget:
            return held.bytes, None
        if normalized:
            raise ValueError(
                f"max_graph_bytes={budget:,} asks to split batch {index}, whose graph holds about {held.bytes:,} "
                f"bytes, but {normalized} normalizes over the batch, so that micro-batches have another loss: raise "
                "the budget, call model.eval(), or pass smaller batches."
            )
        if held.first > budget:
            raise ValueError(
                f"max_graph_bytes={budget:,} is too small: the graph of a single sample of batch {index} holds "
                f"{held.first:,} bytes. Raise it to that at least, or use activation checkpointing."
            )
        return held.bytes, held.rows_within(budget)

    def _bytes_of(self, index: int, piece: Any, create_graph: bool) -> int:
        """Return the bytes that autograd saves for a gradient."""
        saved = SavedBytes(self._held_anyway())
        try:
            with saved.counting(piece):
                self._gradient(index, piece, create_graph=create_graph)
        except Exception as error:
            error.add_note(
                f"max_graph_bytes= had {batch_size(piece)} samples evaluated, to see what their graph holds"
            )
            raise
        return saved.total

    def _held_anyway(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _check_split(self, index: int, batch: Any, rows: int) -> None:
        with _forward_only():
            whole = self._loss(index, batch).item()
            parts = sum(share_of(p, batch) * self._loss(index, p).item() for p in split(batch, rows))
        if abs(parts - whole) > torch.finfo(self.dtype).eps ** 0.5 * abs(whole):
            raise LossError(
                f"batch {index} was to be split into micro-batches of {rows} to meet max_graph_bytes, but their mean "
                f"loss is {parts:.6g}, that of the batch {whole:.6g}: the loss is not a mean over samples, samples "
                "interact, or dropout draws other masks. Raise the budget, call model.eval(), or pass smaller batches."
            )

    def _gradient(self, index: int, batch: Any, *, create_graph: bool) -> list[Tensor | None]:
        # The fast attention kernels have no second derivative; the plain one is the same function.
        attention = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
        with self._measuring(), torch.enable_grad(), attention:
            loss = differentiable_loss(self._loss(index, batch), f"batch {index}")
            try:
                if self._by_backward and not create_graph:
                    loss.backward()
                    return [tensor.grad for tensor in self.tensors]
                return list(
                    torch.autograd.grad(loss, self.tensors, create_graph=create_graph, allow_unused=True)
                )
            except RuntimeError as error:
                if _REENTRANT not in str(error):
                    raise
                if create_graph:
                    raise SecondDerivativeError(
                        "reverse-over-reverse is not possible for this loss (activation checkpointing with "
                        'use_reentrant=True): use hvp="difference", or checkpoint with use_reentrant=False.'
                    ) from error
        # loss.backward() would fill the gradients of all parameters and run their hooks: let it be copies'.
        self._by_backward = True
        if self._copies is None:
            self._copy_model()
        return self._gradient(index, batch, create_graph=False)

    def _loss(self, index: int, batch: Any) -> Tensor:
        self._rewind()
        for tensor, shift in zip(self.tensors, self._shift, strict=False):
            tensor.data.add_(shift)
        return self._evaluate(index, self._cast(batch))

    def _cast(self, batch: Any) -> Any:
        return batch if self._copies is None else cast(batch, self.dtype)

    def _evaluate(self, index: int, batch: Any, parameters: dict[str, Tensor] | None = None) -> Tensor:
        try:
            loss = self._call(batch, parameters)
        except Exception as error:
            error.add_note(f"raised by loss_fn on batch {index} of {len(self.batches)}")
            if self._copies is not None:
                error.add_note(
                    f"the model and its batch were cast to {self.dtype} for the measurement (dtype=)"
                )
            raise
        return checked_loss(loss, f"batch {index}")

    def _rewind(self) -> None:
        if self._snapshot is not None:
            self._snapshot.rewind()
        if self._copies is not None:
            self._copies.refresh()

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

    def _sum(self, terms: Iterable[tuple[float, Tensor]]) -> Tensor:
        """Return Σ share · vector, shape (size,)."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for share, vector in terms:
            total += share * vector
        return total

    def _flat(self, tensors: Iterable[Tensor | None]) -> Tensor:
        return flatten(
            [
                torch.zeros_like(parameter) if tensor is None else tensor.detach()
                for tensor, parameter in zip(tensors, self.tensors, strict=True)
            ]
        )


def measuring_dtype(model: nn.Module, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the precision to measure a model in: `dtype`, or the widest of its parameters' and float32.

    Raises:
        ValueError: `dtype` is neither float32 nor float64.

    Example:
        >>> measuring_dtype(nn.Linear(2, 1).bfloat16())
        torch.float32
    """
    if dtype is None:
        wide = [p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 2]
        return reduce(torch.promote_types, wide, torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be torch.float32, torch.float64 or None, got {dtype!r}: half precision resolves no second "
            "derivatives; the model may be of any precision, it is cast for the measurement."
        )
    return dtype


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


@contextmanager
def _forward_only() -> Iterator[None]:
    """No graph, and no warning of torch's that a reentrant checkpoint has none."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        yield


def _batch_normalized(model: nn.Module) -> str:
    """Return the name and class of the first layer whose output depends on the whole batch, or ''."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return f"{name or 'the model'} ({type(module).__name__})"
    return ""
