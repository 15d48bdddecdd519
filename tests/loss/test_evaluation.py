"""The loss of one batch: from which state it starts, at which parameters, and what is said where it cannot be taken.

Ladder: the loss function called directly; counted evaluations. Cannot see: state outside of what a snapshot holds.
"""

import copy
import math

import pytest
import torch
from torch import nn

from cases import BY_NAME, CASES, MLP, ids, mse
from edgewise.errors import LossError
from edgewise.isolation import isolated
from edgewise.loss.evaluation import Evaluation
from edgewise.loss.measuring import ALL, Measuring
from edgewise.loss.objective import Objective
from oracles import bits


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_a_loss_is_what_the_function_returns_and_has_a_graph_on_demand(case):
    model, batches = case.build()
    expected = [case.loss_fn(copy.deepcopy(model), batch).item() for batch in batches]
    with isolated(model) as snapshot:
        evaluation = Evaluation(model, case.loss_fn, batches, snapshot, ALL)
        for i, _, batch in evaluation.weighted():
            assert evaluation.loss(i, batch).item() == evaluation.value(i, batch) == expected[i]
            assert evaluation.differentiable(i, batch).requires_grad
            with torch.no_grad():
                assert not evaluation.loss(i, batch).requires_grad


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["own", "copies"])
@pytest.mark.parametrize("name", ["tied-mse", "conv-batchnorm-xent"])
def test_the_loss_as_a_function_is_that_at_other_parameters(name, dtype):
    case = BY_NAME[name]
    model, (batch, *_) = case.build()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.5)
    expected = case.loss_fn(moved, batch).item()
    before = {key: bits(value) for key, value in model.state_dict().items()}
    with isolated(model) as snapshot:
        evaluation = Evaluation(model, case.loss_fn, [batch], snapshot, Measuring(dtype=dtype))
        with evaluation.measuring():
            loss = evaluation.function_of(0, batch)
            other = {key: 1.5 * parameter.detach() for key, parameter in evaluation.parameters.items()}
            assert loss(other).item() == pytest.approx(expected, rel=1e-12 if dtype is None else 1e-5)
    assert {key: bits(value) for key, value in model.state_dict().items()} == before


def test_a_known_value_is_not_computed_again_but_for_a_part_of_the_batch():
    model, (batch, *_) = MLP.build()
    calls = []
    counting = lambda m, b: calls.append(len(b[0])) or mse(m, b)
    with isolated(model) as snapshot:
        evaluation = Evaluation(model, counting, [batch], snapshot, ALL)
        value = evaluation.value(0, batch)
        assert evaluation.known_value(0, batch) == value
        with evaluation.shifted(torch.ones(26, dtype=torch.float64), 1.0):
            assert evaluation.value(0, batch) != value
        assert evaluation.known_value(0, batch) == value  # at θ, not a step away
        assert calls == [5, 5]
        evaluation.known_value(0, tuple(part[:2] for part in batch))
        assert calls == [5, 5, 2]


def test_parameters_come_back_when_a_loss_a_step_away_raises():
    model, batches = MLP.build()
    before = [bits(parameter) for parameter in model.parameters()]
    with isolated(model) as snapshot:
        evaluation = Evaluation(model, lambda m, b: mse(m, b) / 0, batches, snapshot, ALL)
        with (
            pytest.raises(LossError, match="batch 0 is inf"),
            evaluation.shifted(torch.ones(26, dtype=torch.float64), 1.0),
        ):
            evaluation.value(0, batches[0])
        assert [bits(parameter) for parameter in model.parameters()] == before


def test_dropout_masks_are_equal_across_evaluations_under_a_snapshot():
    model = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 2)).double()
    _, batches = MLP.build()
    free = Objective(model, mse, batches[:2])
    assert free.value() != free.value()
    with isolated(model) as snapshot:
        held = Objective(model, mse, batches[:2], snapshot=snapshot)
        assert held.value() == held.value()
        assert torch.equal(held.gradient(), held.gradient())


# Errors


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (
            lambda m, b: (m(b[0]) - b[1]).square(),
            r"batch 1 must be one floating-point number, got shape \(9, 2\)",
        ),
        (lambda m, b: m(b[0]).argmax(), r"got shape \(\) and torch.int64"),
        (lambda m, b: m(b[0]).mean().item(), "batch 1 must be a scalar tensor, got float"),
        (lambda m, b: m(b[0]).mean().detach(), "batch 1 has no graph to the parameters"),
        (lambda m, b: m(b[0]).mean() * math.nan, "batch 1 is nan"),
        (lambda m, b: m(b[0]).square().mean() * math.inf, "batch 1 is inf"),
        (lambda m, b: None, "got NoneType"),
    ],
    ids=["vector", "integer", "float", "no-graph", "nan", "inf", "none"],
)
def test_a_loss_that_cannot_be_measured_is_named_with_its_batch(loss_fn, message):
    model, batches = MLP.build()
    bad_in_second = lambda m, b: mse(m, b) if len(b[0]) == 5 else loss_fn(m, b)
    with pytest.raises(LossError, match=message):
        Objective(model, bad_in_second, batches).gradient()


def test_a_loss_of_one_entry_counts_as_a_scalar():
    model, batches = MLP.build()
    one_entry = lambda m, b: mse(m, b).reshape(1, 1)
    assert Objective(model, one_entry, batches[:1]).value() == Objective(model, mse, batches[:1]).value()


def test_the_users_own_exception_comes_through_with_a_note():
    model, batches = MLP.build()
    own = ZeroDivisionError("mine")

    def loss_fn(model, batch):
        if len(batch[0]) == 2:
            raise own
        return mse(model, batch)

    with pytest.raises(ZeroDivisionError) as caught:
        Objective(model, loss_fn, batches).value()
    assert caught.value is own
    assert caught.value.__notes__ == ["raised by loss_fn on batch 2 of 3"]


def test_of_a_copy_its_precision_is_noted():
    model, batches = MLP.build()
    own = ZeroDivisionError("mine")

    def loss_fn(model, batch):
        raise own

    with pytest.raises(ZeroDivisionError):
        Evaluation(model, loss_fn, batches, None, Measuring(dtype=torch.float32)).value(0, batches[0])
    assert "cast to torch.float32 for the measurement (dtype=)" in own.__notes__[-1]
