"""scikit-learn's 1,797 handwritten digits, 8 × 8 pixels: on every machine without a download."""

import torch
from sklearn import datasets

from edgewise.lab.data.dataset import Dataset

_NUM_TRAIN = 1437  # four fifths


def load_digits() -> Dataset:
    """Return the digits, split by a fixed permutation and standardized by the training pixels."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(pixels, dtype=torch.float32)[order]
    targets = torch.tensor(labels)[order]
    train = inputs[:_NUM_TRAIN]
    inputs = (inputs - train.mean()) / train.std()
    return Dataset(
        train_inputs=inputs[:_NUM_TRAIN],
        train_targets=targets[:_NUM_TRAIN],
        test_inputs=inputs[_NUM_TRAIN:],
        test_targets=targets[_NUM_TRAIN:],
        num_classes=10,
        image_shape=(1, 8, 8),
    )
