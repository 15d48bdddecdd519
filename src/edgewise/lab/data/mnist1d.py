"""MNIST-1D (Greydanus & Kobak 2024): ten shapes as signals of 40 numbers, drawn anew on every machine, no download.

The package `mnist1d` draws them; its own `get_dataset` would download a copy, and is not called. 5,000 signals of ten
classes: a fully connected network does far worse on them than on digits, as on CIFAR-10.
"""

import torch
from mnist1d.data import get_dataset_args, make_dataset

from edgewise.isolation.random_states import RandomStates
from edgewise.lab.data.dataset import Dataset


def load_mnist1d() -> Dataset:
    """Return the 4,000 training and 1,000 test signals of the package's seed, standardized by the training signals."""
    states = RandomStates()  # it draws from the generators of all
    try:
        drawn = make_dataset(get_dataset_args())
    finally:
        states.restore()
    train, test = (torch.tensor(drawn[name], dtype=torch.float32) for name in ("x", "x_test"))
    mean, deviation = train.mean(), train.std()
    return Dataset(
        train_inputs=(train - mean) / deviation,
        train_targets=torch.tensor(drawn["y"]),
        test_inputs=(test - mean) / deviation,
        test_targets=torch.tensor(drawn["y_test"]),
        num_classes=10,
        image_shape=(1, 1, 40),
    )
