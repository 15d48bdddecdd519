"""WRN-d-k: a wide residual network of depth d = 6n + 4 and widening factor k, with LayerNorm for BatchNorm.

Shapes: B batch, C channels, H height, W width. After Zagoruyko & Komodakis 2016; the LayerNorm is over the channels
of each position. Three stages of n blocks with 16k, 32k and 64k channels, the second and third at half the resolution
of the one before.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.lab.models.parameterization import ScaledConv, ScaledLinear

_INPUT_CHANNELS = 16


class WRN(nn.Module):
    """(B, C·H·W) → (B, num_classes)."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        depth: int,
        width: int,
        parameterization: str,
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        channels = _INPUT_CHANNELS
        self.conv = ScaledConv(image_shape[0], channels, 3, role="input", parameterization=parameterization)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for i in range((depth - 4) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                wider = _INPUT_CHANNELS * width * 2**stage
                blocks.append(_Block(channels, wider, stride, parameterization))
                channels = wider
        self.blocks = nn.Sequential(*blocks)
        self.norm = _ChannelNorm(channels)
        self.head = ScaledLinear(channels, num_classes, role="last", parameterization=parameterization)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        x_BCHW = self.blocks(self.conv(pixels.unflatten(-1, self.image_shape)))
        return self.head(F.relu(self.norm(x_BCHW)).mean((-2, -1)))


class _Block(nn.Module):
    """Two convolutions, each behind LayerNorm and ReLU, added to the stream, projected where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int, parameterization: str) -> None:
        super().__init__()

        def conv(channels_in: int, kernel: int, stride: int) -> ScaledConv:
            return ScaledConv(
                channels_in, channels, kernel, stride=stride, role="hidden", parameterization=parameterization
            )

        self.norm1, self.conv1 = _ChannelNorm(channels_in), conv(channels_in, 3, stride)
        self.norm2, self.conv2 = _ChannelNorm(channels), conv(channels, 3, 1)
        self.shortcut = conv(channels_in, 1, stride) if channels_in != channels or stride > 1 else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x_BCHW))
        # What is projected is activated first, as in the original: else the first block's input stays unnormalized.
        stream = x_BCHW if self.shortcut is None else self.shortcut(activated)
        return stream + self.conv2(F.relu(self.norm2(self.conv1(activated))))


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)
