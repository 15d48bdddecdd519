"""RI-Adam, the ablation of GI-Adam: a second moment that starts as large as the first gradient, but random."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from edgewise.optimizers.preconditioner import diagonal


class RIAdam(Adam):
    """Adam with v₀ = ‖g₀‖²·r², r a random unit vector (Kalra & Barkeshli 2024, app.).

    One vector for each parameter tensor, drawn by torch's generator at construction: all that v₀ knows of the
    gradient is its norm. Arguments and everything else are torch's.

    Examples:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = RIAdam([p], lr=1.0, betas=(0.9, 0.99))
        >>> p.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> v = optimizer.state[p]["exp_avg_sq"]  # 0.99·25·r² + 0.01·g²
        >>> round(v.sum().item(), 4)
        25.0
    """

    _directions: dict[Tensor, Tensor]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch's constructor does for each, and draw its directions."""
        super().add_param_group(param_group)
        if "_directions" not in vars(
            self
        ):  # torch's constructor adds groups before there is anything of ours
            self._directions = {}
        self._directions |= {p: _unit(torch.randn_like(p)) for p in self.param_groups[-1]["params"]}

    def second_moment_at_start(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Return v₀ for the first gradient."""
        return (gradient.norm() * self._directions[parameter]).square()

    def _init_group(self, group: dict[str, Any], parameters: list[Tensor], *lists: Any) -> bool:
        new = [p for p in group["params"] if p.grad is not None and not self.state.get(p)]
        has_complex: bool = super()._init_group(group, parameters, *lists)  # type: ignore[no-untyped-call]
        for p in new:
            self.state[p]["exp_avg_sq"].copy_(self.second_moment_at_start(p, p.grad))
        return has_complex


@diagonal.register(RIAdam)
def _(optimizer: RIAdam, group: Any, state: Any, parameter: Tensor, gradient: Tensor) -> Tensor:
    """Adam's P, with v₀ where there is none yet."""
    moment = state.get("exp_avg_sq", optimizer.second_moment_at_start(parameter, gradient))
    return diagonal.dispatch(Adam)(optimizer, group, {**state, "exp_avg_sq": moment}, parameter, gradient)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()
