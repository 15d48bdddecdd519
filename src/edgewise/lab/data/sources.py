"""The real data sets: where they come from, and the Parquet files they are kept as.

    ROOT/NAME/train.parquet, test.parquet      columns image and label, or text

ROOT is the environment variable EDGEWISE_DATA, or `data` in the working directory. Nothing is downloaded while
training: `edgewise prepare NAME` does it before, or takes files that are already there.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
from datasets.table import embed_table_storage

from edgewise.arguments import known_name
from edgewise.lab.errors import DataError

VOCABULARY = 4096  # byte-pair tokens of a text


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set on the Hugging Face hub, and what to expect of it."""

    hub: tuple[str, ...]
    """Name, and configuration if there are several."""
    test_split: str
    megabytes: int
    """Disk space that it takes when prepared, about."""
    samples: tuple[int, int] = (0, 0)
    """Images for training and for testing; text has as many samples as its context makes."""
    pixels: int | None = None
    """Height and width; `None` for text."""
    num_classes: int | None = None
    image_column: str = "image"
    label_column: str = "label"


_CIFAR10 = Source(
    hub=("uoft-cs/cifar10",),
    test_split="test",
    megabytes=150,
    samples=(50_000, 10_000),
    pixels=32,
    num_classes=10,
    image_column="img",
)
SOURCES = {
    "cifar10": _CIFAR10,
    "cifar100": replace(_CIFAR10, hub=("uoft-cs/cifar100",), num_classes=100, label_column="fine_label"),
    "tiny-imagenet": Source(
        hub=("zh-plus/tiny-imagenet",),
        test_split="valid",
        megabytes=170,
        samples=(100_000, 10_000),
        pixels=64,
        num_classes=200,
    ),
    "wikitext-2": Source(hub=("Salesforce/wikitext", "wikitext-2-raw-v1"), test_split="test", megabytes=10),
    "wikitext-103": Source(
        hub=("Salesforce/wikitext", "wikitext-103-raw-v1"), test_split="test", megabytes=350
    ),
}


def root() -> Path:
    """Return the folder of the prepared data sets."""
    return Path(os.environ.get("EDGEWISE_DATA", "data"))


def check_prepared(name: str) -> None:
    """Pass if the data set is embedded or prepared.

    Raises:
        DataError: it is neither; says how to prepare it, and the space it takes.
    """
    if name in SOURCES and not all(_file(name, split).exists() for split in ("train", "test")):
        raise DataError(
            f"data set {name!r} is not in {root() / name}: get it with `edgewise prepare {name}` (about "
            f"{SOURCES[name].megabytes} MB there, from huggingface.co), or from files with `edgewise prepare {name} "
            "--source DIR`; the folder is chosen by the environment variable EDGEWISE_DATA."
        )


def read(name: str, split: str) -> datasets.Dataset:
    """Return the prepared split "train" or "test"."""
    check_prepared(name)
    return datasets.Dataset.from_parquet(str(_file(name, split)), keep_in_memory=True)


def prepare(name: str, source: Path | None = None) -> Path:
    """Write a data set's Parquet files and return their folder.

    Args:
        name: one of `SOURCES`.
        source: a folder with Parquet files (train*.parquet and test*.parquet, or valid*.parquet), image folders
            (train/CLASS/*.png and test/CLASS/*.png) or text files (train*.txt and test*.txt); downloaded from the
            Hugging Face hub if not given.

    Raises:
        UnknownNameError: there is no such data set.
        DataError: the folder does not hold it.
    """
    wanted = SOURCES[known_name("data set", name, SOURCES)]
    splits = _downloaded(wanted) if source is None else _local(source)
    train, test = (_as_expected(name, wanted, split) for split in splits)
    (root() / name).mkdir(parents=True, exist_ok=True)
    for split, content in (("train", train), ("test", test)):
        partial = _file(name, f".{split}")
        content.to_parquet(str(partial))
        partial.replace(_file(name, split))
    return root() / name


def _file(name: str, split: str) -> Path:
    return root() / name / f"{split}.parquet"


def _downloaded(wanted: Source) -> tuple[datasets.Dataset, datasets.Dataset]:
    train, test = (datasets.load_dataset(*wanted.hub, split=split) for split in ("train", wanted.test_split))
    return train, test


def _local(source: Path) -> tuple[datasets.Dataset, datasets.Dataset]:
    for loader, pattern in (("parquet", "{}*.parquet"), ("text", "{}*.txt"), ("imagefolder", "{}/*/*")):
        files = [_files_of(source, pattern, names) for names in (("train",), ("test", "valid", "val"))]
        if all(files):
            train, test = (
                datasets.load_dataset(loader, data_files=[str(f) for f in split_files], split="train")
                for split_files in files
            )
            return train, test
    raise DataError(
        f"{source} holds no data set: expected train*.parquet and test*.parquet, train*.txt and test*.txt, or "
        "images as train/CLASS/FILE and test/CLASS/FILE (test may be called valid or val)."
    )


def _files_of(source: Path, pattern: str, names: tuple[str, ...]) -> list[Path]:
    for name in names:
        if files := sorted(path for path in source.glob(pattern.format(name)) if path.is_file()):
            return files
    return []


def _as_expected(name: str, wanted: Source, split: datasets.Dataset) -> datasets.Dataset:
    """Return the split with the columns' own names, images decoded to see that they are the right ones."""
    if wanted.pixels is None:
        if "text" not in split.column_names:
            raise DataError(f"{name} needs a column 'text', got {', '.join(split.column_names)}.")
        return split.select_columns(["text"])
    names = {wanted.image_column: "image", wanted.label_column: "label"}
    names = {old: new for old, new in names.items() if old in split.column_names}
    split = split.rename_columns({old: new for old, new in names.items() if old != new})
    if not {"image", "label"} <= set(split.column_names):
        raise DataError(
            f"{name} needs columns {wanted.image_column!r} and {wanted.label_column!r}, got "
            f"{', '.join(split.column_names)}."
        )
    image = split[0]["image"]
    if image.size != (wanted.pixels, wanted.pixels):
        raise DataError(
            f"{name} has images of {wanted.pixels} × {wanted.pixels} pixels, got {image.size[0]} × {image.size[1]}: "
            "is this another data set?"
        )
    labels = set(split["label"])
    if not labels <= set(range(wanted.num_classes or 0)):
        raise DataError(
            f"{name} has labels from 0 to {(wanted.num_classes or 0) - 1}, got {min(labels)} to {max(labels)}: is "
            "this another data set?"
        )
    # Images of a folder are paths so far: the Parquet file is to hold them.
    embedded = split.select_columns(["image", "label"]).with_format("arrow")
    return embedded.map(embed_table_storage, batched=True, load_from_cache_file=False).with_format(None)
