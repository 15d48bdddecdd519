"""The loss of one batch, at the parameters or a step away from them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.arguments import positive_count
from edgewise.isolation import Snapshot
from edgewise.loss.batches import Batches, batch_size, cast
from edgewise.loss.checks import (
    GraphOnDemand,
    LossFunction,
    calling,
    checked_loss,
    differentiable_loss,
    forward_only,
)
from edgewise.loss.functional import evaluated_at
from edgewise.loss.measuring import Measuring
from edgewise.loss.precision import CastCopy, measuring_dtype, without_autocast
from edgewise.parameters import select_parameters, unflatten
from edgewise.ranks import check_sharded_options, local, ranks_of, reshard, unwrapped


class Evaluation:
    """Lᵢ of batch i, at θ or at θ + step·direction.

    Each evaluation starts from the same random state and buffers when a `snapshot` is given, and runs without autocast.

    Where the model is not of the `dtype` to measure in, its modules hold cast copies during each evaluation, of which
    the selected ones are θ; the batch is cast likewise. The model's own tensors are only read.

    Args and errors are those of `Objective`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batches: Iterable[Any],
        snapshot: Snapshot | None,
        measuring: Measuring,
    ) -> None:
        self.ranks = ranks_of(model)
        self.model = unwrapped(model)
        self.snapshot = snapshot
        self._loss_fn = loss_fn
        with self.ranks.together():
            if measuring.max_graph_bytes is not None:
                positive_count("max_graph_bytes", measuring.max_graph_bytes)
            self.originals: dict[str, nn.Parameter] = select_parameters(self.model, measuring.params)
            self.dtype = measuring_dtype(self.model, measuring.dtype)
            casts = any(p.dtype != self.dtype for p in self.model.parameters() if p.is_floating_point())
            if self.ranks.sharded:
                check_sharded_options(self.dtype if casts else None, measuring.max_graph_bytes)
        self.parameters: dict[str, Tensor] = dict(self.originals)  # θ: copies of them, where cast
        self.batches = Batches(batches, self.ranks)
        if snapshot is not None:
            snapshot.add_compiled(loss_fn)
        self._copies: CastCopy | None = None
        self._forward = GraphOnDemand(list(self.originals.values()))
        self._values: dict[int, Tensor] = {}  # Lᵢ(θ) of whole batches, as last evaluated
        self._shift: list[Tensor] = []  # added to the parameters in each evaluation, times the step
        self._step = 0.0
        if casts:
            self.copy_model()

    @property
    def tensors(self) -> list[Tensor]:
        """The selected parameters, in the order of the flat vectors; of sharded ones this rank's shards."""
        return [local(parameter) for parameter in self.parameters.values()]

    @property
    def noise(self) -> float:
        """Relative differences of losses that rounding explains."""
        return torch.finfo(self.dtype).eps ** 0.5

    def copy_model(self) -> None:
        """Let θ be copies from here on, also where the model is of the dtype to measure in."""
        if self._copies is None:
            self._copies = CastCopy(self.model, self.dtype)
            self.parameters = {name: self._copies.of(p) for name, p in self.originals.items()}

    @contextmanager
    def together(self) -> Iterator[None]:
        """Measure together with the other ranks; what the body raises, or another rank's, is raised on all."""
        with self.ranks.together(), self.measuring():
            yield

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the copies, without autocast; around backward as well, which may recompute a checkpoint."""
        with without_autocast(), nullcontext() if self._copies is None else self._copies.held():
            yield

    @contextmanager
    def shifted(self, direction: Tensor, step: float) -> Iterator[None]:
        """Measure at θ + step·direction; θ comes back from the snapshot."""
        assert self.snapshot is not None
        with self.measuring():
            self._shift, self._step = unflatten(direction, self.tensors), step
            try:
                yield
            finally:
                self._shift = []
                self.rewind()

    def weighted(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, share of all ranks' samples, and batch."""
        return self.ranks.each_in_lockstep(self.batches.weighted())

    def first_batch(self) -> Any:
        """Return the batch of index 0."""
        with self.ranks.in_lockstep():
            return next(iter(self.batches))

    def loss(self, index: int, batch: Any, *, finite: bool = True) -> Tensor:
        """Return Lᵢ of a batch or micro-batch, with a graph unless gradients are off."""

        def evaluate() -> Tensor:
            self._start()
            ready = self._cast(batch)
            return self._checked(index, ready, lambda: self._loss_fn(self.model, ready), finite=finite)

        with self.ranks.in_lockstep():
            loss: Tensor = self._forward(evaluate)
        if self._is_whole(index, batch) and not self._shift:
            self._values[index] = loss.detach()
        return loss

    def differentiable(self, index: int, batch: Any) -> Tensor:
        """Return Lᵢ, or raise `LossError` where it has no graph."""
        return differentiable_loss(self.loss(index, batch), f"batch {index}")

    def value(self, index: int, batch: Any) -> float:
        """Return Lᵢ as a number, without a graph."""
        with forward_only():
            return self.loss(index, batch).item()

    def known_value(self, index: int, batch: Any) -> float:
        """Return Lᵢ(θ) of a batch, known from before where it can be, or of a micro-batch."""
        known = self._values.get(index) if self._is_whole(index, batch) else None
        return self.value(index, batch) if known is None else known.item()

    def function_of(self, index: int, batch: Any) -> Callable[[dict[str, Tensor]], Tensor]:
        """Return Lᵢ as a function of the named parameters, for torch.func, which starts from the state of now.

        What is rewound and shifted is so here: torch.func forbids to write to tensors inside, or to make leaves.
        """
        self._start()
        ready = self._cast(batch)

        def evaluate(parameters: dict[str, Tensor]) -> Tensor:
            replaced = {self.parameters[name]: tensor for name, tensor in parameters.items()}
            return self._checked(
                index, ready, lambda: evaluated_at(replaced, self.model, self._loss_fn, ready)
            )

        return evaluate

    def rewind(self) -> None:
        """Return random states, buffers, shards and copies to those of the start."""
        if self.snapshot is not None:
            self.snapshot.rewind()
        if self.ranks.sharded:
            reshard(self.model)
            for parameter in self.model.parameters():
                parameter.grad = None
        if self._copies is not None:
            self._copies.refresh()

    def _start(self) -> None:
        """Let an evaluation find what all find, and θ where it is to be."""
        self.rewind()
        for tensor, direction in zip(self.tensors, self._shift, strict=False):
            tensor.data.add_(direction, alpha=self._step)

    def _cast(self, batch: Any) -> Any:
        return batch if self._copies is None else cast(batch, self.dtype)

    def _is_whole(self, index: int, batch: Any) -> bool:
        return batch_size(batch) == self.batches.sizes[index]

    def _checked(self, index: int, batch: Any, call: Callable[[], object], *, finite: bool = True) -> Tensor:
        """Return what the loss function makes of a batch, if it is a loss; say of an error where it arose."""
        try:
            with calling(f"loss_fn on batch {index} of {len(self.batches)}", batch):
                loss = call()
        except Exception as error:
            if self.batches.doubt:
                error.add_note(self.batches.doubt)
            if self._copies is not None:
                error.add_note(
                    f"the model and its batch were cast to {self.dtype} for the measurement (dtype=)"
                )
            raise
        return checked_loss(loss, f"batch {index}", finite=finite)
