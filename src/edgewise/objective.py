"""The loss as a function of the parameters: value, gradient, Hessian-vector product."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.arguments import positive_count
from edgewise.attention import plain_attention
from edgewise.batches import Batches, batch_size, cast
from edgewise.derivatives import differentiate, evaluated_at, forward_over_reverse, gradient_with_graph
from edgewise.errors import LossError, SecondDerivativeError
from edgewise.isolation import Snapshot
from edgewise.losses import (
    GraphOnDemand,
    LossFunction,
    calling,
    checked_loss,
    differentiable_loss,
    forward_only,
)
from edgewise.memory import GraphBudget
from edgewise.parameters import select_parameters, unflatten, weighted_sum
from edgewise.precision import CastCopy, measuring_dtype, without_autocast
from edgewise.ranks import check_sharded_options, local, ranks_of, reshard, unwrapped
from edgewise.repeats import first_unrepeatable, told

_REENTRANT = "incompatible with .grad()"  # torch's refusal of torch.autograd.grad over a reentrant checkpoint


class Objective:
    r"""L(θ) = Σᵢ nᵢ Lᵢ(θ) / Σᵢ nᵢ over batches i of nᵢ samples, as a function of the selected parameters θ.

    Batches are weighted by their size, so that splitting a batch unevenly changes nothing. Each evaluation
    starts from the same random state and buffers when a `snapshot` is given, and runs without autocast.

    Where the model is not of the `dtype` to measure in, its modules hold cast copies during each evaluation, of which
    the selected ones are θ; the batch is cast likewise. The model's own tensors are only read.

    Where several ranks train the model, the batches are those of all ranks, and all of them call the methods alike:
    each takes its own part of the sum, then parts are added up, the same bits on each rank. An error on one is one on
    all. Under FSDP2, flat vectors hold the entries of this rank's shards, and there are gradients only.

    Args:
        model: any module; inside `DistributedDataParallel`, it is the module that is evaluated.
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
        ValueError: no batch, no parameter that requires a gradient, a dtype that does not do, a budget that one
            sample exceeds or that BatchNorm forbids to meet (raised by the first gradient), or a budget or another
            precision for a sharded model.
        LossError: the loss is not a finite scalar with a graph (raised by the first evaluation), batches differ
            between passes, or the loss of a split batch is not the mean over its micro-batches.
        SecondDerivativeError: some operation has no derivative of the kind a product needs.
        EdgewiseError: another rank raised one of these.

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
        self.ranks = ranks_of(model)
        self.model = unwrapped(model)
        self.loss_fn = loss_fn
        with self.ranks.together():
            if max_graph_bytes is not None:
                positive_count("max_graph_bytes", max_graph_bytes)
            self.originals: dict[str, nn.Parameter] = select_parameters(self.model, params)
            self.dtype = measuring_dtype(self.model, dtype)
            casts = any(p.dtype != self.dtype for p in self.model.parameters() if p.is_floating_point())
            if self.ranks.sharded:
                check_sharded_options(self.dtype if casts else None, max_graph_bytes)
        self.parameters: dict[str, Tensor] = dict(self.originals)  # θ: copies of them, where cast
        self.size = sum(tensor.numel() for tensor in self.tensors)  # of this rank's shards
        self.dimension = sum(p.numel() for p in self.originals.values())  # of all shards
        self.device = self.tensors[0].device
        self.batches = Batches(batches, self.ranks)
        self.graph_bytes = 0  # held by the kept graphs, counted where there is a budget
        self.has_custom_functions = False  # of which the author wrote the derivative; seen by reverse
        self._snapshot = snapshot
        if snapshot is not None:
            snapshot.add_compiled(loss_fn)
        self._copies: CastCopy | None = None
        self._by_backward = False  # the loss only allows loss.backward()
        self._forward = GraphOnDemand(list(self.originals.values()))
        self._losses: dict[int, Tensor] = {}  # Lᵢ(θ) of whole batches, as last evaluated
        self._same_draws = False  # whether torch.func has been seen to evaluate the same loss
        self._shift: list[Tensor] = []  # added to the parameters in each evaluation, times the step
        self._step = 0.0
        self._budget = GraphBudget(self.batches, self.model, max_graph_bytes, self.noise)
        self._graphs: list[tuple[float, list[Tensor | None]]] = []  # share of the samples, ∇L with its graph
        if casts:
            self._copy_model()

    @property
    def tensors(self) -> list[Tensor]:
        """The selected parameters, in the order of the flat vectors; of sharded ones this rank's shards."""
        return [local(parameter) for parameter in self.parameters.values()]

    @property
    def noise(self) -> float:
        """Relative differences of losses that rounding explains."""
        return torch.finfo(self.dtype).eps ** 0.5

    def reduce(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of what each computed of its shards; without shards, every rank has all."""
        return self.ranks.sum(partial) if self.ranks.sharded else partial

    def norm(self, vector: Tensor) -> Tensor:
        """Return ‖vector‖, of the entries on all ranks."""
        return self.reduce(vector.norm().square()).sqrt() if self.ranks.sharded else vector.norm()

    def value(self) -> float:
        """Return L(θ)."""
        value = sum(share * loss for share, loss in zip(self.shares, self.values(), strict=True))
        return float(self.ranks.sum(torch.tensor(value, dtype=torch.float64, device="cpu")))

    @property
    def shares(self) -> list[float]:
        """Return each of this rank's batches' share of all ranks' samples."""
        return self.batches.shares

    def values(self, *, finite: bool = True) -> list[float]:
        """Return Lᵢ(θ) of each of this rank's batches; unless they must be `finite`, also NaN and infinities."""
        with self._evaluating(), forward_only():
            return [self._loss(i, batch, finite=finite).item() for i, _, batch in self._weighted()]

    def check_repeats(self) -> None:
        """Raise `LossError` if the loss of the first batch is another when it is evaluated again."""
        with self._evaluating(), forward_only():
            first, again = (self._loss(0, self._first_batch()).item() for _ in range(2))
        repeats = abs(again - first) <= self.noise * abs(first)
        if not all(self.ranks.gather(repeats)):
            self.refuse_to_repeat("batch 0", first, again, is_known=not repeats)

    def refuse_to_repeat(self, of: str, first: float, again: float, *, is_known: bool = True) -> None:
        """Raise `LossError` that names what makes the loss `again` another; where it is not known here, return."""
        with self._evaluating(), forward_only():
            batch = self._first_batch()
            culprit = first_unrepeatable(self.model, lambda: self._loss(0, batch))
            if is_known:
                raise LossError(told(of, first, again, culprit, others="loss_fn or batches do"))

    def value_at(self, direction: Tensor, step: float) -> float:
        """Return L(θ + step·direction), as `gradient_at` does."""
        with self._measuring(), self._shifted(direction, step):
            return self.value()

    def values_at(self, direction: Tensor, step: float) -> list[float]:
        """Return Lᵢ(θ + step·direction) of each of this rank's batches, finite or not, as `gradient_at` does."""
        with self._measuring(), self._shifted(direction, step):
            return self.values(finite=False)

    def gradient_at(self, direction: Tensor, step: float) -> Tensor:
        """Return ∇L(θ + step·direction), shape (size,). Needs a snapshot, from which θ comes back."""
        assert self._snapshot is not None
        with self._measuring(), self._shifted(direction, step):
            return self.gradient()

    def gradient(self, *, keep_graph: bool = False) -> Tensor:
        """Return ∇L(θ), shape (size,); with `keep_graph`, products need no second gradient if the graphs fit."""
        with self._evaluating():
            gradient = self._sharded_gradient()[1] if self.ranks.sharded else self._own_gradient(keep_graph)
        return self._total(gradient)

    def values_and_gradients(self) -> tuple[list[float], list[Tensor | None]]:
        """Return Lᵢ(θ) of each of this rank's batches, and ∇L(θ), like the parameters, from the same forwards.

        Where no batch's loss depends on a parameter, its gradient is `None`, as `loss.backward()` would leave it; of
        sharded ones, zero.
        """
        with self._evaluating():
            if self.ranks.sharded:
                values, gradient = self._sharded_gradient()
                return values, list(unflatten(gradient, self.tensors))
            values, gradients = self._own_values_and_gradients()
            if all(gradient is None for gradient in gradients):
                raise LossError(
                    "the loss does not depend on the selected parameters: use the model that loss_fn is given, without "
                    ".detach(), or select parameters that the loss depends on."
                )
            return values, gradients

    def _own_values_and_gradients(self) -> tuple[list[float], list[Tensor | None]]:
        values = [0.0] * len(self.batches)
        totals: list[Tensor | None] = [None] * len(self.tensors)
        self._plan(create_graph=False)
        for i, share, batch in self._budget.pieces():
            loss, gradients = self._loss_and_gradient(i, batch, create_graph=False)
            values[i] += share / self.shares[i] * loss.item()
            for j in range(len(gradients)):
                # One at a time, so that there is one copy of the parameters; gradients may share memory.
                gradient, gradients[j] = gradients[j], None
                if gradient is not None:
                    before, own = totals[j], gradient.detach() * share
                    totals[j] = own if before is None else before.add_(own)
        if self.ranks.num > 1:
            totals = [self._summed(total, like) for total, like in zip(totals, self.tensors, strict=True)]
        return values, totals

    def _summed(self, total: Tensor | None, like: Tensor) -> Tensor | None:
        """Return the sum over ranks of what some of them may not have."""
        if not any(self.ranks.gather(total is not None)):
            return None
        return self.ranks.sum(torch.zeros_like(like) if total is None else total)

    @contextmanager
    def _shifted(self, direction: Tensor, step: float) -> Iterator[None]:
        self._shift, self._step = unflatten(direction, self.tensors), step
        try:
            yield
        finally:
            self._shift = []
            self._rewind()

    def _own_gradient(self, keep_graph: bool) -> Tensor:
        """Return this rank's part of ∇L."""
        if keep_graph:
            # A product will say why there is no graph; the gradient is there all the same.
            with suppress(SecondDerivativeError):
                self._keep_graphs()
        total = None
        kept = [(share, list(graph)) for share, graph in self._graphs] if keep_graph else []
        if not kept:
            self._plan(create_graph=False)
        for share, gradients in kept or self._fresh_gradients(create_graph=False):
            total = weighted_sum(total, share, gradients, self.tensors)
        assert total is not None  # there is a batch
        return total

    def _sharded_gradient(self) -> tuple[list[float], Tensor]:
        """Return Lᵢ of this rank's batches, and its shards of ∇L.

        FSDP2 leaves them in `.grad`, averaged over the ranks, and only after loss.backward().
        """
        values, total = [], torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for i, share, batch in self._weighted():
            with torch.enable_grad():
                loss = self._loss(i, batch)
            with self.ranks.in_lockstep():
                differentiable_loss(loss, f"batch {i}")
            (share * self.ranks.num * loss).backward()
            values.append(loss.item())
            gradients = [parameter.grad for parameter in self.originals.values()]
            if all(gradient is None for gradient in gradients):
                raise LossError(
                    f"no gradient of batch {i} arrived at the shards: call set_requires_gradient_sync(True) on the "
                    "model, and select parameters that the loss depends on."
                )
            total = weighted_sum(total, 1.0, gradients, self.tensors)
        self._rewind()  # drops the gradients
        return values, total

    def hvp(self, vector: Tensor) -> Tensor:
        """Return ∇²L(θ) · vector by reverse-over-reverse; both of shape (size,).

        With one batch, or where a budget allows it for several, the graph of the gradient is kept, and a product
        costs one backward pass through it; else each product recomputes the gradient batch by batch.
        """
        self.ranks.check_whole("reverse-over-reverse")
        parts = unflatten(vector, self.tensors)
        total = None
        with self._evaluating():
            self._keep_graphs()
            keep = bool(self._graphs)
            for share, graph in self._graphs or self._fresh_gradients(create_graph=True):
                product = differentiate(graph, parts, self.tensors, keep=keep)
                del graph  # before the next is built: the budget is for one
                total = weighted_sum(total, share, product, self.tensors)
        assert total is not None  # there is a batch
        return self._total(total)

    def drop_graphs(self) -> None:
        """Keep no graph from here on: another route has no use for them."""
        self._graphs, self.graph_bytes, self._budget.keeps = [], 0, False

    def hvp_forward(self, vector: Tensor, *, step: float = 0.0) -> Tensor:
        """Return ∇²L(θ + step·vector) · vector by forward-over-reverse: no graph is kept, no second backward needed."""
        self.ranks.check_whole("forward-over-reverse")
        tangents = dict(zip(self.parameters, unflatten(vector, self.tensors), strict=True))
        primals = {name: parameter.detach() for name, parameter in self.parameters.items()}
        if step:
            primals = {name: primal.add(tangents[name], alpha=step) for name, primal in primals.items()}
        total = None
        with self._evaluating():
            self._plan(create_graph=False)
            for i, share, batch in self._budget.pieces():
                known = self._same_draws or step or self._snapshot is None  # without one, each draws anew
                expected = None if known else self._loss_of(i, batch)
                self._rewind()  # before: torch.func forbids to write to tensors inside, or to make leaves
                evaluate = partial(self._evaluate, i, self._cast(batch))
                product = forward_over_reverse(evaluate, primals, tangents, expected, self.noise)
                total = weighted_sum(total, share, product, self.tensors)
        self._same_draws = True
        assert total is not None  # there is a batch
        return self._total(total)

    def _copy_model(self) -> None:
        """Let θ be copies from here on."""
        self._copies = CastCopy(self.model, self.dtype)
        self.parameters = {name: self._copies.of(p) for name, p in self.originals.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Measure together with the other ranks; what the body raises, or another rank's, is raised on all."""
        with self.ranks.together(), self._measuring():
            yield

    def _total(self, vector: Tensor) -> Tensor:
        """Return the sum of all ranks' parts; a shard has been summed with its gradient."""
        return vector if self.ranks.sharded else self.ranks.sum(vector)

    def _weighted(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, share of all ranks' samples, and batch."""
        return self.ranks.each_in_lockstep(self.batches.weighted())

    def _first_batch(self) -> Any:
        with self.ranks.in_lockstep():
            return next(iter(self.batches))

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Hold the copies, without autocast; around backward as well, which may recompute a checkpoint."""
        with without_autocast(), nullcontext() if self._copies is None else self._copies.held():
            yield

    def _fresh_gradients(self, *, create_graph: bool) -> Iterator[tuple[float, list[Tensor | None]]]:
        for i, share, batch in self._budget.pieces():
            yield share, self._gradient(i, batch, create_graph)

    def _plan(self, *, create_graph: bool) -> None:
        self._budget.plan(create_graph, loss=self._value_of, gradient=self._gradient)

    def _keep_graphs(self) -> None:
        """Build the graphs of the gradient, once, where they are to be kept."""
        self._plan(create_graph=True)
        if self._graphs or not self._budget.keeps:
            return
        saved = self._budget.saved_bytes()
        graphs = []
        for i, share, batch in self._budget.pieces():
            with nullcontext() if self._budget.most is None else saved.counting(batch):
                graphs.append((share, self._gradient(i, batch, create_graph=True)))
        self._budget.keeps = self._budget.most is None or saved.total <= self._budget.most
        if self._budget.keeps:  # what was extrapolated has proved true
            self._graphs, self.graph_bytes = graphs, saved.total

    def _gradient(self, index: int, batch: Any, create_graph: bool) -> list[Tensor | None]:
        return self._loss_and_gradient(index, batch, create_graph)[1]

    def _loss_and_gradient(
        self, index: int, batch: Any, create_graph: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        # The fast attention kernels have no second derivative; the plain one is the same function.
        attention = plain_attention() if create_graph else nullcontext()
        with self._measuring(), torch.enable_grad(), attention:
            loss = differentiable_loss(self._loss(index, batch), f"batch {index}")
            if create_graph:
                gradients, is_custom = gradient_with_graph(loss, self.tensors)
                self.has_custom_functions |= is_custom
                return loss.detach(), gradients
            try:
                if self._by_backward:
                    loss.backward()
                    return loss.detach(), [tensor.grad for tensor in self.tensors]
                return loss.detach(), list(torch.autograd.grad(loss, self.tensors, allow_unused=True))
            except RuntimeError as error:
                if _REENTRANT not in str(error):
                    raise
        # loss.backward() would fill the gradients of all parameters and run their hooks: let it be copies'.
        self._by_backward = True
        if self._copies is None:
            self._copy_model()
        return self._loss_and_gradient(index, batch, create_graph=False)

    def _loss(self, index: int, batch: Any, *, finite: bool = True) -> Tensor:
        def evaluate() -> Tensor:
            self._rewind()
            for tensor, direction in zip(self.tensors, self._shift, strict=False):
                tensor.data.add_(direction, alpha=self._step)
            return self._evaluate(index, self._cast(batch), finite=finite)

        with self.ranks.in_lockstep():
            loss: Tensor = self._forward(evaluate)
        if self._is_whole(index, batch) and not self._shift:
            self._losses[index] = loss.detach()
        return loss

    def _value_of(self, index: int, batch: Any) -> float:
        with forward_only():
            return self._loss(index, batch).item()

    def _loss_of(self, index: int, batch: Any) -> float:
        """Return Lᵢ(θ) of a batch, known from before where it can be, or of a micro-batch."""
        known = self._losses.get(index) if self._is_whole(index, batch) else None
        return self._value_of(index, batch) if known is None else known.item()

    def _is_whole(self, index: int, batch: Any) -> bool:
        return batch_size(batch) == self.batches.sizes[index]

    def _cast(self, batch: Any) -> Any:
        return batch if self._copies is None else cast(batch, self.dtype)

    def _evaluate(
        self,
        index: int,
        batch: Any,
        parameters: dict[str, Tensor] | None = None,
        *,
        finite: bool = True,
    ) -> Tensor:
        try:
            with calling(f"loss_fn on batch {index} of {len(self.batches)}", batch):
                loss = self._call(batch, parameters)
        except Exception as error:
            if self.batches.doubt:
                error.add_note(self.batches.doubt)
            if self._copies is not None:
                error.add_note(
                    f"the model and its batch were cast to {self.dtype} for the measurement (dtype=)"
                )
            raise
        return checked_loss(loss, f"batch {index}", finite=finite)

    def _rewind(self) -> None:
        if self._snapshot is not None:
            self._snapshot.rewind()
        if self.ranks.sharded:
            reshard(self.model)
            for parameter in self.model.parameters():
                parameter.grad = None
        if self._copies is not None:
            self._copies.refresh()

    def _call(self, batch: Any, parameters: dict[str, Tensor] | None) -> Any:
        if parameters is None:
            return self.loss_fn(self.model, batch)
        replaced = {self.parameters[name]: tensor for name, tensor in parameters.items()}
        return evaluated_at(replaced, self.model, self.loss_fn, batch)
