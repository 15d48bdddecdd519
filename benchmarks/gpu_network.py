"""The GPT that a GPU trains: GPT-2's smallest but for its positions, 124 million parameters, and a tiny one."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from edgewise.lab.models.lm import LM


@dataclass(frozen=True)
class GPTSize:
    """A network and its batch."""

    vocabulary: int
    context: int
    depth: int
    width: int
    batch: int


GPT = GPTSize(vocabulary=50304, context=1024, depth=12, width=768, batch=4)
TINY_GPT = GPTSize(vocabulary=256, context=32, depth=2, width=64, batch=4)


def gpt(size: GPTSize) -> LM:
    """Return the network, initialized from torch's generator."""
    model = LM(
        vocabulary=size.vocabulary,
        context=size.context,
        depth=size.depth,
        width=size.width,
        parameterization="sp",
    )
    model.head.weight = model.embedding.weight  # as in GPT-2
    nn.init.normal_(model.embedding.weight, std=0.02)
    return model


def loss_fn(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token."""
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
