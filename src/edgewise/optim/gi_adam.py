"""GI-Adam: Adam whose second moment starts at the first gradient squared."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW

from edgewise.preconditioner import decayed_gradient, diagonal


class _GradientInitialized(Adam):
    """Fills the state that torch's Adam initialises to zero; everything else is torch's."""

    def _init_group(self, group: dict[str, Any], *lists: Any) -> bool:
        # torch creates missing state here, after the closure and before its kernels run. A pre-hook would be
        # too early (the closure computes the gradients); an overridden step() would run step hooks twice.
        fresh = [p for p in group["params"] if p.grad is not None and not self.state[p]]
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        # A GradScaler leaves these two for the fused kernels, which unscale, and skip the step, themselves.
        scale: Tensor | None = getattr(self, "grad_scale", None)
        skipped: Tensor | None = getattr(self, "found_inf", None)
        with torch.no_grad():
            for p in fresh:
                gradient = p.grad if scale is None else p.grad / scale.to(p.grad)
                gradient = _as_real(decayed_gradient(group, p, gradient))
                _as_real(self.state[p]["exp_avg_sq"]).copy_(gradient.square())
                if skipped is not None and skipped.item():
                    del self.state[p]  # the first gradient is still to come
        return has_complex


class GIAdam(_GradientInitialized):
    """Adam with v₀ = g₀² (Kalra & Barkeshli 2024): an automatic warmup by √(1 − β₂ᵗ).

        v₀ = g₀²,  vₜ = β₂vₜ₋₁ + (1 − β₂)gₜ²,  θₜ = θₜ₋₁ − η·m̂ₜ / (√(vₜ/(1 − β₂ᵗ)) + ε)

    With v₀ = g₀², v_t estimates E[g²] without bias from the start, so the bias correction that is kept acts as
    a learning rate η√(1 − β₂ᵗ): the first step is √(1 − β₂) of Adam's (0.032 at β₂ = 0.999), and so is the
    preconditioned sharpness at initialization. g₀ is the first gradient a parameter receives, coupled weight
    decay included.

    Same signature, kernels (for-loop, foreach, fused, capturable) and `state_dict` as `torch.optim.Adam`; see
    there for the arguments and the errors raised.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = GIAdam([p], lr=1.0, betas=(0.9, 0.99))
        >>> p.grad = torch.ones(1)
        >>> optimizer.step()
        >>> p.data  # -√(1 - 0.99)
        tensor([-0.1000])

    Reference: arXiv 2406.09405, section 6.
    """


class GIAdamW(_GradientInitialized, AdamW):
    """AdamW with v₀ = g₀²: see `GIAdam`; weight decay is decoupled as in `torch.optim.AdamW`.

    Same signature, kernels and `state_dict` as `torch.optim.AdamW`.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = GIAdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()

    Reference: arXiv 2406.09405, section 6.
    """


@diagonal.register(_GradientInitialized)
def _(
    optimizer: _GradientInitialized,
    group: Mapping[str, Any],
    state: Mapping[str, Any],
    parameter: Tensor,
    gradient: Tensor,
) -> Tensor:
    """Adam's P, with v₀ = g² where the state does not exist yet."""
    if not state:
        state = {"exp_avg_sq": decayed_gradient(group, parameter, gradient).square()}
    return diagonal.dispatch(Adam)(optimizer, group, state, parameter, gradient)


def _as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as pairs of reals: torch's Adam squares the parts apart."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
