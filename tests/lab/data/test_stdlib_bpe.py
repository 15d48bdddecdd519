"""The standard library's source text in byte-pair tokens.

Oracle: the files themselves, which the tokens decode to; the same text in another process. Cannot see: the text of
another Python, and whether another release of `tokenizers` finds the same pairs.
"""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from edgewise.lab import data
from edgewise.lab.configs import DataConfig
from edgewise.lab.data import stdlib_bpe
from edgewise.lab.data.byte_pairs import train_tokenizer
from edgewise.lab.data.stdlib_text import source_files

CONTEXT = 8
CONFIG = DataConfig(name="stdlib-bpe", context=CONTEXT)


def digest(dataset):
    parts = (dataset.train_inputs, dataset.train_targets, dataset.test_inputs, dataset.test_targets)
    return hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def texts():
    """The text of both sides."""
    return tuple("".join(file.read_text("utf-8") for file in files) for files in source_files())


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([file.read_text("utf-8") for file in source_files()[0]], 1024)


def test_sizes_of_the_real_text():
    dataset = data.load(CONFIG)
    assert dataset.train_inputs.shape[1] == dataset.test_inputs.shape[1] == dataset.num_features == CONTEXT
    assert len(dataset.train_inputs) * CONTEXT > 1_000_000
    assert len(dataset.test_inputs) == 512
    assert dataset.num_classes == 1024
    assert dataset.train_inputs.dtype == torch.int16
    assert (int(dataset.train_inputs.min()), int(dataset.train_inputs.max())) == (0, 1023)


def test_the_tokens_are_the_training_files_one_after_the_other(texts, tokenizer):
    dataset = data.load(CONFIG)
    tokens = [*dataset.train_inputs.flatten().tolist(), int(dataset.train_targets[-1, -1])]
    decoded = tokenizer.decode(tokens)
    assert texts[0].startswith(decoded)
    assert len(texts[0]) - len(decoded) < CONTEXT * 50  # what does not fill a last sample
    assert len(tokens) < 0.5 * len(texts[0])  # pairs, not bytes
    assert torch.equal(dataset.train_inputs[1:, 0], dataset.train_targets[:-1, -1])


def test_test_samples_are_of_the_test_text(texts, tokenizer):
    dataset = data.load(CONFIG)
    for inputs, target in zip(dataset.test_inputs, dataset.test_targets[:, -1], strict=True):
        assert tokenizer.decode([*inputs.tolist(), int(target)]).strip("\ufffd") in texts[1]


def test_targets_are_the_inputs_shifted_by_one():
    dataset = data.load(CONFIG)
    assert torch.equal(dataset.train_inputs[:, 1:], dataset.train_targets[:, :-1])
    assert torch.equal(dataset.test_inputs[:, 1:], dataset.test_targets[:, :-1])


def test_the_vocabulary_knows_nothing_of_the_test_text(monkeypatch, tmp_path):
    files = ([tmp_path / "train.py"], [tmp_path / "test.py"])
    files[0][0].write_text("abc " * 500)
    monkeypatch.setattr(stdlib_bpe, "source_files", lambda: files)
    sizes = set()
    for test_text in ("xyz " * 500, "abc " * 500):
        files[1][0].write_text(test_text)
        sizes.add(stdlib_bpe.load_stdlib_bpe(context=CONTEXT).test_inputs.numel())
    assert len(sizes) == 2  # the one is cut into letters, the other into words
    assert min(sizes) < 0.5 * max(sizes)


@pytest.mark.slow
def test_another_process_with_other_threads_has_the_same_tokens():
    """So that runs of several workers, and of a sweep that goes on tomorrow, are of one data set."""
    program = "from lab.data import test_stdlib_bpe as t\nprint(t.digest(t.data.load(t.CONFIG)))"
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "5", "PYTHONPATH": paths}
    there = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == digest(data.load(CONFIG))
