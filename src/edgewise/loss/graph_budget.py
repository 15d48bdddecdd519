"""What the graphs of gradients hold, and the micro-batches that keep them within a budget."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from edgewise.errors import LossError
from edgewise.loss.batches import Batches, batch_size, share_of, split, tensors_of
from edgewise.torch_internals import BatchNorm


class GraphBudget:
    """What the graphs of gradients may hold: which batches are split for it, and whether graphs are kept.

    Args:
        batches: to take gradients of.
        model: whose parameters and buffers are held anyway.
        most: bytes; `None` to split none, and to keep the graph of a single batch.
        rtol: to which the loss of a batch is the mean over its micro-batches.
    """

    def __init__(self, batches: Batches, model: nn.Module, most: int | None, rtol: float) -> None:
        self.most = most
        self.keeps = False  # whether the graphs are kept
        self._batches, self._model, self._rtol = batches, model, rtol
        self._planned_for: bool | None = None  # the create_graph that the rest was found for
        self._rows: dict[int, int] = {}  # index of a batch that is split → samples of a micro-batch

    def plan(
        self,
        create_graph: bool,
        *,
        loss: Callable[[int, Any], float],
        gradient: Callable[[int, Any], object],
    ) -> None:
        """Decide, once, which batches are split and whether graphs are kept; a graph of ∇L is the larger.

        Args:
            create_graph: whether graphs are those of ∇L.
            loss: index, batch → its loss.
            gradient: index, batch → builds a graph.
        """
        if self._planned_for or self._planned_for is create_graph:
            return
        keeps = len(self._batches) == 1
        if self.most is not None:
            total = 0
            for i, _, batch in self._batches.weighted():
                bytes_of = partial(self._bytes_of, i, gradient)
                whole, rows = self._rows_that_fit(i, batch, self.most, bytes_of)
                total += whole
                if rows is not None:
                    self._check_split(i, batch, rows, loss)
                    self._rows[i] = rows
            keeps = total <= self.most
        self.keeps, self._planned_for = keeps, create_graph

    def pieces(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index of the batch, share of the samples, and batch or micro-batch."""
        for i, share, batch in self._batches.weighted():
            if i not in self._rows:
                yield i, share, batch
                continue
            for piece in split(batch, self._rows[i]):
                yield i, share * share_of(piece, batch), piece

    def saved_bytes(self) -> "SavedBytes":
        """Return a counter of what graphs hold, from 0."""
        return SavedBytes([*self._model.parameters(), *self._model.buffers()])

    def _rows_that_fit(
        self, index: int, batch: Any, budget: int, bytes_of: Callable[[Any], int]
    ) -> tuple[int, int | None]:
        """Return the bytes of a batch's graph and, if they exceed the budget, the samples of a micro-batch."""
        normalized = _batch_normalized(self._model)
        least = 2 if normalized else 1  # BatchNorm refuses a single sample
        held = GraphSize(batch, least, bytes_of)
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

    def _bytes_of(self, index: int, gradient: Callable[[int, Any], object], piece: Any) -> int:
        """Return the bytes that autograd saves for a gradient."""
        saved = self.saved_bytes()
        try:
            with saved.counting(piece):
                gradient(index, piece)
        except Exception as error:
            error.add_note(
                f"max_graph_bytes= had {batch_size(piece)} samples evaluated, to see what their graph holds"
            )
            raise
        return saved.total

    def _check_split(self, index: int, batch: Any, rows: int, loss: Callable[[int, Any], float]) -> None:
        whole = loss(index, batch)
        parts = sum(share_of(p, batch) * loss(index, p) for p in split(batch, rows))
        if abs(parts - whole) > self._rtol * abs(whole):
            raise LossError(
                f"batch {index} was to be split into micro-batches of {rows} to meet max_graph_bytes, but their mean "
                f"loss is {parts:.6g}, that of the batch {whole:.6g}: the loss is not a mean over samples, samples "
                "interact, or dropout draws other masks. Raise the budget, call model.eval(), or pass smaller batches."
            )


class GraphSize:
    """Bytes of the graph over a batch, extrapolated from those of its first samples: a + b·samples.

    >>> import torch
    >>> held = GraphSize(torch.ones(10), 1, lambda piece: 50 + 100 * len(piece))
    >>> held.bytes, held.first, held.rows_within(500)
    (1050, 150, 4)
    """

    def __init__(self, batch: Any, least: int, bytes_of: Callable[[Any], int]) -> None:
        size = batch_size(batch) or 1
        self._least = min(size, least)
        self.first = bytes_of(next(split(batch, self._least), batch))
        self._slope = 0
        if size > self._least:
            self._slope = bytes_of(next(split(batch, self._least + 1))) - self.first
        self.bytes = self.first + (size - self._least) * self._slope

    def rows_within(self, budget: int) -> int:
        """Return the largest number of samples whose graph fits into a budget that the whole batch exceeds."""
        return self._least + (budget - self.first) // self._slope


class SavedBytes:
    """Bytes of the storages that autograd saves; `elsewhere` and the batches counted over are held anyway.

    Storages are told apart by weak references: an address may be used again as soon as a storage is freed.
    """

    def __init__(self, elsewhere: Iterable[Tensor]) -> None:
        self._elsewhere = {_reference(tensor) for tensor in elsewhere}
        self._sizes: dict[StorageWeakRef, int] = {}  # bytes of each

    @property
    def total(self) -> int:
        """The bytes so far, each storage once, whether it is held still or not."""
        return sum(size for storage, size in self._sizes.items() if storage not in self._elsewhere)

    def counting(self, batch: Any) -> saved_tensors_hooks:
        """Return a context that counts the graphs built inside."""
        self._elsewhere.update(_reference(tensor) for tensor in tensors_of(batch))
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        self._sizes[_reference(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would hold the node that holds it


def _reference(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _batch_normalized(model: nn.Module) -> str:
    """Return the name and class of the first layer whose output depends on the whole batch, or ''."""
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and (module.training or module.running_mean is None):
            return f"{name or 'the model'} ({type(module).__name__})"
    return ""
