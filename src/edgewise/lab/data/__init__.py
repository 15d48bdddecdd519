"""Data sets by name."""

import functools

from edgewise.lab import plugins
from edgewise.lab.configs import DataConfig
from edgewise.lab.data.dataset import Dataset

__all__ = ["Dataset", "load"]


def load(config: DataConfig) -> Dataset:
    """Return the data set that the config names; it is shared by the runs of a process, not to be written to.

    Raises:
        DataError: it is not prepared, or has fewer samples than asked for.
    """
    dataset = _own(config) if config.name in plugins.DATA else _load(config.name, config.context)
    return dataset if config.num_samples is None else dataset.first(config.num_samples)


@functools.cache
def _own(config: DataConfig) -> Dataset:
    return plugins.DATA[config.name](config)


# ruff: noqa: PLC0415, PLR0911 - a return for each loader, which brings its libraries: a process imports its own alone
@functools.cache
def _load(name: str, context: int) -> Dataset:
    match name:
        case "digits":
            from edgewise.lab.data.digits import load_digits

            return load_digits()
        case "digit-pairs" | "digit-pairs-2x":
            from edgewise.lab.data.digit_pairs import load_digit_pairs

            return load_digit_pairs(scale=2 if name.endswith("-2x") else 1)
        case "mnist1d":
            from edgewise.lab.data.mnist1d import load_mnist1d

            return load_mnist1d()
        case "cifar10" | "cifar100" | "tiny-imagenet":
            from edgewise.lab.data.images import load_images

            return load_images(name)
        case "stdlib-text":
            from edgewise.lab.data.stdlib_text import load_stdlib_text

            return load_stdlib_text(context=context)
        case "stdlib-bpe":
            from edgewise.lab.data.stdlib_bpe import load_stdlib_bpe

            return load_stdlib_bpe(context=context)
        case "wikitext-2" | "wikitext-103":
            from edgewise.lab.data.wikitext import load_wikitext

            return load_wikitext(name, context=context)
        case _:
            raise AssertionError(name)
