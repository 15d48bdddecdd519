"""What a batch is: anything that holds tensors, one row per sample; and a collection of them, read again and again.

A batch is a tensor or a nest of tuples, lists, named tuples, mappings (also classes that only behave like a dict, as
those of Hugging Face), dataclasses, and what has been registered with torch's pytree. Its size is the first
dimension of its first tensor that has one.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from edgewise.arguments import described
from edgewise.errors import LossError
from edgewise.isolation.random_states import RandomStates
from edgewise.loss.micro_batches import MicroBatches
from edgewise.ranks import Ranks
from edgewise.torch_internals import tree_flatten, tree_leaves

_END = object()
_NO_COLLECTIONS = (
    Tensor,
    Mapping,
    nn.Module,
    np.ndarray,
    str,
    bytes,
)  # though some of them can be read one by one


class Batches:
    """A collection of batches that gives the same ones in each pass, with their shares of the samples.

    A list is held as it is. Anything else, such as a data loader, is read anew in each pass and never held. Batches
    are fetched from random states of their own, the same in each pass, and the sizes are compared with those
    of the first pass, which is made here. The shares of `MicroBatches` are those that they have.

    Args:
        batches: a list or tuple, or another re-iterable.
        ranks: that hold batches of their own, all of which make up the samples; collective.

    Raises:
        TypeError: `batches` can be read only once, or is a single batch.
        ValueError: there is no batch, a loader shuffles, one of several batches has no size, or ranks that need each
            other for a gradient have different numbers of batches.
        EdgewiseError: another rank raised one of these.
        LossError: a later pass gives other batches (raised by that pass).

    Examples:
        >>> [(share, batch.tolist()) for _, share, batch in Batches([torch.ones(3), torch.ones(1)]).weighted()]
        [(0.75, [1.0, 1.0, 1.0]), (0.25, [1.0])]
    """

    def __init__(self, batches: Iterable[Any], ranks: Ranks | None = None) -> None:
        ranks = ranks or Ranks()
        given = batches.shares if isinstance(batches, MicroBatches) else None
        with ranks.together():
            if given is None:
                _check_collection(batches)
            self._batches = batches
            self._generators = _generators_of(batches)
            self._start = RandomStates(self._generators)
            # None: the batch has no tensor with a row per sample
            self.sizes = [batch_size(_check_values(batch, i)) for i, batch in enumerate(self)]
            if given is None:
                _check_sizes(self.sizes, ranks.num)
        counts = ranks.gather(len(self))
        if ranks.sharded and len(set(counts)) > 1:
            raise ValueError(
                f"ranks have {', '.join(map(str, counts))} batches, but parameters are sharded over them, so that each "
                "gradient takes all ranks: pass the same number on each; sizes may differ."
            )
        # Each batch's share of the loss of all ranks.
        self.shares = (
            _shares_of_samples(self.sizes, counts, ranks)
            if given is None
            else [share / ranks.num for share in given]
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches) if isinstance(self._batches, list | tuple) else self._fetched()

    @property
    def doubt(self) -> str:
        """What may be wrong with the batches where a loss function cannot take one, '' if nothing is seen."""
        listed = self._batches if isinstance(self._batches, list) else []
        if len(listed) > 1 and all(isinstance(batch, Tensor) for batch in listed):
            return f"batches is a list of {len(listed)} tensors, each taken for a batch: if they are one, write [batch]"
        return ""

    def weighted(self) -> Iterator[tuple[int, float, Any]]:
        """Yield index, share of the samples, and batch; raise if they are not those of the first pass."""
        seen = 0
        for i, batch in enumerate(self):
            if i == len(self) or batch_size(batch) != self.sizes[i]:
                raise _differing(f"batch {i} is new or of another size")
            seen += 1
            yield i, self.shares[i], batch
        if seen != len(self):
            raise _differing(f"there were {len(self)} of them, now there are {seen}")

    def _fetched(self) -> Iterator[Any]:
        # A loader draws seeds, and augmentation draws more. What it draws is swapped in for each batch, not for the
        # pass: an abandoned pass then leaves nothing behind, and the loss never sees what the loader has drawn.
        states, iterator = self._start, None
        while True:
            outside = RandomStates(self._generators)
            try:
                states.restore()
                iterator = iter(self._batches) if iterator is None else iterator
                batch = next(iterator, _END)
                states = RandomStates(self._generators)
            finally:
                outside.restore()
            if batch is _END:
                return
            yield batch


def batch_size(batch: Any) -> int | None:
    """Return the first dimension of the first tensor that has one, or `None`.

    >>> batch_size({"id": "a", "x": (torch.tensor(1.0), torch.ones(3, 2))})
    3
    """
    return next((tensor.shape[0] for tensor in tensors_of(batch) if tensor.ndim > 0), None)


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
        return
    for child in _opened(batch)[0]:
        yield from tensors_of(child)


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch of the same structure and classes whose tensors went through `function`.

    >>> map_tensors(lambda tensor: 2 * tensor, {"x": torch.ones(2), "id": ["a", "b"]})
    {'x': tensor([2., 2.]), 'id': ['a', 'b']}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    children, rebuilt = _opened(batch)
    return rebuilt([map_tensors(function, child) for child in children]) if children else batch


def with_own_containers(batch: Any) -> Any:
    """Return a batch with the same tensors in containers of its own: a loss may take entries out.

    >>> batch = {"inputs": [1, 2]}
    >>> with_own_containers(batch)["inputs"].pop(), batch
    (2, {'inputs': [1, 2]})
    """
    return map_tensors(lambda tensor: tensor, batch)


def cast(batch: Any, dtype: torch.dtype) -> Any:
    """Return the batch with its floating-point tensors copied to `dtype`, off any graph they are part of.

    >>> cast((torch.ones(1, dtype=torch.float16), torch.tensor([1])), torch.float64)
    (tensor([1.], dtype=torch.float64), tensor([1]))
    """
    return map_tensors(
        lambda tensor: (
            tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)
            if tensor.is_floating_point()
            else tensor
        ),
        batch,
    )


def split(batch: Any, rows: int) -> Iterator[Any]:
    """Yield micro-batches of at most `rows` samples.

    Tensors whose first dimension is the batch's size are cut; all else is shared by the micro-batches.

    >>> [micro["x"].tolist() for micro in split({"x": torch.arange(3), "scale": torch.ones(2)}, 2)]
    [[0, 1], [2]]
    """
    size = batch_size(batch) or 0
    for start in range(0, size, rows):
        yield rows_of(batch, slice(start, min(start + rows, size)))


def rows_of(batch: Any, chosen: slice) -> Any:
    """Return a batch of some of the samples; tensors whose first dimension is not the batch's size are as they were.

    >>> rows_of((torch.arange(5), torch.ones(2)), slice(0, None, 2))
    (tensor([0, 2, 4]), tensor([1., 1.]))
    """
    size = batch_size(batch)
    return map_tensors(lambda t: t[chosen] if t.ndim > 0 and t.shape[0] == size else t, batch)


def share_of(piece: Any, batch: Any) -> float:
    """Return the share of a batch's samples that a micro-batch holds."""
    return (batch_size(piece) or 1) / (batch_size(batch) or 1)


