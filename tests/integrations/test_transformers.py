"""Rates and losses of a warmup in transformers' `Trainer`.

Ladder: a plain torch loop (bit for bit) → the trainer's own schedule → runs that stop and go on. Cannot see: devices
other than the CPU.
"""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType

import edgewise as ew
from edgewise.integrations.transformers import EdgeWarmupCallback
from edgewise.integrations.transformers_schedule import own_factor
from integrations.trainers import (
    BATCH,
    LR,
    PlainLoop,
    Stopping,
    adamw,
    column,
    equal,
    linear,
    parameters,
    run,
    sgd,
    tiny_gpt2,
    trainer_of,
    warmed,
)

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")]


# Beside a plain loop


KINDS = {
    "plain": ({}, {}),
    "accumulation": ({"gradient_accumulation_steps": 2}, {"accumulation": 2}),
    "accumulation and clipping": (
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
        {"accumulation": 2, "clip": 0.1},
    ),
    "bf16": ({"bf16": True}, {"bf16": True}),
    "cosine": ({"lr_scheduler_type": "cosine"}, {"schedule": "cosine"}),
    "a large target": ({"lr": 0.3}, {"lr": 0.3}),
    "sgd": ({"optimizer": sgd, "lr": 0.5}, {"optimizer": sgd, "lr": 0.5}),
}
WARMUPS = {
    "linear": linear(warmup_steps=6),
    "critical": linear(warmup_steps=6, lr_init="critical"),
    "catapult": ew.CatapultWarmup,
}


@pytest.mark.parametrize("kind", KINDS)
def test_rates_and_losses_are_those_of_a_plain_loop(kind, tmp_path):
    ours, theirs = KINDS[kind]
    trainer, callback = warmed(tmp_path, **ours)
    rates, losses = run(trainer)
    plain = PlainLoop(**theirs).run()
    assert rates == plain.rates
    assert losses == plain.losses
    assert equal(parameters(trainer), plain.model.parameters())
    assert callback.warmup.num_forwards == plain.warmup.num_forwards
    assert callback.warmup.num_steps == 20
    assert len(set(rates)) > 5  # they were moved


@pytest.mark.parametrize("kind", WARMUPS)
def test_other_warmups_are_those_of_a_plain_loop(kind, tmp_path):
    trainer, callback = warmed(tmp_path, WARMUPS[kind], optimizer=sgd, lr=30.0, gradient_accumulation_steps=2)
    rates, losses = run(trainer)
    plain = PlainLoop(make=WARMUPS[kind], optimizer=sgd, lr=30.0, accumulation=2).run()
    assert (rates, losses) == (plain.rates, plain.losses)
    assert callback.warmup.num_forwards == plain.warmup.num_forwards
    assert (callback.warmup.num_forwards > 0) == (kind != "linear")
    assert 0 < rates[0] < 30.0


def test_an_optimizer_that_the_trainer_makes_is_warmed_up(tmp_path):
    """It has groups with and without weight decay."""
    trainer = trainer_of(tmp_path, max_steps=12)
    trainer.optimizer = None
    callback = EdgeWarmupCallback(trainer)
    trainer.add_callback(callback)
    rates, _ = run(trainer)
    assert len(callback.warmup.optimizer.param_groups) == 2
    assert callback.warmup.report().lr_target == LR
    assert 0 < rates[0] < LR


# What follows


@pytest.mark.parametrize(
    "schedule", ["linear", "cosine", "constant_with_warmup", "polynomial", "inverse_sqrt"]
)
def test_after_the_warmup_the_rates_are_those_of_the_trainer_s_own_schedule(schedule, tmp_path):
    options = {"max_steps": 12, "lr_scheduler_type": schedule}
    own = trainer_of(tmp_path, warmup_steps=4, **options)
    trainer, _ = warmed(tmp_path, linear(warmup_steps=4), **options)
    expected, rates = run(own)[0], run(trainer)[0]
    assert rates[:4] == pytest.approx([LR * share for share in (0.25, 0.5, 0.75, 1.0)])
    assert rates[4:] == pytest.approx(expected[4:], rel=1e-12)


