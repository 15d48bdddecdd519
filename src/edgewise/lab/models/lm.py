"""LM-d-n: a GPT-2-style Transformer with d blocks of width n.

Shapes: B batch, T context, N width, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.lab.configs import HEAD_WIDTH
from edgewise.lab.models.parameterization import Role, ScaledEmbedding, ScaledLinear, sinusoidal_positions


class LM(nn.Module):
    """(B, T) tokens → (B, T, V) logits of the next token."""

    positions: Tensor

    def __init__(
        self,
        *,
        vocabulary: int,
        context: int,
        depth: int,
        width: int,
        parameterization: str,
        norm: str = "pre",
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = ScaledEmbedding(vocabulary, width)
        self.register_buffer("positions", sinusoidal_positions(context, width))
        self.blocks = nn.Sequential(*(_BLOCKS[norm](width, parameterization) for _ in range(depth)))
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.head = ScaledLinear(width, vocabulary, role="last", parameterization=parameterization)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        x_BTN = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x_BTN)))


class _PreNormBlock(nn.Module):
    """Attention and MLP, each behind its LayerNorm and added to the stream."""

    def __init__(self, width: int, parameterization: str) -> None:
        super().__init__()

        def linear(fan_in: int, fan_out: int, role: Role = "hidden") -> ScaledLinear:
            return ScaledLinear(fan_in, fan_out, role=role, parameterization=parameterization)

        self.num_heads = width // HEAD_WIDTH
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key, self.value = linear(width, width), linear(width, width), linear(width, width)
        self.attention_out = linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in, self.mlp_out = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x_BTN: Tensor) -> Tensor:
        x_BTN = x_BTN + self._attention(self.attention_norm(x_BTN))
        return x_BTN + self._mlp(self.mlp_norm(x_BTN))

    def _attention(self, x_BTN: Tensor) -> Tensor:
        query, key, value = (self._heads(layer(x_BTN)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_out(mixed.transpose(1, 2).flatten(2))

    def _mlp(self, x_BTN: Tensor) -> Tensor:
        return self.mlp_out(F.gelu(self.mlp_in(x_BTN)))

    def _heads(self, x_BTN: Tensor) -> Tensor:
        """(B, T, N) → (B, heads, T, N/heads)."""
        return x_BTN.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class _PostNormBlock(_PreNormBlock):
    """Attention and MLP, each added to the stream, which then passes a LayerNorm (Vaswani et al. 2017)."""

    def forward(self, x_BTN: Tensor) -> Tensor:
        x_BTN = self.attention_norm(x_BTN + self._attention(x_BTN))
        return self.mlp_norm(x_BTN + self._mlp(x_BTN))


_BLOCKS = {"pre": _PreNormBlock, "post": _PostNormBlock}
