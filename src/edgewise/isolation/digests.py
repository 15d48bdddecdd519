"""What a tensor is: its bits as a digest, and its properties."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from edgewise.ranks import local
from edgewise.torch_internals import is_traceable_wrapper_subclass, sparse_parts


def digest(tensor: Tensor) -> str:
    """Hash the bits of a tensor of any dtype and layout."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in _dense_parts(local(tensor)):
        flat = part.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        values: Any = flat.view(torch.uint8).numpy()  # without a copy
        hashed.update(values)
    return hashed.hexdigest()


def _dense_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold the entries."""
    if is_lazy(tensor) or tensor.is_meta:
        return
    if is_traceable_wrapper_subclass(tensor):  # jagged, quantized, …
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _dense_parts(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from sparse_parts(tensor)
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        yield tensor


def properties_of(tensor: Tensor) -> dict[str, object]:
    """Return all but the entries: class, flags, shape and where it is."""
    properties: dict[str, object] = {
        "type": type(tensor).__name__,
        "requires_grad": tensor.requires_grad,
        "graph": None if tensor.grad_fn is None else type(tensor.grad_fn).__name__,
    }
    if not is_lazy(tensor):  # what has no shape yet raises
        properties |= {"shape": tuple(tensor.shape), "dtype": tensor.dtype, "device": tensor.device}
        if tensor.layout is torch.strided:
            properties["strides"] = tensor.stride()
    return properties
