"""Flat vectors, selection by name, and inner products.

Ladder: closed form. Cannot see: the order of entries that a solver assumes; test_objective holds it densely.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import BY_NAME, CASES, ids, mlp
from edgewise.arguments import UnknownNameError
from edgewise.parameters import flatten, inner, select_parameters, unflatten

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes)
def test_unflatten_undoes_flatten(shapes):
    tensors = [torch.randn(shape) for shape in shapes]
    flat = flatten(tensors)
    assert flat.shape == (sum(t.numel() for t in tensors),)
    for back, tensor in zip(unflatten(flat, tensors), tensors, strict=True):
        assert torch.equal(back, tensor)
        assert back.shape == tensor.shape


def test_flatten_is_in_order():
    assert flatten([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(5.0)]).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_unflatten_refuses_another_length(shape):
    with pytest.raises(ValueError, match=r"expected a vector of shape \(3,\), got"):
        unflatten(torch.zeros(shape), [torch.zeros(3)])


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_all_trainable_parameters_are_selected_once_in_the_models_order(case):
    model, _ = case.build()
    selected = select_parameters(model)
    assert list(selected) == [n for n, p in model.named_parameters() if p.requires_grad]
    assert len({id(p) for p in selected.values()}) == len(selected)
    assert all(selected[name] is model.get_parameter(name) for name in selected)


def test_tied_parameters_are_selected_once():
    model, _ = BY_NAME["tied-mse"].build()
    assert list(select_parameters(model)) == ["first.weight", "first.bias", "out.weight", "out.bias"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("0.*", ["0.weight", "0.bias"]),
        (["*.bias", "2.weight"], ["0.bias", "2.weight", "2.bias"]),
        (("2.bias", "0.bias"), ["0.bias", "2.bias"]),
        (iter(["0.weight"]), ["0.weight"]),
    ],
)
def test_patterns_select_in_the_models_order(patterns, names):
    assert list(select_parameters(mlp(), patterns)) == names


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ("conv.*", UnknownNameError, r"'conv\.\*' matches no parameter; the names are: 0\.weight"),
        (["0.*", "x"], UnknownNameError, "'x' matches no"),
        ("0.weight", ValueError, r"none of the 1 selected parameters requires a gradient"),
    ],
)
def test_a_selection_that_selects_nothing_says_why(patterns, error, message):
    model = mlp()
    model[0].requires_grad_(False)
    with pytest.raises(error, match=message):
        select_parameters(model, patterns)


def test_a_frozen_model_has_nothing_to_select():
    with pytest.raises(ValueError, match="none of the 2 selected parameters"):
        select_parameters(nn.Linear(1, 1).requires_grad_(False))


def test_inner_accumulates_in_float64():
    # 1e8 + 1 - 1e8 is 0 in float32: the products of float32 entries are exact in float64
    a = [torch.tensor([1e4, 1.0]), torch.tensor([1e4])]
    b = [torch.tensor([1e4, 1.0]), torch.tensor([-1e4])]
    assert inner(a, b) == 1.0
    assert inner([], []) == 0.0
    assert math.isnan(inner([torch.tensor([math.nan])], [torch.ones(1)]))


def test_inner_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="zip"):
        inner([torch.ones(1)], [])
