"""The standard library's source text.

Oracle: the bytes of the files, joined again; a folder of small files. Cannot see: the text of another Python.
"""

import sysconfig

import pytest
import torch

from edgewise.lab import data
from edgewise.lab.configs import DataConfig
from edgewise.lab.data import stdlib_text
from edgewise.lab.data.stdlib_text import load_stdlib_text

CONTEXT = 8
CONFIG = DataConfig(name="stdlib-text", context=CONTEXT)


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of twenty files, whose text says which file it is from, and of folders to skip."""
    for i in range(20):
        (tmp_path / f"m{i:02}.py").write_bytes(f"# file {i:02} ".encode() * 30)
    for skipped in ("site-packages", "test", "lib2to3/tests"):
        (tmp_path / skipped).mkdir(parents=True)
        (tmp_path / skipped / "no.py").write_bytes(b"SKIPPED " * 50)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return tmp_path


def text_of(inputs, targets):
    """The text that windows which share one byte were cut from."""
    return bytes([*inputs.flatten().tolist(), int(targets[-1, -1])])


def test_sizes_of_the_real_text():
    dataset = data.load(CONFIG)
    assert dataset.train_inputs.shape[1] == dataset.test_inputs.shape[1] == dataset.num_features == CONTEXT
    assert len(dataset.train_inputs) * CONTEXT > 1_000_000  # megabytes of text on every machine
    assert len(dataset.test_inputs) == 512
    assert dataset.num_classes == 256
    assert dataset.train_inputs.dtype == torch.uint8  # four bytes a token would be a waste
    assert b"import" in text_of(dataset.train_inputs[:20_000], dataset.train_targets[:20_000])


def test_targets_are_the_inputs_shifted_by_one():
    dataset = data.load(CONFIG)
    for inputs, targets in (
        (dataset.train_inputs[:1000], dataset.train_targets[:1000]),
        (dataset.test_inputs, dataset.test_targets),
    ):
        assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_every_byte_is_predicted_once(library):
    dataset = load_stdlib_text(context=CONTEXT)
    files = [f"# file {i:02} ".encode() * 30 for i in range(20)]
    train = b"\n".join(file for i, file in enumerate(files) if i % 10)
    kept = len(dataset.train_targets) * CONTEXT
    assert bytes(dataset.train_targets.flatten().tolist()) == train[1 : kept + 1]
    assert len(train) - kept <= CONTEXT  # what does not fill a last sample
    assert torch.equal(dataset.train_inputs[1:, 0], dataset.train_targets[:-1, -1])


def test_no_file_is_on_both_sides(library):
    dataset = load_stdlib_text(context=CONTEXT)
    train = text_of(dataset.train_inputs, dataset.train_targets)
    test = text_of(dataset.test_inputs, dataset.test_targets)
    assert {i for i in range(20) if f"file {i:02}".encode() in test} == {0, 10}
    assert {i for i in range(20) if f"file {i:02}".encode() in train} == set(range(20)) - {0, 10}
    assert b"SKIPPED" not in train + test


def test_the_test_samples_are_spread_over_the_test_text(monkeypatch, library):
    everything = load_stdlib_text(context=CONTEXT).test_inputs
    monkeypatch.setattr(stdlib_text, "_NUM_TEST", 3)
    few = load_stdlib_text(context=CONTEXT).test_inputs
    assert torch.equal(few, everything[[0, (len(everything) - 1) // 2, len(everything) - 1]])


def test_the_text_is_the_same_at_every_call(library):
    torch.manual_seed(5)
    one = load_stdlib_text(context=CONTEXT)
    torch.manual_seed(6)
    two = load_stdlib_text(context=CONTEXT)
    assert torch.equal(one.train_inputs, two.train_inputs)
    assert torch.equal(one.test_targets, two.test_targets)


def test_batches_are_integers_that_an_embedding_takes(library):
    dataset = load_stdlib_text(context=CONTEXT)
    inputs, targets = dataset.train_batch(torch.tensor([2, 0]))
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs, dataset.train_inputs[[2, 0]].long())


def test_a_python_without_source_text_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(
        FileNotFoundError, match=f"no Python source text under {tmp_path}.*installation with the .py"
    ):
        load_stdlib_text(context=CONTEXT)
