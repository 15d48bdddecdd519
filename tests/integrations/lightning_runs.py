"""A small module for Lightning, runs of it that are recorded, and the same training as a plain loop of torch."""

import contextlib
import copy
import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import edgewise as ew

L = pytest.importorskip("lightning.pytorch")

import torchmetrics  # noqa: E402
from lightning.fabric.utilities.warnings import PossibleUserWarning  # noqa: E402

NUM_BATCHES, SIZE = 8, 8  # of an epoch
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@dataclass
class Run:
    """What a run shows: of each update the rate it was made with, of each micro-batch its loss; θ at the end."""

    rates: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    parameters: list = field(default_factory=list)
    num_forwards: int = 0  # of the warmup, where it is made by hand


def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(64, 6, generator=generator)
    return inputs, (inputs[:, :1] * inputs[:, 1:2]).sin()


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), batch_size=SIZE)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.3)


def gi_adamw(parameters):
    return ew.GIAdamW(parameters, lr=0.3)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=3.0, momentum=0.5)


def slow_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


class Net(L.LightningModule):
    """Regression that logs, counts and keeps what `training_step` sees."""

    def __init__(self, make_optimizer=adamw, scheduler=None, dropout=0.0, fails=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.make_optimizer, self.scheduler = make_optimizer, scheduler
        self.error = torchmetrics.MeanSquaredError()
        self.kept, self.calls = [], 0
        self.fails = fails  # what the fifth batch of an epoch raises

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        outputs = self.net(inputs)
        loss = mse_loss(outputs, targets)
        self.error(outputs.float(), targets)
        self.log("error", self.error, on_step=True, on_epoch=True)
        self.log_dict({"loss": loss}, on_step=True, on_epoch=True)
        self.kept.append(batch_idx)
        self.calls += 1
        if batch_idx == 4 and self.fails is not None:
            raise self.fails
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.scheduler(optimizer)}


class Recorder(L.Callback):
    """Writes down a run; first among the callbacks, so that the rate is still the one of the step."""

    def __init__(self):
        self.run = Run()

    def on_fit_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        optimizer.register_step_post_hook(
            lambda *_: self.run.rates.append(float(optimizer.param_groups[0]["lr"]))
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.run.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer, pl_module):
        self.run.parameters = [p.detach().clone() for p in pl_module.parameters()]


def trainer_of(*callbacks, **options):
    return L.Trainer(callbacks=list(callbacks), **QUIET | {"max_epochs": 3} | options)


def fit(module, *callbacks, ckpt_path=None, validate=False, **options):
    """Train by Lightning; return what the run showed."""
    recorder = Recorder()
    trainer = trainer_of(recorder, *callbacks, **options)
    train(trainer, module, ckpt_path=ckpt_path, validate=validate)
    return recorder.run


@contextlib.contextmanager
def without_advice():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, no validation, a short epoch
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # Lightning's own
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint", UserWarning)
        warnings.filterwarnings("ignore", ".*will run with no optimizer", UserWarning)
        yield


def train(trainer, module, ckpt_path=None, validate=False):
    with without_advice():
        trainer.fit(module, loader(), loader() if validate else None, ckpt_path=ckpt_path)


def plain(
    module,
    make=ew.EdgeWarmup,
    *,
    epochs=3,
    accumulate=1,
    clip=None,
    autocast=False,
    follow=lambda warmup: warmup,
):
    """Train as a plain loop of torch, which observes by hand; return what the run showed."""
    net, run = copy.deepcopy(module.net), Run()
    optimizer = module.make_optimizer(net.parameters())
    optimizer.register_step_post_hook(lambda *_: run.rates.append(float(optimizer.param_groups[0]["lr"])))
    warmup = make(optimizer)
    schedule = follow(warmup)
    precision = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    batches = list(zip(*(tensor.split(SIZE) for tensor in data()), strict=True))
    of_an_epoch = [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]

    def loss_of(inputs, targets):
        with precision:
            return mse_loss(net(inputs), targets) / accumulate

    for micro_batches in of_an_epoch * epochs:
        optimizer.zero_grad()
        losses = [loss_of(*micro_batch) for micro_batch in micro_batches]
        for loss in losses:
            loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        given = sum(loss.detach() for loss in losses)
        warmup.observe(lambda batches=micro_batches: sum(loss_of(*b) for b in batches), loss=given)
        optimizer.step()
        schedule.step()
        run.losses += [loss.item() for loss in losses]
    run.parameters = [p.detach().clone() for p in net.parameters()]
    run.num_forwards = warmup.num_forwards
    return run


def assert_equal(one, other):
    assert one.rates == other.rates
    assert one.losses == other.losses
    assert len(one.parameters) == len(other.parameters) > 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
