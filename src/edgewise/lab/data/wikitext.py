"""WikiText-2 and WikiText-103, in byte-pair tokens."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from edgewise.lab.data import sources
from edgewise.lab.data.dataset import Dataset


def load_wikitext(name: str, *, context: int) -> Dataset:
    """Return the text cut into samples of `context` tokens, each to predict its successor.

    The tokenizer is trained on the training text when it is first needed, and kept beside it.

    Raises:
        DataError: the data set is not prepared.
    """
    train, test = (sources.read(name, split)["text"] for split in ("train", "test"))
    path = sources.root() / name / f"tokenizer-{sources.VOCABULARY}.json"
    if path.exists():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        tokenizer = train_tokenizer(train)
        partial = path.with_name(f".{path.name}")
        tokenizer.save(str(partial))
        partial.replace(path)
    train_samples, test_samples = (_samples(tokenizer, text, context) for text in (train, test))
    return Dataset(
        train_inputs=train_samples[:, :-1],
        train_targets=train_samples[:, 1:],
        test_inputs=test_samples[:, :-1],
        test_targets=test_samples[:, 1:],
        num_classes=sources.VOCABULARY,
    )


def train_tokenizer(text: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of so many tokens: every text has a code, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sources.VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _samples(tokenizer: Tokenizer, lines: list[str], context: int) -> Tensor:
    """Return (N, context + 1) tokens; neighbours share one, so that every token is predicted once."""
    encoded = tokenizer.encode_batch_fast(list(lines))
    tokens = torch.cat([torch.tensor(line.ids, dtype=torch.int16) for line in encoded])
    return tokens.unfold(0, context + 1, context)
