"""Tasks at which measurements are compared: networks, mean losses and batches, the same from the same seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

from edgewise.lab import data, models
from edgewise.lab.configs import DataConfig, ModelConfig
from edgewise.lab.models import FCN
from edgewise.lab.training import Batch, cross_entropy, half_squared_error

_MAX_SHIFT = 4  # pixels, to each side
_NOISE = 0.25  # standard deviations of the pixels
_SGD_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model and a batch; `criterion(outputs, targets)` is the mean loss."""

    name: str
    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    batch: Batch
    sgd_lr: float  # of `trained`

    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss, in the form edgewise takes."""
        inputs, targets = batch
        return self.criterion(model(inputs), targets)


def fcn_task() -> Task:
    """FCN-4-512 with ReLU on 5,000 digits of 3 × 32 × 32 pixels: mean ½‖f − y‖²."""
    torch.manual_seed(0)
    images, labels = upsampled_digits(5000)
    model = FCN(num_features=3072, num_classes=10, depth=4, width=512, parameterization="sp")
    return Task(
        name="FCN-4-512, 5,000 × 3,072, MSE",
        model=model,
        criterion=half_squared_error,
        batch=(images.flatten(1), labels),
        sgd_lr=1e-3,
    )


def lm_task() -> Task:
    """LM-4-128 on 16 sequences of 64 bytes of the standard library's source: cross-entropy."""
    torch.manual_seed(0)
    dataset = data.load(DataConfig(name="stdlib-text", context=64))
    config = ModelConfig(name="lm", depth=4, width=128, parameterization="sp")
    return Task(
        name="LM-4-128, 16 × 64 bytes, cross-entropy",
        model=models.build(config, dataset),
        criterion=cross_entropy,
        batch=dataset.train_batch(torch.randint(len(dataset.train_inputs), (16,))),
        sgd_lr=0.03,
    )


def conv_task() -> Task:
    """Three strided convolutions with ReLU (96k parameters) on 512 digits of 3 × 32 × 32: cross-entropy."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return Task(
        name="CNN-3, 512 × 3 × 32 × 32, cross-entropy",
        model=model,
        criterion=cross_entropy,
        batch=upsampled_digits(512),
        sgd_lr=1.0,
    )


def digits_task() -> Task:
    """FCN-4-128 with ReLU on the 8 × 8 digits: mean ½‖f − y‖²."""
    torch.manual_seed(0)
    dataset = data.load(DataConfig(name="digits"))
    config = ModelConfig(name="fcn", depth=4, width=128, parameterization="sp")
    return Task(
        name="FCN-4-128, digits, MSE",
        model=models.build(config, dataset),
        criterion=half_squared_error,
        batch=dataset.train_batch(),
        sgd_lr=0.005,
    )


def small_lm_task() -> Task:
    """LM-2-64 on 32 sequences of 32 bytes of the standard library's source: cross-entropy."""
    torch.manual_seed(0)
    dataset = data.load(DataConfig(name="stdlib-text", context=32))
    config = ModelConfig(name="lm", depth=2, width=64, parameterization="sp")
    return Task(
        name="LM-2-64, 32 × 32 bytes, cross-entropy",
        model=models.build(config, dataset),
        criterion=cross_entropy,
        batch=dataset.train_batch(torch.randint(len(dataset.train_inputs), (32,))),
        sgd_lr=0.1,
    )


def trained(task: Task) -> Task:
    """Return the task after 50 steps of gradient descent on its batch; changes its model."""
    optimizer = torch.optim.SGD(task.model.parameters(), lr=task.sgd_lr)
    for _ in range(_SGD_STEPS):
        optimizer.zero_grad()
        task.loss_fn(task.model, task.batch).backward()
        optimizer.step()
    optimizer.zero_grad()
    return replace(task, name=f"{task.name}, after {_SGD_STEPS} SGD steps")


def upsampled_digits(num: int, *, seed: int = 0) -> Batch:
    """Return images (num, 3, 32, 32) and labels (num,), of the size of CIFAR-10 without a download.

    scikit-learn's 8 × 8 digits, drawn with replacement, enlarged bilinearly, shifted by up to four pixels each way,
    with noise of its own in each channel, standardized over all pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = datasets.load_digits(return_X_y=True)
    drawn = torch.randint(len(labels), (num,), generator=generator)
    small = torch.tensor(pixels, dtype=torch.float32)[drawn].view(num, 1, 8, 8)
    large = F.interpolate(small, size=(32, 32), mode="bilinear")
    shifts = torch.randint(-_MAX_SHIFT, _MAX_SHIFT + 1, (num, 2), generator=generator)
    moved = torch.stack(
        [image.roll(shift, (1, 2)) for image, shift in zip(large, shifts.tolist(), strict=True)]
    )
    images = (moved / moved.std()).expand(-1, 3, -1, -1)
    images = images + _NOISE * torch.randn(images.shape, generator=generator)
    return (images - images.mean()) / images.std(), torch.tensor(labels)[drawn]
