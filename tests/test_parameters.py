"""Flat vectors, selection by name, and inner products.

Ladder: closed form. Cannot see: the order of entries that a solver assumes; test_objective holds it densely.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgewise as ew
from cases import BY_NAME, CASES, ids, mlp
from edgewise.arguments import UnknownNameError
from edgewise.parameters import FlatSum, flatten, inner, select_parameters, unflatten

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


def sparse_rows():
    """Rows 1 (twice) and 3 of a matrix of five, as an embedding's gradient."""
    return torch.sparse_coo_tensor(
        [[1, 3, 1]], torch.tensor([[1.0, 2], [3, 4], [5, 6]]), (5, 2), check_invariants=True
    )


def test_inner_and_sums_take_sparse_gradients_as_what_they_stand_for():
    dense = torch.tensor([[0.0, 0], [6, 8], [0, 0], [3, 4], [0, 0]])
    weights = torch.arange(10.0).view(5, 2)
    assert inner([sparse_rows()], [weights]) == float((dense * weights).sum())
    total = FlatSum([weights, torch.ones(2)])
    total.add(0.5, 0, sparse_rows())
    assert total.vector().tolist() == [*(0.5 * dense).flatten().tolist(), 0.0, 0.0]
    total.add(2.0, 1, torch.ones(2))
    total.add(2.0, 0, sparse_rows())
    assert total.vector().tolist() == [*(2.5 * dense).flatten().tolist(), 2.0, 2.0]


def test_a_sum_is_made_in_one_piece_and_empties_its_parts():
    parts = [(0.5, [torch.ones(2, 2), None]), (2.0, [torch.ones(2, 2), torch.ones(1)])]
    total = FlatSum([torch.zeros(2, 2), torch.zeros(1)])
    assert total.vector().tolist() == [0.0] * 5
    before = total.vector().data_ptr()
    for share, tensors in parts:
        total.add_all(share, tensors)
        assert tensors == [None, None]
    assert total.vector().tolist() == [2.5, 2.5, 2.5, 2.5, 2.0]
    assert total.vector().data_ptr() == before


# Complex parameters


class Spectral(nn.Module):
    """A filter in Fourier space, with complex weights beside real ones."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.filter = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.ifft(torch.fft.fft(x) * self.filter).real * self.gain


def filter_loss(model, x):
    return model(x).square().mean()


X = torch.ones(2, 4)
COMPLEX = {
    "sharpness": lambda m, o: ew.sharpness(m, filter_loss, [X]),
    "preconditioned_sharpness": lambda m, o: ew.preconditioned_sharpness(m, filter_loss, [X], o),
    "hessian": lambda m, o: ew.hessian(m, filter_loss, [X]).__enter__(),
    "critical_lr": lambda m, o: ew.critical_lr(m, o, filter_loss, X),
    "Monitor": lambda m, o: ew.Monitor(m, o, filter_loss),
    "EdgeWarmup": lambda m, o: ew.EdgeWarmup(o),
    "CatapultWarmup": lambda m, o: ew.CatapultWarmup(o),
    "LinearWarmup": lambda m, o: ew.LinearWarmup(o, warmup_steps=5, lr_init="critical"),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_are_refused_by_name_before_any_loss(name):
    model = Spectral()
    model.register_forward_pre_hook(lambda *_: pytest.fail("evaluated"))
    with pytest.raises(
        TypeError, match=r"parameter (filter|1 of group 0) of shape \(4,\) is complex.*view_as_complex"
    ):
        COMPLEX[name](model, torch.optim.Adam(model.parameters()))


def test_a_complex_parameter_that_is_not_measured_is_no_matter():
    """The mean of x̂ᵢ²gᵢ² over four entries: H = 2·x̂ᵢ²/4 for each gain."""
    model = Spectral()
    expected = 2 * torch.fft.ifft(torch.fft.fft(X) * model.filter).real[0].detach().square().max() / 4
    found = ew.sharpness(model, filter_loss, [X], params="gain")
    assert found.value == pytest.approx(float(expected), rel=1e-3)
    ew.LinearWarmup(torch.optim.Adam(model.parameters()), warmup_steps=5)


def test_a_complex_group_that_comes_later_is_refused_by_the_search():
    real, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([real], lr=0.1)
    warmup = ew.LinearWarmup(optimizer, warmup_steps=5, lr_init="critical")
    optimizer.add_param_group({"params": [late], "lr": 0.1})
    real.square().sum().backward()
    with pytest.raises(TypeError, match=r"parameter 0 of group 1 of shape .* is complex"):
        warmup.observe(lambda: real.square().sum())
