"""Pairs of digits.

Oracle: the digits themselves, looked up. Cannot see: whether 100 classes of pairs are as hard as CIFAR-100's.
"""

import pytest
import torch

from edgewise.lab import data
from edgewise.lab.configs import DataConfig
from edgewise.lab.data.digits import load_digits


@pytest.mark.parametrize(("name", "scale"), [("digit-pairs", 1), ("digit-pairs-2x", 2)])
def test_a_pair_is_two_digits_of_its_own_split(name, scale):
    pairs, digits = data.load(DataConfig(name=name)), load_digits()
    assert pairs.image_shape == (1, 8 * scale, 16 * scale)
    assert pairs.num_classes == 100
    for split in ("train", "test"):
        inputs, targets = getattr(pairs, f"{split}_inputs"), getattr(pairs, f"{split}_targets")
        pixels, labels = getattr(digits, f"{split}_inputs"), getattr(digits, f"{split}_targets")
        images = inputs[:50].reshape(-1, 8, scale, 16, scale)
        assert torch.equal(images.amin((2, 4)), images.amax((2, 4)))  # each pixel a square
        halves = images[:, :, 0, :, 0].unflatten(-1, (2, 8))
        for side in range(2):
            same = (halves[:, :, side].flatten(1)[:, None] == pixels).all(-1)
            assert bool(same.any(1).all())
            found = labels[same.int().argmax(1)]
            assert torch.equal(found, (targets[:50] // 10, targets[:50] % 10)[side])


def test_every_class_has_samples():
    pairs = data.load(DataConfig(name="digit-pairs"))
    assert int(pairs.train_targets.bincount(minlength=100).min()) >= 50
    assert int(pairs.test_targets.bincount(minlength=100).min()) >= 1
