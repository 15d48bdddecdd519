"""Small networks of the kinds that people train, in plain torch: language models, images, adapters, regression."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, CONTEXT = 256, 16  # bytes of text
_HEAD_WIDTH = 16
_NUM_CLASSES = 10
_RANK = 4


class Attention(nn.Module):
    """Multi-head attention, causal for text."""

    def __init__(self, width: int, *, causal: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.causal, self.dropout = causal, dropout
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTN: Tensor) -> Tensor:
        heads = self.query_key_value(x_BTN).unflatten(-1, (3, -1, _HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*heads, is_causal=self.causal, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers and GELU, as in GPT-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTN: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTN)))


class SwiGLU(nn.Module):
    """A gated MLP without biases, as in Llama."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x_BTN: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTN)) * self.up(x_BTN))


class Block(nn.Module):
    """Attention and MLP, each behind its norm and added to the stream."""

    def __init__(
        self, width: int, norm: type[nn.Module], mlp: type[nn.Module], *, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = norm(width), norm(width)
        self.attention = Attention(width, causal=causal, dropout=dropout)
        self.mlp = mlp(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTN: Tensor) -> Tensor:
        x_BTN = x_BTN + self.dropout(self.attention(self.attention_norm(x_BTN)))
        return x_BTN + self.dropout(self.mlp(self.mlp_norm(x_BTN)))


class LanguageModel(nn.Module):
    """A decoder with learned positions and tied embeddings: (B, T) bytes → (B, T, V) logits."""

    def __init__(
        self,
        *,
        width: int = 64,
        depth: int = 2,
        norm: type[nn.Module] = nn.LayerNorm,
        mlp: type[nn.Module] = MLP,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(
            *(Block(width, norm, mlp, causal=True, dropout=dropout) for _ in range(depth))
        )
        self.norm = norm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for (
            name,
            parameter,
        ) in self.named_parameters():  # as GPT-2: 0.02, less for what is added to the stream
            if parameter.ndim == 2:
                added = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if added else 0.02)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(self.embedding(tokens) + positions)))


class Recurrent(nn.Module):
    """Embedding, GRU and a linear layer, as torch initialises them."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width // 2)
        self.gru = nn.GRU(width // 2, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(tokens))[0])


class ViT(nn.Module):
    """Patches of 2 × 2 pixels, class token, two blocks, and a head that is zero at the start."""

    def __init__(self, width: int = 48, dropout: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(
            *(Block(width, nn.LayerNorm, MLP, causal=False, dropout=dropout) for _ in range(2))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, _NUM_CLASSES)
        nn.init.zeros_(self.head.weight)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels.unflatten(-1, (1, 8, 8))).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1)
        return self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])


class ResNet(nn.Module):
    """A convolution, two residual blocks with a norm of choice, mean pooling and a linear layer."""

    def __init__(self, norm: str, channels: int = 16) -> None:
        super().__init__()

        def convolution() -> nn.Sequential:
            made = nn.GroupNorm(4, channels) if norm == "group" else nn.BatchNorm2d(channels)
            return nn.Sequential(made, nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False))

        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(convolution(), convolution()) for _ in range(2))
        self.head = nn.Linear(channels, _NUM_CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        stream = self.stem(pixels.unflatten(-1, (1, 8, 8)))
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(stream.mean((-2, -1)))


class Autoencoder(nn.Module):
    """Convolutions down to 32 numbers and back: noisy images of 8 × 8 → clean ones."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(8 * channels, 32),
            nn.LayerNorm(32),
            nn.Linear(32, 8 * channels),
            nn.GELU(),
            nn.Unflatten(1, (2 * channels, 2, 2)),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels.unflatten(-1, (1, 8, 8))).flatten(1)


class Regressor(nn.Module):
    """Four layers of tanh: 8 numbers → 1."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        widths = (8, width, width, width)
        layers = [nn.Sequential(nn.Linear(m, n), nn.Tanh()) for m, n in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class LowRank(nn.Module):
    """A frozen linear layer and an adapter of rank 4, which is zero at the start: Wx + BAx."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, _RANK, bias=False)
        self.up = nn.Linear(_RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.up(self.down(x))


def with_adapters(model: LanguageModel) -> LanguageModel:
    """Return the model frozen, with an adapter at each linear layer of its blocks."""
    model.requires_grad_(False)
    for block in model.blocks:
        for parent, name in (
            (block.attention, "query_key_value"),
            (block.attention, "out"),
            (block.mlp, "up"),
            (block.mlp, "down"),
        ):
            setattr(parent, name, LowRank(getattr(parent, name)))
    return model
