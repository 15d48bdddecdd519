"""The source text of the Python standard library in byte-pair tokens: a larger vocabulary, still without a download.

Every process that loads it trains the vocabulary on the training text, in seconds, and keeps it in memory: the same
Python and the same `tokenizers` give the same tokens.
"""

from edgewise.lab.data.byte_pairs import samples, train_tokenizer
from edgewise.lab.data.dataset import Dataset
from edgewise.lab.data.stdlib_text import source_files, text_dataset

_VOCABULARY = 1024


def load_stdlib_bpe(*, context: int) -> Dataset:
    """Return the text cut into samples of `context` tokens, each to predict its successor.

    Each file is on the side, training or test, that it is on in `load_stdlib_text`.
    """
    train, test = ([file.read_text("utf-8") for file in files] for files in source_files())
    tokenizer = train_tokenizer(train, _VOCABULARY)
    train_samples, test_samples = (samples(tokenizer, side, context) for side in (train, test))
    return text_dataset(train_samples, test_samples, vocabulary=_VOCABULARY)
