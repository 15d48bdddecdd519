"""What edgewise leaves as it is in a `Trainer`: its methods, counts and rows, and the run that a monitor follows.

Ladder: the same training without callbacks, bit for bit → `ew.sharpness` of the model's own loss. Cannot see: what a
trainer keeps elsewhere than in attributes of its own.
"""

import itertools
import os

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer, TrainerCallback

import edgewise as ew
from edgewise.integrations.transformers import EdgeWarmupCallback, MonitorCallback
from integrations.trainers import (
    LR,
    Stopping,
    column,
    equal,
    linear,
    parameters,
    run,
    tiny_gpt2,
    trainer_of,
    warmed,
)

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")]


# The trainer is as it was


def test_the_trainer_has_its_own_methods_after_training(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3)
    before = set(vars(trainer))
    for callback in (EdgeWarmupCallback(trainer), MonitorCallback(trainer)):
        trainer.add_callback(callback)
    trainer.train()
    assert set(vars(trainer)) - before <= {"train", "_edgewise_updates", *set(vars(_trained(tmp_path)))}
    for name in ("training_step", "create_scheduler", "log", "_prepare_inputs"):
        assert name not in vars(trainer)
    assert "backward" not in vars(trainer.accelerator)


def _trained(folder):
    trainer = trainer_of(folder, max_steps=1)
    trainer.train()
    return trainer


def test_after_training_the_optimizer_is_followed_no_more(tmp_path):
    trainer, callback = warmed(tmp_path, linear(warmup_steps=4), max_steps=6)
    trainer.add_callback(Stopping(3))
    trainer.train()
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    trainer.optimizer.step()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == rates
    assert callback.warmup.report().updates == 3


def test_an_error_in_training_leaves_the_trainer_with_its_own_methods_and_it_may_train_again(tmp_path):
    trainer, callback = warmed(tmp_path, linear(warmup_steps=4), max_steps=8)
    stopping = Stopping(3, RuntimeError("the disk is full"))
    trainer.add_callback(stopping)
    with pytest.raises(RuntimeError, match="the disk is full"):
        trainer.train()
    for name in ("training_step", "create_scheduler", "log", "_prepare_inputs"):
        assert name not in vars(trainer)
    first = callback.warmup
    trainer.remove_callback(Stopping)
    rates, _ = run(trainer)
    assert rates[:4] == pytest.approx([LR * share for share in (0.25, 0.5, 0.75, 1.0)])
    assert callback.warmup is not first
    assert first.report().updates == 3  # it counts no more


