"""Adam and GI-Adam in the paper's notation, one parameter, no kernels: what gi_adam.py must equal."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def adam(
    theta: Tensor,
    gradients: Iterable[Tensor],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled: bool = False,
    gradient_initialized: bool = True,
    scale: float = 1.0,
    per_entry: bool = False,
) -> Iterator[Tensor]:
    """Yield θ₁, θ₂, … from θ₀ and g₁, g₂, …; complex numbers are pairs of reals."""
    if theta.is_complex():
        options = {k: v for k, v in locals().items() if k not in ("theta", "gradients")}
        for real in adam(torch.view_as_real(theta), map(torch.view_as_real, gradients), **options):
            yield torch.view_as_complex(real)
        return
    beta1, beta2 = betas
    m, v, largest = torch.zeros_like(theta), torch.zeros_like(theta), torch.zeros_like(theta)
    for t, gradient in enumerate(gradients, start=1):
        g = -gradient if maximize else gradient
        if decoupled:
            theta = theta - lr * weight_decay * theta
        else:
            g = g + weight_decay * theta
        if gradient_initialized and (t == 1 or per_entry):
            v = torch.where(v == 0, scale * g**2, v)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        largest = torch.maximum(largest, v)
        m_hat = m / (1 - beta1**t)
        v_hat = (largest if amsgrad else v) / (1 - beta2**t)
        theta = theta - lr * m_hat / (v_hat.sqrt() + eps)
        yield theta
