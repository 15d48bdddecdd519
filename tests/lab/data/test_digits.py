"""The embedded digits.

Oracle: scikit-learn's arrays, held against the split. Cannot see: whether a split is a hard one.
"""

import numpy as np
import torch
from sklearn import datasets

from edgewise.lab import data
from edgewise.lab.configs import DataConfig
from edgewise.lab.data.digits import load_digits

DIGITS = load_digits()


def test_sizes():
    assert DIGITS.train_inputs.shape == (1437, 64)
    assert DIGITS.test_inputs.shape == (360, 64)
    assert DIGITS.train_targets.shape == (1437,)
    assert DIGITS.test_targets.shape == (360,)
    assert DIGITS.num_classes == 10
    assert DIGITS.num_features == 64
    assert set(DIGITS.train_targets.tolist()) == set(DIGITS.test_targets.tolist()) == set(range(10))


def test_the_training_pixels_are_standardized_and_the_test_pixels_by_the_same_numbers():
    assert abs(DIGITS.train_inputs.mean()) < 1e-5
    assert abs(DIGITS.train_inputs.std() - 1) < 1e-5
    pixels, _ = datasets.load_digits(return_X_y=True)
    blank = float(DIGITS.train_inputs.min())
    assert float(DIGITS.test_inputs.min()) == blank
    assert abs((float(DIGITS.test_inputs.max()) - blank) / 16 - _step(pixels)) < 1e-5
    assert abs(DIGITS.test_inputs.mean()) > 1e-5  # not standardized by its own mean


def _step(pixels):
    """What one grey level of the raw pixels becomes, from the training part's deviation."""
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).numpy()
    return 1 / pixels[order][:1437].std(ddof=1)


def test_the_split_is_of_all_images_each_once_with_its_label():
    pixels, labels = datasets.load_digits(return_X_y=True)
    step = _step(pixels)
    inputs = torch.cat([DIGITS.train_inputs, DIGITS.test_inputs]).numpy()
    levels = np.rint((inputs - inputs.min()) / step).astype(int)
    ours = sorted(
        (*row, label)
        for row, label in zip(
            levels.tolist(), torch.cat([DIGITS.train_targets, DIGITS.test_targets]).tolist(), strict=True
        )
    )
    assert ours == sorted(
        (*row, label) for row, label in zip(pixels.astype(int).tolist(), labels.tolist(), strict=True)
    )


def test_the_split_does_not_depend_on_the_global_seed():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = load_digits()
    assert torch.equal(again.train_inputs, DIGITS.train_inputs)
    assert torch.equal(again.test_targets, DIGITS.test_targets)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_the_samples_asked_for_with_integer_targets():
    inputs, targets = DIGITS.train_batch(torch.tensor([3, 3, 0]))
    assert torch.equal(inputs, DIGITS.train_inputs[[3, 3, 0]])
    assert torch.equal(targets, DIGITS.train_targets[[3, 3, 0]])
    assert targets.dtype == torch.int64
    assert len(DIGITS.train_batch()[0]) == 1437
    assert len(DIGITS.test_batch()[1]) == 360


def test_load_shares_one_data_set_by_config():
    config = DataConfig(name="digits")
    assert data.load(config) is data.load(DataConfig(name="digits"))
    assert torch.equal(data.load(config).train_inputs, DIGITS.train_inputs)
