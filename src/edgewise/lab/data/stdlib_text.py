"""The source text of the Python standard library, byte by byte: real text on every machine without a download.

The text is that of the running Python, so results on it are comparable within one version; results store it.
"""

import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewise.lab.data.dataset import Dataset, spread

_SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
}
_TEST_EVERY = 10  # every tenth file is test text: no file is on both sides
_NUM_TEST = 512  # test samples, spread evenly over the test text


def load_stdlib_text(*, context: int) -> Dataset:
    """Return the text cut into samples of `context` bytes, each to predict its successor."""
    train, test = (_samples(files, context) for files in source_files())
    return text_dataset(train, test, vocabulary=256)


def source_files() -> tuple[list[Path], list[Path]]:
    """Return the files of the training text and those of the test text.

    Raises:
        FileNotFoundError: this Python has none.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in sorted(root.rglob("*.py")) if not _SKIPPED & set(p.relative_to(root).parts)]
    if not files:
        raise FileNotFoundError(
            f"no Python source text under {root}: this Python keeps its standard library elsewhere or compressed; "
            "use an installation with the .py files."
        )
    return [file for i, file in enumerate(files) if i % _TEST_EVERY], files[::_TEST_EVERY]


def text_dataset(train: Tensor, test: Tensor, *, vocabulary: int) -> Dataset:
    """Return the data set of (N, context + 1) tokens, with few test samples of all the test text."""
    return Dataset.of_tokens(train, test[spread(_NUM_TEST, len(test))], vocabulary=vocabulary)


def _samples(files: list[Path], context: int) -> Tensor:
    """Return (N, context + 1) bytes; neighbours share one byte, so that every byte is predicted once."""
    text = np.frombuffer(b"\n".join(file.read_bytes() for file in files), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(text, context + 1)[::context]
    return torch.from_numpy(windows.copy())
