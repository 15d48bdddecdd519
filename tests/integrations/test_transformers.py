"""edgewise in transformers' `Trainer`.

Ladder: a plain torch loop (bit for bit) → the trainer's own schedule and runs without callbacks → runs that stop and go
on. Cannot see: engines that are refused, which are not installed.
"""

import importlib
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import Trainer, TrainerCallback, get_scheduler
from transformers.trainer_utils import SchedulerType

import edgewise as ew
from edgewise.errors import LossError
from edgewise.integrations.transformers import EdgeWarmupCallback, MonitorCallback
from edgewise.integrations.transformers_schedule import own_factor
from integrations.trainers import BATCH, LR, PlainLoop, adamw, column, run, sgd, tiny_gpt2, trainer_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def linear(**options):
    return lambda optimizer: ew.LinearWarmup(optimizer, **options)


def warmed(folder, warmup=ew.EdgeWarmup, **options):
    """A trainer with an EdgeWarmupCallback, and the callback."""
    trainer = trainer_of(folder, **options)
    callback = EdgeWarmupCallback(trainer, warmup)
    trainer.add_callback(callback)
    return trainer, callback


def parameters(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


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


class Stopping(TrainerCallback):
    """Ends the training at a step, in one way or the other."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            if self.error:
                raise self.error
            control.should_training_stop = True


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


# Bad input, before any compute


@pytest.fixture
def untouched(tmp_path):
    """A trainer whose model must not run."""

    class Untouched(Trainer):
        def compute_loss(self, *args, **kwargs):
            pytest.fail("the loss was computed")

    return trainer_of(tmp_path, cls=Untouched)


def test_no_trainer_is_refused():
    with pytest.raises(
        TypeError, match=r"trainer must be a Trainer, got .*: pass the trainer that it is added to"
    ):
        EdgeWarmupCallback(tiny_gpt2())


def test_what_makes_no_warmup_is_refused(untouched):
    with pytest.raises(TypeError, match=r"warmup must be a function of the optimizer .* got 3"):
        EdgeWarmupCallback(untouched, 3)


def test_a_warmup_that_has_a_follower_is_refused(untouched):
    def make(optimizer):
        return ew.EdgeWarmup(optimizer).then(torch.optim.lr_scheduler.ConstantLR(optimizer))

    untouched.add_callback(EdgeWarmupCallback(untouched, make))
    with pytest.raises(TypeError, match="what follows is the schedule of the trainer's arguments"):
        untouched.train()


def test_a_warmup_of_another_optimizer_is_refused(untouched):
    other = ew.EdgeWarmup(adamw(tiny_gpt2()))
    untouched.add_callback(EdgeWarmupCallback(untouched, lambda optimizer: other))
    with pytest.raises(ValueError, match="got one of another optimizer"):
        untouched.train()


def test_a_second_warmup_is_refused(untouched):
    first = EdgeWarmupCallback(untouched)
    with pytest.raises(ValueError, match="has an EdgeWarmupCallback already"):
        EdgeWarmupCallback(untouched)
    first.close()
    EdgeWarmupCallback(untouched)


def test_a_scheduler_besides_is_refused(untouched, tmp_path):
    scheduler = torch.optim.lr_scheduler.ConstantLR(untouched.optimizer)
    callback = EdgeWarmupCallback(untouched)
    untouched.add_callback(callback)
    untouched.lr_scheduler = scheduler
    with pytest.raises(ValueError, match=r"a ConstantLR: pass optimizers=\(optimizer, None\)"):
        untouched.train()
    callback.close()
    with pytest.raises(ValueError, match=r"a ConstantLR: pass optimizers=\(optimizer, None\)"):
        EdgeWarmupCallback(untouched)

    class Scheduling(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            return super().create_scheduler(num_training_steps, optimizer)

    with pytest.raises(ValueError, match="that Scheduling makes"):
        EdgeWarmupCallback(trainer_of(tmp_path, cls=Scheduling))


@pytest.mark.parametrize("steps", [10, 0.1])
def test_a_length_in_the_arguments_besides_warns(steps, tmp_path):
    trainer = trainer_of(tmp_path, warmup_steps=steps)
    with pytest.warns(UserWarning, match=f"warmup_steps={steps} of the arguments is not used") as caught:
        EdgeWarmupCallback(trainer)
    assert caught[0].filename == __file__


def test_a_callback_that_was_not_added_is_told(untouched):
    callback = EdgeWarmupCallback(untouched)
    with pytest.raises(
        ValueError, match=r"not among its callbacks: add it by trainer.add_callback\(callback\)"
    ):
        untouched.train()
    untouched.add_callback(callback)
    assert callback in untouched.callback_handler.callbacks


def test_a_callback_that_is_closed_leaves_the_trainer_alone(tmp_path):
    trainer, callback = warmed(tmp_path, max_steps=4)
    trainer.remove_callback(callback)
    callback.close()
    assert run(trainer) == run(trainer_of(tmp_path, max_steps=4))


def test_a_callback_that_is_closed_and_left_in_is_told(untouched):
    callback = EdgeWarmupCallback(untouched)
    untouched.add_callback(callback)
    callback.close()
    with pytest.raises(
        ValueError, match="set by a LambdaLR, not by this EdgeWarmupCallback, which was closed"
    ):
        untouched.train()


@pytest.mark.parametrize("make", [EdgeWarmupCallback, MonitorCallback])
def test_a_training_that_is_begun_in_another_way_is_told(make, untouched):
    untouched.add_callback(make(untouched))
    with pytest.raises(ValueError, match=r"follows the training that trainer.train\(\) begins"):
        Trainer.train(untouched)


@pytest.mark.parametrize("make", [EdgeWarmupCallback, MonitorCallback])
def test_a_callback_of_another_trainer_is_refused(make, untouched, tmp_path):
    untouched.add_callback(make(trainer_of(tmp_path)))
    with pytest.raises(ValueError, match="was made for another trainer"):
        untouched.train()


@pytest.mark.parametrize("make", [EdgeWarmupCallback, MonitorCallback])
def test_engines_that_own_the_step_are_refused(make, untouched, monkeypatch):
    monkeypatch.setattr(untouched, "is_deepspeed_enabled", True)
    with pytest.raises(ValueError, match=r"DeepSpeed.*warmup\.export\(\)"):
        make(untouched)
    monkeypatch.setattr(untouched, "is_deepspeed_enabled", False)
    monkeypatch.setattr(untouched, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match=r"FSDP1.*warmup\.export\(\)"):
        make(untouched)
    monkeypatch.setattr(untouched, "is_fsdp_enabled", False)
    monkeypatch.setattr(untouched, "get_tp_size", lambda: 2)
    with pytest.raises(ValueError, match="tensor parallelism"):
        make(untouched)


def test_options_that_a_monitor_does_not_have_are_refused(untouched):
    with pytest.raises(TypeError, match="maximal_overhead"):
        MonitorCallback(untouched, maximal_overhead=0.02)
    with pytest.raises(TypeError, match="batches=: leave it out"):
        MonitorCallback(untouched, batches=[])


def test_a_monitor_checks_its_options_before_anything_is_computed(untouched):
    untouched.add_callback(MonitorCallback(untouched, every=0))
    with pytest.raises(ValueError, match="every"):
        untouched.train()


def test_a_step_that_differentiates_by_itself_is_told(tmp_path):
    class Differentiating(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    trainer, _ = warmed(tmp_path, cls=Differentiating, max_steps=2)
    before = parameters(trainer)
    with pytest.raises(
        LossError, match=r"training_step of Differentiating does not call self.accelerator.backward"
    ):
        trainer.train()
    assert equal(before, parameters(trainer))


def test_without_transformers_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("edgewise.integrations.transformers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'edgewise\[transformers\]'"):
        importlib.import_module("edgewise.integrations.transformers")


# The page


def test_the_page_runs_in_order(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "integrations" / "transformers.md").read_text(
        encoding="utf-8"
    )
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
