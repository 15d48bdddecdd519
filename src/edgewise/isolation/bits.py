"""Tensors bit for bit: brought back where they differ, compared, exchanged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from edgewise.ranks import local
from edgewise.torch_internals import sparse_parts

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MOST_EXCHANGED = 2**18  # entries at a time: they stay in a cache


def write_back(tensor: Tensor, saved: Tensor) -> None:
    """Copy where the bits differ; through `.data`, as a graph that saved the tensor sees its bits again."""
    tensor, saved = local(tensor), local(saved)
    if tensor.is_meta or same_bits(tensor, saved):  # meta where it is torch's default device
        return
    if tensor.layout is torch.strided:
        tensor.data.copy_(saved)
    else:  # its `.data` would hold other entries than itself
        with torch.no_grad():
            tensor.copy_(saved)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree bit for bit: NaN equals itself, 0 differs from -0."""
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.layout is torch.sparse_coo and b.layout is torch.sparse_coo:  # momentum of a sparse gradient
        pairs = zip(sparse_parts(a), sparse_parts(b), strict=True)
        return a.is_coalesced() == b.is_coalesced() and all(same_bits(one, other) for one, other in pairs)
    integer = _INTEGER_OF_SIZE.get(a.element_size())
    if integer is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.detach().view(integer), b.view(integer))


@contextmanager
def exchanged(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Let two lists of tensors hold each other's contents for the time being; both come back bit for bit.

    Through `.data`, as a graph that saved a parameter sees its bits again; a few rows at a time are held twice.

    >>> a, b = torch.zeros(2), torch.ones(2)
    >>> with exchanged([a], [b]):
    ...     a.tolist()
    [1.0, 1.0]
    >>> a.tolist()
    [0.0, 0.0]
    """
    pairs = [(local(one), local(other)) for one, other in zip(tensors, others, strict=True)]
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs[::-1])  # backwards, as tied tensors were exchanged twice


def _exchange(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    torch.clear_autocast_cache()  # it holds casts of the parameters
    for one, other in pairs:
        rows = max(1, _MOST_EXCHANGED // max(1, one[:1].numel() if one.dim() else 1))
        parts = (torch.atleast_1d(tensor.data).split(rows) for tensor in (one, other))
        for part, other_part in zip(*parts, strict=True):
            kept = part.clone()
            part.copy_(other_part)
            other_part.copy_(kept)
