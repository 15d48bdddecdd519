"""MNIST-1D.

Oracle: the package's own arrays; a network trained on both, for what is claimed of it. Cannot see: whether the copy
that its authors share is drawn alike.
"""

import random

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset

from edgewise.lab import data
from edgewise.lab.configs import DataConfig
from edgewise.lab.data.mnist1d import load_mnist1d
from edgewise.lab.training import train
from lab_cases import tiny

SIGNALS = load_mnist1d()


def test_sizes():
    assert SIGNALS.train_inputs.shape == (4000, 40)
    assert SIGNALS.test_inputs.shape == (1000, 40)
    assert (SIGNALS.num_classes, SIGNALS.image_shape) == (10, (1, 1, 40))
    assert SIGNALS.train_inputs.dtype == torch.float32
    for targets in (SIGNALS.train_targets, SIGNALS.test_targets):
        assert targets.dtype == torch.int64
        assert set(targets.tolist()) == set(range(10))


def test_the_signals_are_the_package_s_standardized_by_the_training_signals():
    drawn = make_dataset(get_dataset_args())
    assert SIGNALS.train_targets.tolist() == drawn["y"].tolist()
    assert SIGNALS.test_targets.tolist() == drawn["y_test"].tolist()
    mean, deviation = drawn["x"].mean(), drawn["x"].std(ddof=1)
    np.testing.assert_allclose(SIGNALS.test_inputs, (drawn["x_test"] - mean) / deviation, atol=1e-5)
    assert abs(float(SIGNALS.train_inputs.mean())) < 1e-6
    assert float(SIGNALS.train_inputs.std()) == pytest.approx(1, abs=1e-5)


def test_they_are_the_same_whatever_was_drawn_before_and_nothing_else_is_drawn_differently():
    seed = 3
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    expected = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    again = load_mnist1d()
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected  # noqa: NPY002
    assert torch.equal(again.train_inputs, SIGNALS.train_inputs)
    assert torch.equal(again.test_inputs, SIGNALS.test_inputs)


def test_the_number_of_threads_changes_no_bit():
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            assert torch.equal(load_mnist1d().train_inputs, SIGNALS.train_inputs)
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr("requests.get", lambda *a, **k: pytest.fail("the network is asked"))
    monkeypatch.setattr("socket.socket.connect", lambda *a, **k: pytest.fail("the network is asked"))
    load_mnist1d()


def test_a_config_names_it_and_does_not_mirror_it():
    config = DataConfig(name="mnist1d", num_samples=100)
    assert torch.equal(data.load(config).train_inputs, SIGNALS.train_inputs[:100])
    with pytest.raises(ValueError, match="augment is for images, got data 'mnist1d'"):
        DataConfig(name="mnist1d", augment=True)


@pytest.mark.parametrize("model", ["fcn", "cnn", "wrn"])
def test_networks_of_images_take_signals(model):
    depth = {"fcn": 1, "cnn": 2, "wrn": 10}[model]
    network = {"name": model, "depth": depth, "width": 1}
    result = train(tiny(data={"name": "mnist1d", "num_samples": 20}, model=network, num_steps=3))
    assert all(np.isfinite(row["train_loss"]) for row in result.rows)


@pytest.mark.slow
def test_they_are_harder_than_the_digits():
    """What the page says: a network that reads nearly all digits does not read nearly all signals."""
    network = {"name": "fcn", "depth": 2, "width": 64}
    settings = {
        "model": network,
        "optimizer": {"name": "adam", "lr": 0.003},
        "batch_size": 64,
        "num_steps": 400,
    }
    digits, signals = (
        train(tiny(data={"name": name}, loss="xent", **settings)).outcome["test_accuracy"]
        for name in ("digits", "mnist1d")
    )
    assert digits > 0.94
    assert 0.3 < signals < 0.8
