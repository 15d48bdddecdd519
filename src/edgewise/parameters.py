"""A model's parameters as one flat vector and back, and their selection by name."""

import fnmatch
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from edgewise.arguments import UnknownNameError, name_patterns
from edgewise.ranks import local, reshard, unwrapped


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

    Example:
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
    return selected


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


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return Σᵢ ⟨aᵢ, bᵢ⟩ over two lists of tensors, of sharded ones this rank's part, accumulated in float64.

    >>> inner([torch.ones(3)], [torch.full((3,), 2.0)])
    6.0
    """
    pairs = ((local(x).double(), local(y).double()) for x, y in zip(a, b, strict=True))
    sums = [torch.sum(x * y) for x, y in pairs]  # all under way before the first is waited for
    return math.fsum(map(float, sums))