def test_a_monitor_changes_nothing(tmp_path):
    options = {"dropout": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    plain = trainer_of(tmp_path, **options)
    expected = run(plain)
    followed = trainer_of(tmp_path, **options)
    followed.add_callback(MonitorCallback(followed, every=6, rtol=0.1))
    assert run(followed) == expected
    assert equal(parameters(plain), parameters(followed))
    rows = [row for row in followed.state.log_history if "edgewise/sharpness" in row]
    assert [row["step"] for row in rows] == [row["edgewise/step"] for row in rows] == [0, 6, 12, 18]
    assert [row["edgewise/lr"] for row in rows] == [expected[0][step] for step in (0, 6, 12, 18)]
    assert [row["step"] for row in followed.state.log_history if "loss" in row] == list(range(1, 21))


def test_what_a_monitor_measures_is_the_sharpness_of_the_micro_batches_together(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1, gradient_accumulation_steps=2, max_grad_norm=0.1)
    before = tiny_gpt2()
    trainer.add_callback(MonitorCallback(trainer, every=1, rtol=1e-4))
    trainer.train()
    batch = _joined(trainer, 8)

    def loss_fn(model, batch):
        with sdpa_kernel(SDPBackend.MATH):
            return model(**batch).loss

    expected = ew.sharpness(before, loss_fn, [batch], rtol=1e-4).value
    assert column(trainer, "edgewise/sharpness") == [pytest.approx(expected, rel=1e-3)]
    assert column(trainer, "edgewise/preconditioned_sharpness")[0] > 0


def _joined(trainer, num):
    """The first sequences as one batch, whose loss is the mean over their tokens."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(num)])


@pytest.mark.parametrize("monitor_first", [False, True])
def test_a_monitor_beside_a_warmup_sees_the_rate_that_it_has_set(monitor_first, tmp_path):
    expected = run(warmed(tmp_path, max_steps=12)[0])
    trainer = trainer_of(tmp_path, max_steps=12)
    callbacks = [EdgeWarmupCallback(trainer), MonitorCallback(trainer, every=4, rtol=0.1)]
    for callback in callbacks[::-1] if monitor_first else callbacks:
        trainer.add_callback(callback)
    assert run(trainer) == expected
    rows = [row for row in trainer.state.log_history if "edgewise/sharpness" in row]
    assert [row["edgewise/lr"] for row in rows] == [expected[0][step] for step in (0, 4, 8)]


def test_a_resumed_monitor_goes_on_counting(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    for checkpoint in (None, os.path.join(tmp_path, "checkpoint-4")):
        trainer = trainer_of(tmp_path, **options)
        trainer.add_callback(MonitorCallback(trainer, every=3, rtol=0.1))
        trainer.train(resume_from_checkpoint=checkpoint)
        assert column(trainer, "edgewise/step") == [0, 3, 6]


# Rows


@pytest.mark.parametrize("every", [1, 5])
def test_each_row_of_the_trainer_has_what_the_warmup_says_and_none_is_doubled(every, tmp_path):
    trainer, callback = warmed(tmp_path, logging_steps=every, max_steps=10)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == list(range(every, 11, every))
    assert [row["edgewise/warmup/updates"] for row in rows] == [row["step"] for row in rows]
    assert all(row["edgewise/warmup/lr_target"] == LR for row in rows)
    assert len(trainer.state.log_history) == len(rows) + 1  # and the summary
    assert callback.warmup.metrics().items() <= rows[-1].items()


class LoggingEachStep(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        control.should_log = True


def test_a_monitor_s_row_takes_none_of_the_trainer_s_away(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=4, logging_steps=1000)
    for callback in (LoggingEachStep(), MonitorCallback(trainer, every=2, rtol=0.3)):
        trainer.add_callback(callback)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [1, 2, 3, 4]
    assert column(trainer, "edgewise/step") == [0, 2]


def test_a_warning_in_training_stands_at_the_line_that_trains(tmp_path):
    calls = itertools.count(1)

    class Unsteady(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * next(calls)

    trainer, callback = warmed(tmp_path, cls=Unsteady, max_steps=4)
    with pytest.warns(UserWarning, match="EdgeWarmup goes on as plain linear warmup") as caught:
        trainer.train()
    assert caught[0].filename == __file__
    assert "evaluated again from the same random state" in callback.warmup.fallback


class Counting(Trainer):
    """Counts, keeps, logs and takes labels out: what people write into a loss."""

    calls, tensor = 0, torch.zeros(())

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.total = {"tokens": []}, torch.zeros(())

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.taken = inputs.pop("labels")
        return super().training_step(model, {**inputs, "labels": self.taken}, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.calls += 1
        self.total += 1
        self.seen["tokens"].append(inputs["input_ids"].numel())
        self.log({"calls": self.calls})
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_a_loss_counts_and_logs_besides_is_exact(smoothing, tmp_path):
    options = {"cls": Counting, "gradient_accumulation_steps": 2, "max_steps": 6}
    options |= {"label_smoothing_factor": smoothing}
    trainer, callback = warmed(tmp_path, **options)
    trainer.add_callback(MonitorCallback(trainer, every=3, rtol=0.1))
    trainer.train()
    assert callback.warmup.num_forwards > 0
    assert trainer.calls == trainer.total == len(trainer.seen["tokens"]) == 12
    assert column(trainer, "calls") == list(range(1, 13))


class Generating(Trainer):
    """Prepares inputs anew at random, as trainers do that generate text."""

    prepared = 0

    def _prepare_inputs(self, inputs):
        self.prepared += 1
        inputs = super()._prepare_inputs(inputs)
        noise = torch.randint(61, inputs["input_ids"].shape, generator=self.generator)
        return inputs | {"input_ids": noise}


def test_preparing_inputs_is_not_repeated(tmp_path):
    rates = []
    for observed in (False, True):
        trainer = trainer_of(tmp_path, cls=Generating, max_steps=6, lr_scheduler_type="constant")
        trainer.generator = torch.Generator().manual_seed(0)
        if observed:
            trainer.add_callback(EdgeWarmupCallback(trainer, linear(warmup_steps=2, lr_init=LR)))
            trainer.add_callback(MonitorCallback(trainer, every=2, rtol=0.1))
        rates.append(run(trainer))
        assert trainer.prepared == 6
    assert rates[0] == rates[1]
