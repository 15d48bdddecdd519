"""The loss over batches and its gradient, as functions of the parameters.

Ladder: dense float64 autograd by torch.func (oracles.py), hypothesis for splitting and permuting.
Cannot see: a loss function that does not return the mean over its batch; nothing can.
"""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import BY_NAME, CASES, MLP, ids, mse
from edgewise.isolation import isolated
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective
from oracles import bits, dense_gradient, dense_value

# Two float64 evaluations of sums of fewer than 100 terms of order 1: they agree to a few 100 ε.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_value_and_gradient_equal_the_dense_ones(case, num_batches):
    model, batches = case.build()
    batches = batches[:num_batches]
    with isolated(model) as snapshot:
        objective = Objective(model, case.loss_fn, batches, snapshot=snapshot)
        assert objective.value() == pytest.approx(dense_value(model, case.loss_fn, batches), rel=1e-12)
        torch.testing.assert_close(
            objective.gradient(), dense_gradient(model, case.loss_fn, batches), **CLOSE
        )


@given(cuts=st.sets(st.integers(1, 15), max_size=4), order=st.randoms(use_true_random=False))
def test_splitting_and_permuting_batches_changes_nothing(cuts, order):
    model, batches = MLP.build()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    edges = [0, *sorted(cuts), 16]
    pieces = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    order.shuffle(pieces)
    whole, split = Objective(model, mse, [(x, y)]), Objective(model, mse, pieces)
    assert split.value() == pytest.approx(whole.value(), rel=1e-12)
    torch.testing.assert_close(split.gradient(), whole.gradient(), **CLOSE)


def test_a_data_loader_is_a_collection_of_batches():
    model, (first, *_) = MLP.build()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*first), batch_size=2)  # 2 + 2 + 1
    assert Objective(model, mse, loader).value() == pytest.approx(dense_value(model, mse, [first]), rel=1e-12)


def test_sizes_are_read_from_the_first_tensor_of_any_structure():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(model.weight)
    batches = [{"id": "a", "x": torch.ones(3, 1)}, {"id": "b", "x": torch.full((1, 1), 3.0)}]
    loss_fn = lambda model, batch: model(batch["x"].double()).mean()
    assert Objective(model, loss_fn, batches).value() == (3 * 1 + 1 * 3) / 4


def test_parameters_without_a_gradient_have_a_gradient_of_zero():
    case = BY_NAME["linear-bias-unused"]
    model, batches = case.build()
    objective = Objective(model, case.loss_fn, batches[:1])
    names, sizes = list(objective.originals), [p.numel() for p in objective.tensors]
    gradients = dict(zip(names, objective.gradient().split(sizes), strict=True))
    assert (gradients["offset"] == 1).all()
    assert (gradients["unused"] == 0).all()


def test_a_block_is_the_block_of_the_gradient():
    """In the model's order, whatever that of the patterns."""
    model, batches = MLP.build()
    objective = Objective(model, mse, batches, measuring=Measuring(params=["2.weight", "0.bias"]))
    whole = dense_gradient(model, mse, batches).split([p.numel() for p in model.parameters()])
    assert (objective.size, list(objective.originals)) == (12, ["0.bias", "2.weight"])
    torch.testing.assert_close(objective.gradient(), torch.cat([whole[1], whole[2]]), **CLOSE)


@pytest.mark.parametrize("dtype", [None, torch.float32], ids=["own", "copies"])
@pytest.mark.parametrize("step", [0.0, 0.1, -0.3])
def test_a_step_away_is_the_loss_of_the_moved_model(step, dtype):
    model, batches = MLP.build()
    before = [bits(parameter) for parameter in model.parameters()]
    moved = copy.deepcopy(model)
    direction = torch.linspace(-1, 1, 26, dtype=torch.float64)
    with torch.no_grad():
        flat = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(flat + step * direction, moved.parameters())
    with isolated(model) as snapshot:
        objective = Objective(model, mse, batches, snapshot=snapshot, measuring=Measuring(dtype=dtype))
        close = CLOSE if dtype is None else {"rtol": 1e-4, "atol": 1e-5}
        along = direction.to(objective.dtype)
        torch.testing.assert_close(
            objective.gradient_at(along, step).double(), dense_gradient(moved, mse, batches), **close
        )
        value = objective.value_at(along, step)
        assert value == pytest.approx(dense_value(moved, mse, batches), rel=close["rtol"])
        values = objective.values_at(along, step)
        assert value == pytest.approx(sum(v * s for v, s in zip(values, objective.shares, strict=True)))
        assert objective.value() == objective.value_at(along, 0.0)
    assert [bits(parameter) for parameter in model.parameters()] == before


def test_the_loss_a_step_away_may_be_infinite_where_each_batch_has_its_own_say():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    loss_fn = lambda m, x: m(x).exp().mean()
    with isolated(model) as snapshot:
        objective = Objective(model, loss_fn, [torch.ones(2, 1), torch.zeros(2, 1)], snapshot=snapshot)
        assert objective.values_at(torch.ones(1), 1e3) == [math.inf, 1.0]
        assert objective.value() == pytest.approx((math.e + 1) / 2)


def test_a_frozen_parameter_made_trainable_enters():
    case = BY_NAME["frozen-layer"]
    model, batches = case.build()
    frozen = Objective(model, case.loss_fn, batches).size
    model.requires_grad_(True)
    assert Objective(model, case.loss_fn, batches).size == frozen + 16


# Errors


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (torch.zeros(4, 3), TypeError, r"got one Tensor: write \[batch\]"),
        ({"x": torch.zeros(4, 3)}, TypeError, r"got one dict: write \[batch\]"),
        (iter([torch.zeros(4, 3)]), TypeError, r"it is an iterator.*list\(batches\)"),
        ((x for x in [torch.zeros(4, 3)]), TypeError, "iterator"),
        ([], ValueError, "batches is empty"),
    ],
    ids=["tensor", "dict", "iterator", "generator", "empty"],
)
def test_bad_batches_are_refused_before_any_loss(batches, error, message):
    calls = []
    with pytest.raises(error, match=message):
        Objective(nn.Linear(3, 1), lambda *a: calls.append(a), batches)
    assert calls == []


def test_batches_without_a_size_are_refused_unless_there_is_one():
    model = nn.Linear(1, 1)
    loss_fn = lambda model, batch: model(torch.full((1, 1), float(batch))).mean()
    assert math.isfinite(Objective(model, loss_fn, [2]).value())
    with pytest.raises(ValueError, match="cannot tell the size of batch 0"):
        Objective(model, loss_fn, [2, 3]).value()
