"""Bad input to the callbacks for transformers' `Trainer`: clear errors before anything is computed.

Oracle: the messages. Cannot see: engines that are not installed, of which a stand-in is refused.
"""

import importlib
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer
from transformers.training_args import OptimizerNames

import edgewise as ew
from edgewise.errors import LossError
from edgewise.integrations.transformers import EdgeWarmupCallback, MonitorCallback
from edgewise.integrations.transformers_schedule import stepping_optimizer
from integrations.trainers import LR, adamw, equal, parameters, run, tiny_gpt2, trainer_of, warmed

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in ("Deprecation", "Future")]


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
def test_an_optimizer_of_another_model_is_refused(make, untouched):
    untouched.optimizer = adamw(tiny_gpt2(), LR)
    untouched.add_callback(make(untouched))
    with pytest.raises(
        ValueError, match=r"found no parameter of GPT2LMHeadModel .* which is another model's"
    ):
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


@pytest.mark.parametrize("name", ["lomo", "adamw_torch"])
def test_an_optimizer_that_steps_during_backward_is_refused(name, untouched):
    untouched.args.optim = OptimizerNames(name)
    if name != "lomo":
        untouched.optimizer = LayerWiseDummyOptimizer(lr=LR)
    with pytest.raises(TypeError, match=f"optim must name an optimizer whose step.* got '{name}'"):
        stepping_optimizer(untouched)


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
