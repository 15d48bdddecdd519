"""Byte-pair tokens: a vocabulary trained on a text, and the text as numbers."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor


def train_tokenizer(text: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of so many tokens: every text has a code, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def samples(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> Tensor:
    """Return (N, context + 1) tokens; neighbours share one, so that every token is predicted once."""
    encoded = tokenizer.encode_batch_fast(list(texts))
    tokens = torch.cat([torch.tensor(text.ids, dtype=torch.int16) for text in encoded])
    return tokens.unfold(0, context + 1, context)
