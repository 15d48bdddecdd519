"""What the rate is asked elsewhere: Lightning's LRFinder, and the steepest point of a range test."""

import itertools
import logging
import math
import warnings

import lightning
import torch
from advice_tasks import Batch, Pair
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

NUM_UPDATES = 100
_LOWEST, _HIGHEST = 1e-8, 100.0
_SMOOTHING = 0.9  # of the losses, as an exponential average
_SKIPPED = 10  # of the first updates, whose average is of few losses, as in Lightning
_SEED = 77  # of the batches: they are those of the trial


def steepest(pair: Pair) -> float | None:
    """Return the rate at which the smoothed loss falls fastest in the logarithm of a rate that grows exponentially.

    Over 100 updates from 1e-8 to 100; it ends where the smoothed loss is four times the lowest, or not finite.
    """
    model, optimizer = pair.make(1.0)
    ratios = [group["lr"] for group in optimizer.param_groups]
    rates: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for update, batch in enumerate(itertools.islice(pair.batches(_SEED), NUM_UPDATES)):
        rate = _LOWEST * (_HIGHEST / _LOWEST) ** (update / (NUM_UPDATES - 1))
        optimizer.zero_grad()
        loss = pair.network.loss(model, batch)
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss.item()
        value = average / (1 - _SMOOTHING ** (update + 1))
        if not math.isfinite(value) or (smoothed and value > 4 * min(smoothed)):
            break
        rates.append(rate)
        smoothed.append(value)
        loss.backward()
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * ratio
        optimizer.step()
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)  # beyond, it falls only where it recovers
    slopes = {i: smoothed[i + 1] - smoothed[i] for i in range(_SKIPPED, lowest)}
    return rates[min(slopes, key=slopes.__getitem__)] if slopes else None


class _Module(lightning.LightningModule):
    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair, self.lr = pair, pair.middle_rate
        self.model, self._optimizer = pair.make(self.lr)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        return self.pair.network.loss(self.model, batch)

    def configure_optimizers(self) -> Optimizer:
        return self._optimizer


def lr_finder(pair: Pair) -> float | None:
    """Return the suggestion of Lightning's LRFinder, with its own defaults: 100 updates from 1e-8 to 1."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        batches = list(itertools.islice(pair.batches(_SEED), NUM_UPDATES))
        loader = DataLoader(batches, batch_size=None, num_workers=0)  # a list would be one of loaders
        torch.manual_seed(_SEED)
        found = Tuner(trainer).lr_find(_Module(pair), train_dataloaders=loader, num_training=NUM_UPDATES)
    return None if found is None else found.suggestion()
