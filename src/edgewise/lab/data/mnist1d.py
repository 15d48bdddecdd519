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
    # By NumPy: torch's sums differ in their last bits with the number of threads, and so would all that is trained.
    mean, deviation = drawn["x"].mean(), drawn["x"].std(ddof=1)
    train, test = (torch.tensor((drawn[x] - mean) / deviation, dtype=torch.float32) for x in ("x", "x_test"))
    return Dataset(
        train_inputs=train,
        train_targets=torch.tensor(drawn["y"]),
        test_inputs=test,
        test_targets=torch.tensor(drawn["y_test"]),
        num_classes=10,
        image_shape=(1, 1, 40),
    )
