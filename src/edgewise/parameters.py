"""A model's parameters as one flat vector and back, and their selection by name."""

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import UnknownNameError, name_patterns
from edgewise.ranks import Ranks, local, reshard, unwrapped


def select_parameters(
    model: nn.Module, patterns: str | Iterable[str] | None = None
) -> dict[str, nn.Parameter]:
    """Return the trainable parameters whose names match, in the model's order, tied ones once.

    Names are those inside `DistributedDataParallel`. Modules of FSDP2 are made to hold their shards.

    Args:
        model: any module.
        patterns: shell-style patterns on the names; `None` selects all.

    Returns:
        name → parameter, at least one.

    Raises:
        UnknownNameError: a pattern matches no parameter.
        ValueError: no selected parameter requires a gradient.
        TypeError: one of them is complex.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> list(select_parameters(model, "1.*"))
        ['1.weight', '1.bias']
    """
    reshard(model)
    named = dict(unwrapped(model).named_parameters())
    if patterns is not None:
        patterns = name_patterns("params", patterns) or []
        for pattern in patterns:
            if not fnmatch.filter(named, pattern):
                raise UnknownNameError(
                    f"params pattern {pattern!r} matches no parameter; the names are: {', '.join(named)}."
                )
        named = {n: p for n, p in named.items() if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)}
    selected = {n: p for n, p in named.items() if p.requires_grad}
    if not selected:
        raise ValueError(
            f"none of the {len(named)} selected parameters requires a gradient; "
            "set requires_grad=True on those to measure, or choose others with params=."
        )
    check_real(selected)
    return selected


def check_real(named: Mapping[str, Tensor]) -> None:
    """Raise `TypeError` if one of the parameters is complex: what is measured has real entries only."""
    for name, parameter in named.items():
        if parameter.is_complex():
            raise TypeError(
                f"parameter {name} of shape {tuple(parameter.shape)} is complex ({parameter.dtype}), edgewise measures "
                "real ones: hold its real and imaginary part as a real parameter with a last dimension of 2, and use "
                "torch.view_as_complex of it in forward."
            )


def check_real_groups(optimizer: Optimizer) -> None:
    """Raise `TypeError` if a parameter that the optimizer trains is complex, as `check_real` does."""
    for i, group in enumerate(optimizer.param_groups):
        check_real({f"{j} of group {i}": parameter for j, parameter in enumerate(group["params"])})


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Return the entries of all tensors, of sharded ones this rank's, as one vector of shape (n,), in order.

    >>> flatten([torch.ones(2, 2), torch.zeros(1)])
    tensor([1., 1., 1., 1., 0.])
    """
    return torch.cat([local(tensor).reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of `vector`, shape (n,), with the shapes of the tensors in `like`; undoes `flatten`.

    Raises:
        ValueError: the vector's length is not the total number of entries.
    """
    like = [local(tensor) for tensor in like]
    sizes = [tensor.numel() for tensor in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"expected a vector of shape ({sum(sizes)},), got {tuple(vector.shape)}.")
    return [part.view(tensor.shape) for part, tensor in zip(vector.split(sizes), like, strict=True)]


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor without gaps; the gradient of an embedding may hold the rows in use only."""
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


class FlatSum:
    """Σ share · tensors over several lists, shape (n,), in one piece of memory; `like` has all shapes, in order.

    What is added may go at once: of one list, no second copy as large as the parameters is ever needed.

    >>> total = FlatSum([torch.ones(2), torch.ones(1)])
    >>> for share in (0.5, 2.0):
    ...     total.add(share, 0, torch.ones(2))
    >>> total.vector()
    tensor([2.5000, 2.5000, 0.0000])
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._like = like
        self._vector: Tensor | None = None
        self._parts: list[Tensor] = []  # views of it, like the tensors
        self._is_there = [False] * len(like)

    def add(self, share: float, index: int, tensor: Tensor) -> None:
        """Add share · tensor to the part of that index."""
        if self._vector is None:
            self._allot()
        summand = dense(local(tensor.detach()))
        if self._is_there[index]:
            self._parts[index].add_(summand, alpha=share)
        else:
            torch.mul(summand, share, out=self._parts[index])
            self._is_there[index] = True

    def add_all(self, share: float, tensors: list[Tensor | None]) -> None:
        """Add share · tensors, which are taken from the list one by one; nothing, where one is missing."""
        for index in range(len(tensors)):
            tensor, tensors[index] = tensors[index], None
            if tensor is not None:
                self.add(share, index, tensor)

    def vector(self) -> Tensor:
        """Return the sum; where nothing was added, it is zero."""
        if self._vector is None:
            self._allot()
        for index, part in enumerate(self._parts):
            if not self._is_there[index]:
                part.zero_()
        assert self._vector is not None
        return self._vector

    def _allot(self) -> None:
        first = local(self._like[0])
        self._vector = first.new_empty(sum(local(tensor).numel() for tensor in self._like))
        self._parts = unflatten(self._vector, self._like)


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return Σᵢ ⟨aᵢ, bᵢ⟩ over two lists of tensors, of sharded ones this rank's part, accumulated in float64.

    >>> inner([torch.ones(3)], [torch.full((3,), 2.0)])
    6.0
    """
    pairs = ((dense(local(x)).double(), dense(local(y))) for x, y in zip(a, b, strict=True))
    sums = [torch.sum(x * y) for x, y in pairs]  # all under way before the first is waited for
    return math.fsum(map(float, sums))


def absolute_sums(tensors: Sequence[Tensor | None], ranks: Ranks) -> list[float]:
    """Return Σ|x| of each tensor, over all ranks that share it; 0 of a missing one, not finite where an entry is not.

    >>> absolute_sums([torch.full((3,), -2.0), None], Ranks())
    [6.0, 0.0]
    """
    sums = [
        torch.zeros((), dtype=torch.float64) if t is None else _absolute_sum(local(t.detach()))
        for t in tensors
    ]
    if not sums:
        return []
    total = torch.stack([each.cpu() for each in sums])
    return (ranks.sum(total) if ranks.sharded else total).tolist()


def _absolute_sum(tensor: Tensor) -> Tensor:
    entries = tensor.coalesce().values() if tensor.is_sparse else tensor
    wide = torch.promote_types(entries.dtype, torch.float32)
    return torch.linalg.vector_norm(entries, 1, dtype=wide).double()
