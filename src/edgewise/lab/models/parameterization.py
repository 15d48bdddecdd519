"""SP, NTP, μP and simple-μP: the scale of a layer's weights, outputs and learning rate.

| | weights of a hidden layer | hidden output × | weights of the last | last output × |
|---|---|---|---|---|
| SP | N(0, 2/fan_in) | 1 | N(0, 1/fan_in) | 1 |
| NTP | N(0, 2) | √(1/fan_in) | N(0, 1) | √(1/fan_in) |
| μP, simple-μP | N(0, 2/fan_out) | √(fan_out/fan_in) | N(0, 1/fan_in) | √(1/fan_in) |

Normal distributions are truncated at two deviations and keep their variance; biases start at zero (Kalra & Barkeshli
2024, app.). With Adam, μP scales the learning rates of input, hidden and last layers by 1/√fan_out,
1/√(fan_in·fan_out) and 1/√fan_in; simple-μP does not. So an update of any layer changes its output by as much at any
width (Yang et al. 2022, in these multipliers). The paper's list gives the hidden and the last layer each other's
factor: with those, updates of hidden layers grow as √width, as the tests of this file show.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Role = Literal["input", "hidden", "last"]

_TRUNCATED_DEVIATION = 0.87962566103423978  # of a standard normal truncated to [−2, 2]


class Scales(NamedTuple):
    """What a parameterization decides about a layer."""

    deviation: float
    """Of the initial weights."""
    multiplier: float
    """Of the layer's output."""
    adam_rate_factor: float
    """Of the learning rate of Adam and its kin."""


def scales(parameterization: str, role: Role, *, fan_in: int, fan_out: int) -> Scales:
    """Return a layer's scales; a convolution's fans count the entries of its kernel."""
    last = role == "last"
    gain = 1 if last else 2
    match parameterization:
        case "sp":
            return Scales(math.sqrt(gain / fan_in), 1.0, 1.0)
        case "ntp":
            return Scales(math.sqrt(gain), math.sqrt(1 / fan_in), 1.0)
        case "mup" | "simple-mup":
            factors = {"input": fan_out**-0.5, "hidden": (fan_in * fan_out) ** -0.5, "last": fan_in**-0.5}
            return Scales(
                deviation=math.sqrt(gain / (fan_in if last else fan_out)),
                multiplier=math.sqrt((1 if last else fan_out) / fan_in),
                adam_rate_factor=factors[role] if parameterization == "mup" else 1.0,
            )
        case name:
            raise AssertionError(name)


class ScaledLinear(nn.Linear):
    """multiplier · (Wx + b), initialised by a parameterization; x: (..., fan_in) → (..., fan_out)."""

    def __init__(self, fan_in: int, fan_out: int, *, role: Role, parameterization: str) -> None:
        super().__init__(fan_in, fan_out)
        self.scales = scales(parameterization, role, fan_in=fan_in, fan_out=fan_out)
        truncated_normal_(self.weight, self.scales.deviation)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the scaled output."""
        return nn.functional.linear(input, *_scaled(self))


class ScaledConv(nn.Conv2d):
    """multiplier · (W∗x + b), a k × k convolution; x: (B, C, H, W) → (B, channels, H/stride, W/stride)."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        role: Role,
        parameterization: str,
    ) -> None:
        super().__init__(channels_in, channels, kernel, stride=stride, padding=kernel // 2)
        area = kernel**2
        self.scales = scales(parameterization, role, fan_in=area * channels_in, fan_out=area * channels)
        truncated_normal_(self.weight, self.scales.deviation)
        assert self.bias is not None  # as made
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the scaled output."""
        return self._conv_forward(input, *_scaled(self))


def _scaled(layer: "ScaledLinear | ScaledConv") -> tuple[Tensor, Tensor]:
    """Return weights and bias times the multiplier: the scaled output for fewer operations than scaling a batch."""
    multiplier, bias = layer.scales.multiplier, layer.bias
    assert bias is not None  # as made
    return (layer.weight, bias) if multiplier == 1.0 else (multiplier * layer.weight, multiplier * bias)


class ScaledEmbedding(nn.Embedding):
    """Rows of variance 2, whatever the width and the parameterization: its one-hot input is not summed over.

    So Adam needs no factor here, in μP neither; the updates of SGD shrink as 1/width in μP.
    """

    def __init__(self, num_embeddings: int, width: int) -> None:
        super().__init__(num_embeddings, width)
        truncated_normal_(self.weight, math.sqrt(2))


def truncated_normal_(tensor: Tensor, deviation: float) -> None:
    """Fill with a normal distribution truncated at two deviations, of the given deviation after truncation."""
    scale = deviation / _TRUNCATED_DEVIATION
    nn.init.trunc_normal_(tensor, std=scale, a=-2 * scale, b=2 * scale)


def parameter_groups(model: nn.Module, *, lr: float, adaptive: bool) -> list[dict[str, Any]]:
    """Return the optimizer's groups: parameters of equal learning rate together, the unscaled ones first."""
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for module in model.modules():
        factor = 1.0
        if adaptive and isinstance(module, ScaledLinear | ScaledConv):
            factor = module.scales.adam_rate_factor
        by_factor.setdefault(factor, []).extend(module.parameters(recurse=False))
    return [
        {"params": parameters, "lr": lr * factor} for factor, parameters in by_factor.items() if parameters
    ]


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """Return (length, width): sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
