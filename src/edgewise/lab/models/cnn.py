"""CNN-d-n: a small convolutional network with d layers of n channels and BatchNorm.

Shapes: B batch, C channels, H height, W width. Each layer is a 3 × 3 convolution, BatchNorm and ReLU. The first keeps
the resolution; each later one halves it as long as 2 × 2 positions remain. In training BatchNorm is over the batch, and
moves its running statistics, by which the network is evaluated. SP only: BatchNorm undoes the scale of a layer.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.lab.models.parameterization import ScaledLinear, scales, truncated_normal_


class CNN(nn.Module):
    """(B, C·H·W) → (B, num_classes)."""

    def __init__(
        self, *, image_shape: tuple[int, int, int], num_classes: int, depth: int, width: int
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels, *sides = image_shape
        shorter = min(sides)
        layers: list[nn.Module] = []
        for i in range(depth):
            stride = 2 if i > 0 and shorter >= 4 else 1
            layers.append(_Layer(channels, width, stride))
            channels, shorter = width, -(-shorter // stride)
        self.layers = nn.Sequential(*layers)
        self.head = ScaledLinear(width, num_classes, role="last", parameterization="sp")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        x_BCHW = self.layers(pixels.unflatten(-1, self.image_shape))
        return self.head(x_BCHW.mean((-2, -1)))


class _Layer(nn.Module):
    """Convolution, BatchNorm and ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        # No bias: BatchNorm would subtract it, and adaptive optimizers would step along the rounding of its gradient.
        self.conv = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        deviation = scales("sp", "hidden", fan_in=9 * channels_in, fan_out=9 * channels).deviation
        truncated_normal_(self.conv.weight, deviation)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x_BCHW)))
