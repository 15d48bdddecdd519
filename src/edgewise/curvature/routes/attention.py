"""Attention with second derivatives: the plain computation in place of the fused kernels, in this thread alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgewise.isolation.threads import Override
from edgewise.torch_internals import attention_by_products

_FUSED: Any = functional.scaled_dot_product_attention
_ATTENTION = Override(functional, "scaled_dot_product_attention")


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let scaled_dot_product_attention be computed by products and a softmax, as with `sdpa_kernel(SDPBackend.MATH)`.

    That sets what all threads share. Here the function is replaced where torch's own layers look for it; what holds it
    already calls it through a mode.
    """
    with _ATTENTION.by(_plain), _PlainAttention():
        yield


class _PlainAttention(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is _FUSED:
            return _plain(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _plain(
    fused: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if query.is_nested:
        return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if (
        attn_mask is not None and attn_mask.dtype == torch.bool
    ):  # as the fused function does before it chooses
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    attended: Tensor = attention_by_products(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return attended
