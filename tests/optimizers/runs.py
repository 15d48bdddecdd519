"""Runs of an optimizer over one parameter and given gradients."""

import math

import torch
from torch import nn

KERNELS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


def gradients(steps, shape=(4, 3), dtype=torch.float64, late=False):
    """Gradients that shrink and grow, so that amsgrad's maximum differs from v; with `late`, row i starts at i."""
    found = [torch.randn(shape, dtype=dtype) * (1 + 3 * math.cos(2 * i)) for i in range(steps)]
    for i, gradient in enumerate(found if late else []):
        gradient[i + 1 :] = 0
    return found


def apply(optimizer, parameter, gradient):
    """One step; return a copy of the parameter."""
    parameter.grad = None if gradient is None else gradient.clone()
    optimizer.step()
    return parameter.detach().clone()


def run(cls, start, steps, **options):
    """Where the steps lead, all of them."""
    p = nn.Parameter(start.clone())
    optimizer = cls([p], **options)
    return torch.stack([apply(optimizer, p, gradient) for gradient in steps])