ARGUMENTS = {
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 5},
}
REFUSED = ("reduce_lr_on_plateau", "greedy")


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType if kind.value not in REFUSED])
def test_every_schedule_that_is_a_factor_can_follow(kind, tmp_path):
    trainer = trainer_of(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=ARGUMENTS.get(kind))
    factor = own_factor(trainer.args, LR, 20)
    own = get_scheduler(kind, adamw(tiny_gpt2()), 7, 20, ARGUMENTS.get(kind)).lr_lambdas[0]
    assert [factor(update, 7) for update in range(7, 21)] == [own(update) for update in range(7, 21)]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_schedule_that_needs_a_metric_is_refused(kind, tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.args.lr_scheduler_type = SchedulerType(kind)  # the arguments ask for an evaluation besides
    with pytest.raises(TypeError, match=f"lr_scheduler_type must be .* got '{kind}'"):
        EdgeWarmupCallback(trainer)


def test_arguments_of_a_schedule_are_tried_at_once(tmp_path):
    with pytest.raises(TypeError, match="num_decay_steps"):
        EdgeWarmupCallback(trainer_of(tmp_path, lr_scheduler_type="warmup_stable_decay"))


# Resume


@pytest.mark.parametrize("stopped", [3, 14])
@pytest.mark.parametrize("warmup", [ew.EdgeWarmup, linear(warmup_steps=6, lr_init="critical")])
def test_a_resumed_run_has_the_same_rates_and_losses_bit_for_bit(warmup, stopped, tmp_path):
    options = {"dropout": 0.1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1}
    options |= {"save_strategy": "steps", "save_steps": stopped}
    whole, _ = warmed(tmp_path, warmup, **options)
    rates, losses = run(whole)
    resumed, callback = warmed(tmp_path, warmup, **options)
    again = run(resumed, resume_from_checkpoint=os.path.join(tmp_path, f"checkpoint-{stopped}"))
    assert again == (rates, losses)  # those before are in the checkpoint
    assert equal(parameters(whole), parameters(resumed))
    assert callback.warmup.report().updates == 20


def test_a_resumed_run_may_end_elsewhere(tmp_path):
    make, options = linear(warmup_steps=4), {"save_strategy": "steps", "save_steps": 8}
    warmed(tmp_path, make, max_steps=16, **options)[0].train()
    longer, _ = warmed(tmp_path, make, max_steps=24, **options)
    rates, _ = run(longer, resume_from_checkpoint=os.path.join(tmp_path, "checkpoint-8"))
    own = get_scheduler("linear", sgd(tiny_gpt2()), 4, 24).lr_lambdas[0]
    assert rates[8:] == pytest.approx([LR * own(update) for update in range(8, 24)])


def test_each_training_begins_a_warmup_at_the_same_rates_as_the_trainer_s_own_does(tmp_path):
    own = trainer_of(tmp_path, warmup_steps=4, max_steps=12)
    trainer, callback = warmed(tmp_path, linear(warmup_steps=4), max_steps=12)
    for stopping in (own, trainer):
        stopping.add_callback(Stopping(7))
    for _ in range(2):
        expected, rates = run(own)[0], run(trainer)[0]
        assert len(rates) == 7
        assert rates[4:] == pytest.approx(expected[4:], rel=1e-12)
        assert rates[0] == LR / 4
        assert callback.warmup.report().updates == 7


def test_a_model_that_is_made_anew_for_each_training_is_warmed_up_alike(tmp_path):
    trainer, callback = warmed(tmp_path, max_steps=12)
    trainer.model_init = lambda trial=None: tiny_gpt2()
    first, warmup = run(trainer), callback.warmup
    assert run(trainer) == first
    assert callback.warmup is not warmup


class Narrow(Trainer):
    """Runs out of memory in the middle of the first update, once."""

    calls = 0

    def compute_loss(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(*args, **kwargs)


def test_a_training_that_begins_again_with_smaller_batches_begins_its_warmup_again(tmp_path):
    options = {"optimizer": sgd, "lr": 100.0, "gradient_accumulation_steps": 2, "max_steps": 12}
    make = WARMUPS["critical"]
    trainer, callback = warmed(tmp_path, make, cls=Narrow, auto_find_batch_size=True, **options)
    found = run(trainer)
    smaller = trainer._train_batch_size
    assert smaller < BATCH
    assert found == run(warmed(tmp_path, make, per_device_train_batch_size=smaller, **options)[0])
    assert callback.warmup.report().updates == 12


# The page


def test_the_page_runs_in_order(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "transformers.md").read_text(encoding="utf-8")
    first, other, replay = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    made = trainer_of(tmp_path, max_steps=12, lr_scheduler_type="cosine")
    names = {"model": made.model, "arguments": made.args, "dataset": made.train_dataset, "num_steps": 12}
    exec(compile(first, "transformers.md", "exec"), names)
    rates = column(names["trainer"], "learning_rate")
    found = names["callback"]
    found.close()
    exec(compile(other, "transformers.md", "exec"), names)
    names |= {"callback": found, "optimizer": sgd(made.model)}
    exec(compile(replay, "transformers.md", "exec"), names)
    names["trainer"].train()
    assert column(names["trainer"], "learning_rate") == pytest.approx(rates, rel=1e-9)
    assert rates[0] < max(rates) > rates[-1]
