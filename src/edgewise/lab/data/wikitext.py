"""WikiText-2 and WikiText-103, in byte-pair tokens."""

import uuid

from tokenizers import Tokenizer

from edgewise.lab.data import sources
from edgewise.lab.data.byte_pairs import samples, train_tokenizer
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
        tokenizer = train_tokenizer(train, sources.VOCABULARY)
        partial = path.with_name(f".{uuid.uuid4().hex}")  # its own: others may train it at the same time
        tokenizer.save(str(partial))
        partial.replace(path)
    train_samples, test_samples = (samples(tokenizer, text, context) for text in (train, test))
    return Dataset.of_tokens(train_samples, test_samples, vocabulary=sources.VOCABULARY)
