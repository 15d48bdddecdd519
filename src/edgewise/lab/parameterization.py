"""SP, μP and simple-μP: the scale of a layer's weights, outputs and learning rate (Kalra & Barkeshli 2024, app.).

| | weights of a hidden layer | hidden output × | weights of the last | last output × |
|---|---|---|---|---|
| SP | N(0, 2/fan_in) | 1 | N(0, 1/fan_in) | 1 |
| μP, simple-μP | N(0, 2/fan_out) | √(fan_out/fan_in) | N(0, 1/fan_in) | √(1/fan_in) |

Normal distributions are truncated at two deviations and keep their variance; biases start at zero. With Adam, μP
scales the learning rates of input, hidden and last layers by 1/√fan_out, 1/√fan_in and 1/fan_in; simple-μP does not.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

Role = Literal["input", "hidden", "last"]

_TRUNCATED_DEVIATION = 0.87962566103423978  # of a standard normal truncated to [−2, 2]


class ScaledLinear(nn.Linear):
    """multiplier · (Wx + b), initialised by a parameterization; x: (..., fan_in) → (..., fan_out)."""

    def __init__(self, fan_in: int, fan_out: int, *, role: Role, parameterization: str) -> None:
        super().__init__(fan_in, fan_out)
        last = role == "last"
        variance = 1 / fan_in if last else 2 / (fan_in if parameterization == "sp" else fan_out)
        truncated_normal_(self.weight, math.sqrt(variance))
        nn.init.zeros_(self.bias)
        self.multiplier = 1.0
        if parameterization != "sp":
            self.multiplier = math.sqrt((1 if last else fan_out) / fan_in)
        factors = {"input": fan_out**-0.5, "hidden": fan_in**-0.5, "last": fan_in**-1.0}
        self.adam_rate_factor = factors[role] if parameterization == "mup" else 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Return the scaled output."""
        if self.multiplier == 1.0:
            return super().forward(input)
        # Scaling the weights is the same function for fewer operations than scaling a batch of outputs.
        return nn.functional.linear(input, self.multiplier * self.weight, self.multiplier * self.bias)


class ScaledEmbedding(nn.Embedding):
    """Rows of variance 2, whatever the width: an embedding's one-hot input is not summed over (paper, app.)."""

    def __init__(self, num_embeddings: int, width: int, *, parameterization: str) -> None:
        super().__init__(num_embeddings, width)
        truncated_normal_(self.weight, math.sqrt(2))
        self.adam_rate_factor = width**-0.5 if parameterization == "mup" else 1.0


def truncated_normal_(tensor: Tensor, deviation: float) -> None:
    """Fill with a normal distribution truncated at two deviations, of the given deviation after truncation."""
    scale = deviation / _TRUNCATED_DEVIATION
    nn.init.trunc_normal_(tensor, std=scale, a=-2 * scale, b=2 * scale)


def parameter_groups(model: nn.Module, *, lr: float, adaptive: bool) -> list[dict[str, Any]]:
    """Return the optimizer's groups: parameters of equal learning rate together, the unscaled ones first."""
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for module in model.modules():
        factor = 1.0
        if adaptive and isinstance(module, ScaledLinear | ScaledEmbedding):
            factor = module.adam_rate_factor
        by_factor.setdefault(factor, []).extend(module.parameters(recurse=False))
    return [
        {"params": parameters, "lr": lr * factor} for factor, parameters in by_factor.items() if parameters
    ]


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return (length, width): sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
