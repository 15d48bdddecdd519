"""The real data sets, from files in their real formats.

Oracle: small generated image folders, Parquet files and texts, read back by hand. Cannot see: the hub itself.
"""

import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from edgewise.arguments import UnknownNameError
from edgewise.lab import data, sweep
from edgewise.lab.configs import DataConfig
from edgewise.lab.data import sources, wikitext
from edgewise.lab.errors import DataError
from lab_cases import TINY, tiny

NUM = {"train": 24, "test": 8}


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    """Prepared data in a folder of the test, and nothing remembered from another."""
    monkeypatch.setenv("EDGEWISE_DATA", str(tmp_path / "data"))
    data._load.cache_clear()
    yield
    data._load.cache_clear()


def pictures(split, size, classes):
    """Random images with labels, of which the red channel is darkest."""
    random = np.random.default_rng(split == "train")
    pixels = random.integers(0, 256, (NUM[split], size, size, 3), dtype=np.uint8)
    pixels[..., 0] //= 4
    labels = [i % classes for i in range(NUM[split])]
    return pixels, labels


def write_parquet(folder, *, size=32, classes=10, image="img", label="label"):
    folder.mkdir()
    for split in NUM:
        pixels, labels = pictures(split, size, classes)
        table = datasets.Dataset.from_dict(
            {image: [Image.fromarray(p) for p in pixels], label: labels},
            features=datasets.Features({image: datasets.Image(), label: datasets.Value("int64")}),
        )
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    return folder


def write_image_folders(folder, *, size=32, classes=10, test="test"):
    for split in NUM:
        for i, (pixels, label) in enumerate(zip(*pictures(split, size, classes), strict=True)):
            place = folder / (test if split == "test" else split) / f"class-{label:03d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def write_text(folder, lines=400):
    folder.mkdir()
    words = [f"word{i % 37} of {i % 11}" for i in range(lines)]
    (folder / "train.txt").write_text("\n".join(words) + "\n")
    (folder / "test.txt").write_text("\n".join(words[:80]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("cifar10", 32, {}),
        ("cifar100", 32, {"label": "fine_label", "classes": 100}),
        ("tiny-imagenet", 64, {"image": "image", "classes": 200}),
    ],
)
def test_images_are_those_of_the_files_standardized_by_channel(tmp_path, name, size, options):
    sources.prepare(name, write_parquet(tmp_path / "source", size=size, **options))
    dataset = data.load(DataConfig(name=name))
    classes = options.get("classes", 10)
    assert (dataset.num_classes, dataset.image_shape) == (classes, (3, size, size))
    train, labels = pictures("train", size, classes)
    test, test_labels = pictures("test", size, classes)
    mean, deviation = train.mean((0, 1, 2)), train.std((0, 1, 2))
    expected = ((test - mean) / deviation).transpose(0, 3, 1, 2).reshape(NUM["test"], -1)
    np.testing.assert_allclose(dataset.test_inputs, expected, atol=1e-3)
    assert dataset.test_targets.tolist() == test_labels
    order = torch.randperm(NUM["train"], generator=torch.Generator().manual_seed(0))
    assert dataset.train_targets.tolist() == [labels[i] for i in order]
    images = dataset.train_inputs.unflatten(1, dataset.image_shape)
    np.testing.assert_allclose(images.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((0, 2, 3)), 1, atol=1e-4)


@pytest.mark.parametrize("test", ["test", "valid", "val"])
def test_image_folders_are_read_as_parquet_is(tmp_path, test):
    sources.prepare("cifar10", write_image_folders(tmp_path / "source", test=test))
    shutil.rmtree(tmp_path / "source")  # prepared means a copy
    dataset = data.load(DataConfig(name="cifar10"))
    assert dataset.train_inputs.shape == (NUM["train"], 3 * 32 * 32)
    pixels, _ = pictures("train", 32, 10)
    assert sorted(dataset.train_targets.tolist()) == sorted(pictures("train", 32, 10)[1])
    assert float(dataset.train_inputs.max()) == pytest.approx(
        max((pixels[..., c].max() - pixels[..., c].mean()) / pixels[..., c].std() for c in range(3)), rel=1e-3
    )