def _opened(batch: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Return a container's children and the function that puts others in their place; no children for a leaf."""
    if isinstance(batch, Mapping):  # before dataclasses: Hugging Face's outputs are both
        keys = list(batch)
        return list(batch.values()), lambda values: _with_items(batch, dict(zip(keys, values, strict=True)))
    if isinstance(batch, list | tuple):
        make = getattr(type(batch), "_make", type(batch))  # named tuples take their fields one by one
        return list(batch), make
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        children = [getattr(batch, name) for name in names]
        return children, lambda values: _with_fields(batch, dict(zip(names, values, strict=True)))
    leaves, structure = tree_flatten(batch)
    if structure.is_leaf():
        return [], lambda values: batch
    return leaves, structure.unflatten


def _with_items(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the same class with other values; attributes besides the items are kept."""
    try:
        copied: Any = copy.copy(mapping)
        for key, value in items.items():
            copied[key] = value
    except TypeError:  # it cannot be written to
        make: Any = type(mapping)
        return make(items)
    return copied


def _with_fields(instance: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a dataclass with other fields, without running its constructor."""
    copied = copy.copy(instance)
    for name, value in values.items():
        object.__setattr__(copied, name, value)  # a frozen one refuses its own
    return copied


def unlike_a_batch(batch: Any) -> str:
    """Say why a loss function may not take something for a batch, '' if nothing speaks against it.

    >>> unlike_a_batch([(torch.ones(1), torch.ones(1))])
    'a list of 1 tuple: pass the batch itself; several go into batches='
    """
    if isinstance(batch, list) and batch and isinstance(batch[0], tuple | list | Mapping | None):
        kind = type(batch[0]).__name__ + ("s" if len(batch) > 1 else "")
        return f"a list of {len(batch)} {kind}: pass the batch itself; several go into batches="
    if isinstance(batch, str | bytes):
        return f"a {type(batch).__name__}: pass the tensors that the loss is computed of"
    if any(isinstance(leaf, np.ndarray) for leaf in tree_leaves(batch)):
        return "which holds NumPy arrays: make them tensors, such as by torch.as_tensor"
    return ""


def _check_collection(batches: object) -> None:
    if isinstance(batches, _NO_COLLECTIONS) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be a list of batches, got one {type(batches).__name__}: write [batch] for a single one."
        )
    if isinstance(batches, tuple) and batches and all(isinstance(element, Tensor) for element in batches):
        raise TypeError(
            f"batches must be a list of batches, got one tuple of {len(batches)} tensors: write [batch] for a single "
            "one; tensors that are batches each come in a list."
        )
    listed = batches if isinstance(batches, list | tuple) else []
    for element in listed:
        if _kind(element) != _kind(listed[0]):
            raise TypeError(
                f"batches must be a list of batches, got a {type(listed).__name__} of {described(listed[0])} and "
                f"{described(element)}, which are the parts of one: write [batch] for a single one."
            )
    if isinstance(batches, Iterator):
        raise TypeError(
            "batches can be read only once (it is an iterator): pass list(batches), or the data loader itself."
        )
    samplers = _samplers_of(batches) if isinstance(batches, DataLoader) else []
    for sampler in samplers:
        if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise ValueError(
                f"batches is a data loader that shuffles ({type(sampler).__name__}), a measurement needs the same "
                "batches for each product: build it with shuffle=False, or pass a few batches as a list, "
                "such as [next(iter(loader))]."
            )


def _kind(element: object) -> object:
    """What batches of one loss have in common; the parts of one batch have not."""
    return (element.ndim, element.is_floating_point()) if isinstance(element, Tensor) else "no tensor"


def _check_values(batch: Any, index: int) -> Any:
    if any(tensor.is_meta for tensor in tensors_of(batch)):
        raise ValueError(
            f"batch {index} must hold values, but it has a tensor on the meta device: load the data."
        )
    return batch


def _check_sizes(sizes: list[int | None], num_ranks: int) -> None:
    if not sizes:
        raise ValueError("batches is empty: pass at least one batch.")
    if None in sizes and (len(sizes) > 1 or num_ranks > 1):
        raise ValueError(
            f"cannot tell the size of batch {sizes.index(None)}: it holds no tensor with a batch dimension. Pass "
            "batches whose first tensor has one row per sample; in one process, a single batch may be of any kind."
        )


def _shares_of_samples(sizes: list[int | None], counts: list[int], ranks: Ranks) -> list[float]:
    if sum(counts) == 1:  # a single batch is all there is, whatever its size
        return [1.0]
    samples = sum(ranks.gather(sum(size or 0 for size in sizes)))
    if samples == 0:
        raise ValueError("batches hold no sample: pass at least one row.")
    return [(size or 0) / samples for size in sizes]


def _samplers_of(loader: DataLoader[Any]) -> list[Any]:
    inner = [loader.batch_sampler.sampler] if isinstance(loader.batch_sampler, BatchSampler) else []
    return [loader.sampler, *inner]


def _generators_of(batches: object) -> list[torch.Generator]:
    """Return the generators that a data loader draws from besides torch's own."""
    return [batches.generator] if isinstance(batches, DataLoader) and batches.generator is not None else []


def _differing(what: str) -> LossError:
    return LossError(
        f"batches differ between passes ({what}), a measurement needs the same ones for each product: "
        "do not shuffle (shuffle=False), or pass list(...) of a few batches."
    )
