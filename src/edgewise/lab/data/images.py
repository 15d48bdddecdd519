"""CIFAR-10, CIFAR-100 and Tiny-ImageNet."""

import datasets
import numpy as np
import torch
from torch import Tensor

from edgewise.lab.data import sources
from edgewise.lab.data.dataset import Dataset


def load_images(name: str) -> Dataset:
    """Return a prepared data set, in a fixed random order, standardized by the training pixels of each channel.

    Raises:
        DataError: it is not prepared.
    """
    train, train_targets = _tensors(sources.read(name, "train"))
    test, test_targets = _tensors(sources.read(name, "test"))
    mean, deviation = train.mean((0, 2, 3)), train.std((0, 2, 3))
    # Ordered by class in the original files: without this, the first 5,000 would be few classes.
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    train, test = ((x - mean[:, None, None]) / deviation[:, None, None] for x in (train, test))
    channels, height, width = train.shape[1:]
    return Dataset(
        train_inputs=train[order].flatten(1),
        train_targets=train_targets[order],
        test_inputs=test.flatten(1),
        test_targets=test_targets,
        num_classes=sources.SOURCES[name].num_classes or 0,
        image_shape=(channels, height, width),
    )


def _tensors(split: datasets.Dataset) -> tuple[Tensor, Tensor]:
    """Return (N, 3, H, W) in [0, 1], and (N,)."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in split["image"]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(split["label"])