def test_a_subset_is_the_first_of_the_permutation(tmp_path):
    sources.prepare("cifar10", write_parquet(tmp_path / "source"))
    whole, part = (data.load(DataConfig(name="cifar10", num_samples=n)) for n in (None, 5))
    assert torch.equal(part.train_inputs, whole.train_inputs[:5])
    assert torch.equal(part.train_targets, whole.train_targets[:5])
    with pytest.raises(DataError, match="num_samples must be at most 24, the training samples, got 25"):
        data.load(DataConfig(name="cifar10", num_samples=25))


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_text_is_cut_into_samples_of_byte_pair_tokens(tmp_path, name):
    folder = sources.prepare(name, write_text(tmp_path / "source"))
    dataset = data.load(DataConfig(name=name, context=16))
    assert dataset.num_classes == 4096
    assert dataset.train_inputs.shape[1] == dataset.train_targets.shape[1] == 16
    assert torch.equal(dataset.train_inputs[:, 1:], dataset.train_targets[:, :-1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer-4096.json"))
    decoded = tokenizer.decode(dataset.train_inputs.flatten().tolist())
    assert decoded.startswith("word0 of 0")
    assert "word36 of" in decoded
    words = len(decoded.replace("of", " of ").split())
    assert dataset.train_inputs.numel() < 2 * words  # pairs, not bytes


def test_the_tokenizer_is_trained_once(tmp_path):
    folder = sources.prepare("wikitext-2", write_text(tmp_path / "source"))
    first = data.load(DataConfig(name="wikitext-2", context=16))
    path = folder / "tokenizer-4096.json"
    before = path.stat().st_mtime_ns
    data._load.cache_clear()
    assert torch.equal(data.load(DataConfig(name="wikitext-2", context=16)).train_inputs, first.train_inputs)
    assert path.stat().st_mtime_ns == before


class Slow:
    """A tokenizer during whose saving another process is there first."""

    def __init__(self, tokenizer, meanwhile):
        self.tokenizer, self.meanwhile = tokenizer, meanwhile

    def save(self, path):
        self.tokenizer.save(path)
        self.meanwhile()

    def encode_batch_fast(self, texts):
        return self.tokenizer.encode_batch_fast(texts)


def test_two_processes_may_train_the_tokenizer_at_once(tmp_path, monkeypatch):
    folder = sources.prepare("wikitext-2", write_text(tmp_path / "source"))
    train, others = wikitext.train_tokenizer, []

    def other_process():
        monkeypatch.setattr(wikitext, "train_tokenizer", train)
        others.append(wikitext.load_wikitext("wikitext-2", context=16))

    monkeypatch.setattr(wikitext, "train_tokenizer", lambda *a: Slow(train(*a), other_process))
    mine = wikitext.load_wikitext("wikitext-2", context=16)
    assert torch.equal(mine.train_inputs, others[0].train_inputs)
    assert {path.name for path in folder.iterdir()} == {
        "train.parquet",
        "test.parquet",
        "tokenizer-4096.json",
    }


def test_what_is_not_prepared_says_how_before_any_run(tmp_path):
    config = tiny(data={"name": "cifar10"})
    with pytest.raises(DataError) as caught:
        sweep.run({"fig1": [(TINY,), (config,)]}, "paper", tmp_path / "out")
    for words in ("edgewise prepare cifar10", "150 MB", str(tmp_path / "data"), "EDGEWISE_DATA", "--source"):
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    sources.check_prepared("digits")  # embedded


def test_preparing_leaves_nothing_where_it_fails(tmp_path):
    write_parquet(tmp_path / "source", size=16)
    with pytest.raises(DataError, match="cifar10 has images of 32 × 32 pixels, got 16 × 16"):
        sources.prepare("cifar10", tmp_path / "source")
    assert not (tmp_path / "data" / "cifar10").exists()


@pytest.mark.parametrize(
    ("name", "write", "options", "message"),
    [
        ("cifar10", write_parquet, {"classes": 12}, "labels from 0 to 9, got 0 to 11"),
        ("cifar10", write_image_folders, {"size": 8}, "images of 32 × 32 pixels, got 8 × 8"),
        (
            "cifar10",
            write_parquet,
            {"image": "picture"},
            "needs columns 'img' and 'label', got picture, label",
        ),
        ("wikitext-2", write_parquet, {}, "needs a column 'text', got img, label"),
        ("cifar100", write_text, {}, "needs columns 'img' and 'fine_label', got text"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, name, write, options, message):
    with pytest.raises(DataError, match=message):
        sources.prepare(name, write(tmp_path / "source", **options))


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"holds no data set: expected train\*\.parquet and test\*\.parquet"):
        sources.prepare("cifar10", tmp_path)
    with pytest.raises(UnknownNameError, match=r"unknown data set 'cifar'.* Did you mean 'cifar10'"):
        sources.prepare("cifar", tmp_path)
