"""How a run ended."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import edgewise as ew
from edgewise.lab.configs import RunConfig
from edgewise.lab.data import Dataset
from edgewise.lab.training.losses import OF_OUTPUTS, Batch

_EVALUATION_SIZE = 512


class Evaluations:
    """The test accuracy along a run, of which the best is kept, as the paper's diagrams of images show it."""

    def __init__(self, config: RunConfig, dataset: Dataset) -> None:
        self._every, self._loss, self._dataset = config.evaluate_every, config.loss, dataset
        self.best = 0.0

    def due(self, num_updates: int) -> bool:
        """Whether it is time to look after so many updates."""
        return self._every is not None and num_updates % self._every == 0

    def look(self, model: nn.Module) -> None:
        """Take the model's accuracy on the test data."""
        self.best = max(self.best, evaluate(model, self._loss, self._dataset.test_batch())[1])


def outcome_of(
    config: RunConfig,
    rows: list[dict[str, float]],
    model: nn.Module,
    dataset: Dataset,
    optimizer: Optimizer,
    lr_target: float,
    evaluations: Evaluations,
) -> dict[str, Any]:
    """Return how the run ended; losses are not finite where it diverged, and `num_steps` counts the updates made.

    `stability_limit` is the optimizer's as the run left it, NaN where it has none: see `edgewise.stability_limit`.
    `best_test_accuracy`, and `guess_accuracy` of the best constant answer, are there if test data were looked at on the
    way.
    """
    trained = math.isfinite(rows[-1]["train_loss"])
    test_loss, test_accuracy = evaluate(model, config.loss, dataset.test_batch())
    along = {}
    if config.evaluate_every is not None:
        along["best_test_accuracy"] = max(evaluations.best, test_accuracy)
        along["guess_accuracy"] = guess_accuracy(dataset)
    return along | {
        "diverged": not (trained and math.isfinite(test_loss)),
        "lr_target": lr_target,
        "stability_limit": ew.stability_limit(optimizer).value,
        "num_steps": len(rows) if trained else len(rows) - 1,
        "train_loss": rows[-1]["train_loss"],
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "num_classes": dataset.num_classes,
        "guess_loss": guess_loss(config.loss, dataset),
        "device": dataset.train_inputs.device.type,
    }


@torch.no_grad()
def evaluate(model: nn.Module, loss: str, batch: Batch) -> tuple[float, float]:
    """Return mean loss and accuracy over the samples of a large batch, of the model in eval mode."""
    total_loss = total_accuracy = 0.0
    with _eval_mode(model):
        for inputs, targets in zip(*(part.split(_EVALUATION_SIZE) for part in batch), strict=True):
            share = len(targets) / len(batch[1])
            outputs = model(inputs)
            total_loss += share * OF_OUTPUTS[loss](outputs, targets).item()
            total_accuracy += share * (outputs.argmax(-1) == targets).float().mean().item()
    return total_loss, total_accuracy


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put each module back into its own mode afterwards: a part of the model may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def guess_loss(loss: str, dataset: Dataset) -> float:
    """Return the test loss of the best constant output: the class frequencies of the training targets."""
    counts = torch.bincount(dataset.train_targets.flatten().long(), minlength=dataset.num_classes)
    frequencies = (counts + 1) / (counts + 1).sum()  # one added, for classes that only the test data have
    outputs = frequencies.log() if loss == "xent" else frequencies
    targets = dataset.test_batch()[1]
    return OF_OUTPUTS[loss](outputs.expand(*targets.shape, -1), targets).item()


def guess_accuracy(dataset: Dataset) -> float:
    """Return the test accuracy of the best constant answer: the share of the most frequent class."""
    targets = dataset.test_batch()[1].flatten().long()
    return float(torch.bincount(targets).max()) / len(targets)
