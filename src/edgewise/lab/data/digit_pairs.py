"""Pairs of scikit-learn's digits side by side: 100 classes on every machine without a download."""

import torch
from torch import Tensor

from edgewise.lab.data.dataset import Dataset
from edgewise.lab.data.digits import load_digits

_NUM_TRAIN, _NUM_TEST = 8000, 1000


def load_digit_pairs(*, scale: int = 1) -> Dataset:
    """Return 8·scale × 16·scale pixels, class 10a + b for digits a and b, each pixel repeated scale × scale times.

    Pairs are drawn with a fixed seed, of training digits for training and of test digits for testing.
    """
    digits = load_digits()
    generator = torch.Generator().manual_seed(0)

    def pairs(pixels: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor]:
        left, right = torch.randint(len(labels), (2, number), generator=generator)
        both = torch.cat([pixels[left].unflatten(1, (8, 8)), pixels[right].unflatten(1, (8, 8))], dim=2)
        enlarged = both.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
        return enlarged.flatten(1), 10 * labels[left] + labels[right]

    train_inputs, train_targets = pairs(digits.train_inputs, digits.train_targets, _NUM_TRAIN)
    test_inputs, test_targets = pairs(digits.test_inputs, digits.test_targets, _NUM_TEST)
    return Dataset(
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        num_classes=100,
        image_shape=(1, 8 * scale, 16 * scale),
    )
