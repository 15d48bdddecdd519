"""Data sets by name."""

import functools

from edgewise.lab.configs import DataConfig
from edgewise.lab.data.dataset import Dataset
from edgewise.lab.data.digits import load_digits
from edgewise.lab.data.stdlib_text import load_stdlib_text

__all__ = ["Dataset", "load"]


@functools.cache
def load(config: DataConfig) -> Dataset:
    """Return the data set that the config names; it is shared by the runs of a process, not to be written to."""
    match config.name:
        case "digits":
            return load_digits()
        case "stdlib-text":
            return load_stdlib_text(context=config.context)
        case name:
            raise AssertionError(name)
