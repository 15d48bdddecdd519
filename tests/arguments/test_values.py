"""The checks of numbers, names and functions, and the words they use.

Ladder: closed form (a table of what is allowed). Cannot see: whether callers use the checks; `test_entries.py` does.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam

import edgewise as ew
from arguments.entries import Run, mse
from edgewise.arguments import (
    UnknownNameError,
    a_function,
    an_optimizer,
    described,
    known_name,
    name_patterns,
    nonnegative_count,
    nonnegative_number,
    positive_count,
    positive_number,
    positive_share,
)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3)])
def test_a_positive_number_comes_back_as_a_float(value):
    number = positive_number("lr", value)
    assert type(number) is float
    assert number == value


def test_zero_is_nonnegative_and_not_positive():
    assert nonnegative_number("lr", 0) == 0.0
    with pytest.raises(ValueError, match=r"lr must be a finite number greater than 0, got 0\."):
        positive_number("lr", 0)


def test_a_count_comes_back_as_an_int():
    count = positive_count("steps", np.int32(7))
    assert type(count) is int
    assert count == 7
    assert nonnegative_count("seed", 0) == 0


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (positive_number, -1.0, ValueError, r"x must be a finite number greater than 0, got -1\.0"),
        (positive_number, math.nan, ValueError, "finite"),
        (positive_number, math.inf, ValueError, "finite"),
        (positive_number, True, TypeError, "x must be a number, got True of type bool"),
        (positive_number, "1", TypeError, "got '1' of type str"),
        (positive_number, None, TypeError, "got None"),
        (nonnegative_number, -1e-9, ValueError, "0 or greater, got -1e-09"),
        (nonnegative_number, math.nan, ValueError, "finite"),
        (nonnegative_number, False, TypeError, "of type bool"),
        (positive_count, 0, ValueError, "x must be 1 or greater, got 0"),
        (positive_count, -3, ValueError, "got -3"),
        (positive_count, 2.0, TypeError, r"whole number, got 2\.0 of type float"),
        (positive_count, True, TypeError, "got True of type bool"),
        (nonnegative_count, -1, ValueError, "x must be 0 or greater, got -1"),
        (nonnegative_count, False, TypeError, "got False of type bool"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(check, value, error, message):
    with pytest.raises(error, match=message):
        check("x", value)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"unknown figure 'fig11'; known: fig1, fig2\. Did you mean 'fig1'\?"
    ):
        known_name("figure", "fig11", ["fig2", "fig1"])
    with pytest.raises(UnknownNameError, match=r"known: fig1\.$"):
        known_name("figure", "zzz", ["fig1"])
    assert known_name("figure", "fig1", iter(["fig1"])) == "fig1"


def test_a_share_is_at_most_one():
    assert positive_share("rtol", 1, "") == 1.0
    with pytest.raises(ValueError, match=r"rtol must be above 0 and at most 1, got 1\.5: no more"):
        positive_share("rtol", 1.5, "no more")


def test_patterns_come_back_as_a_list_once():
    assert name_patterns("params", None) is None
    assert name_patterns("params", "a.*") == ["a.*"]
    assert name_patterns("params", (name for name in ("a", "b"))) == ["a", "b"]
    assert name_patterns("params", {"a": 1}.keys()) == ["a"]


def test_a_generator_of_patterns_is_read_once():
    run = Run()
    found = ew.sharpness(run.model, run.loss_fn, [run.batch], params=(name for name in ["0.*"]))
    assert found.value == ew.sharpness(run.model, run.loss_fn, [run.batch], params="0.*").value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (nn.Linear, "the class Linear"),
        (nn.Linear(1, 1), "a Linear"),
        (Adam([torch.ones(1)]), "an Adam"),
        (mse, "the function mse"),
        (torch.ones(2, 1), "a tensor of shape (2, 1) and torch.float32"),
        (object(), "an object"),
        ("mse", "'mse' of type str"),
        (2.5, "2.5 of type float"),
    ],
)
def test_a_value_is_described_in_few_words(value, words):
    assert described(value) == words
    assert len(described([value] * 1000)) < 300


def test_what_python_cannot_tell_of_c_code_is_left_to_the_call():
    assert a_function("fn", torch.relu, "a tensor", count=1) is torch.relu
    assert a_function("fn", dict.fromkeys, "keys", count=2) is not None


class AcceleratedOptimizer:
    """A wrapper by the name that accelerate gives it."""

    __module__ = "accelerate.optimizer"

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_wrapper_is_looked_into_by_every_entry():
    run = Run()
    wrapped = AcceleratedOptimizer(AcceleratedOptimizer(run.optimizer))
    assert an_optimizer("optimizer", wrapped) is run.optimizer
    assert ew.stability_limit(wrapped) == ew.stability_limit(run.optimizer)
    assert ew.critical_lr(run.model, wrapped, mse, run.batch) == ew.critical_lr(
        run.model, run.optimizer, mse, run.batch
    )
    assert ew.Monitor(run.model, wrapped, mse).observe(run.batch).fraction > 0
    assert ew.EdgeWarmup(wrapped).optimizer is run.optimizer
    with pytest.raises(
        TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got an AcceleratedOptimizer"
    ):
        ew.stability_limit(AcceleratedOptimizer(None))


class DeepSpeedOptimizerWrapper(AcceleratedOptimizer):
    """As accelerate's, which is one of its wrappers by class."""

    __module__ = "accelerate.utils.deepspeed"


class BF16_Optimizer(torch.optim.SGD):
    __module__ = "deepspeed.runtime.bf16_optimizer"


class FusedAdam(torch.optim.Adam):
    __module__ = "deepspeed.ops.adam.fused_adam"


def test_an_optimizer_whose_engine_steps_is_refused_with_what_to_do_instead():
    run = Run()
    engines = BF16_Optimizer(run.model.parameters(), lr=0.1)
    for given in (DeepSpeedOptimizerWrapper(run.optimizer), engines, AcceleratedOptimizer(engines)):
        for call in (
            ew.EdgeWarmup,
            ew.CatapultWarmup,
            ew.stability_limit,
            partial(ew.Monitor, run.model, loss_fn=mse),
        ):
            with pytest.raises(
                TypeError, match=r"got an? \w+: DeepSpeed's engine .* warmup\.export\(\) says how"
            ):
                call(optimizer=given)
    assert run.calls == 0
    ordinary = FusedAdam(run.model.parameters())
    assert an_optimizer("optimizer", ordinary) is ordinary
