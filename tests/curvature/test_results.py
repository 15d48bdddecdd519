"""Which parameters hold the top eigenvector.

Ladder: closed form (a diagonal Hessian, one block a parameter) → dense float64 eigenvectors. Cannot see: two
eigenvalues that are nearly alike, whose eigenvectors any method may mix.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import BY_NAME, MLP, OPT, mse
from edgewise.optimizers.preconditioner import preconditioner_of
from oracles import dense_hessian, preconditioned, trainable

TIGHT = {"rtol": 1e-8, "max_hvps": 500}


def dense_shares(matrix, model, names):
    """Σ v² of each named parameter, v the top eigenvector, entry by entry along the flat vector."""
    top = torch.linalg.eigh(matrix).eigenvectors[:, -1].square()
    shares, start = {}, 0
    for name in names:
        size = dict(model.named_parameters())[name].numel()
        shares[name] = float(top[start : start + size].sum())
        start += size
    assert start == len(top)
    return shares


@pytest.mark.parametrize("name", ["tanh-mlp-mse", "attention-xent", "tied-mse", "linear-bias-unused"])
@pytest.mark.parametrize("hvp", ["reverse", "difference"])
def test_the_shares_are_those_of_the_dense_eigenvector(name, hvp):
    case = BY_NAME[name]
    model, batches = case.build()
    model.eval()
    names = trainable(model)
    expected = dense_shares(dense_hessian(model, case.loss_fn, batches, names), model, names)
    shares = ew.sharpness(model, case.loss_fn, batches, hvp=hvp, num=2, **TIGHT).by_parameter()
    assert shares == pytest.approx(expected, abs=1e-6)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-12)
    assert {type(share) for share in shares.values()} == {float}


def test_of_a_preconditioned_result_they_are_those_of_the_symmetric_form():
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 3)
    names = trainable(model)
    hessian = dense_hessian(model, mse, [batch], names)
    result = ew.preconditioned_sharpness(model, mse, [batch], optimizer, **TIGHT)
    model.zero_grad()
    mse(model, batch).backward()
    parameters = list(model.parameters())
    entries = preconditioner_of(optimizer, parameters, [p.grad for p in parameters]).power(1.0)
    expected = dense_shares(preconditioned(hessian, entries), model, names)
    assert result.by_parameter() == pytest.approx(expected, abs=1e-6)
    plain = ew.sharpness(model, mse, [batch], **TIGHT).by_parameter()
    assert plain == pytest.approx(dense_shares(hessian, model, names), abs=1e-6)
    assert max(abs(plain[name] - share) for name, share in expected.items()) > 0.01  # another vector


def test_in_closed_form_one_parameter_holds_all_of_it():
    """L = ½(1·a² + 5·b² + 3·c²): the top eigenvector is that of b."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(3))

    loss_fn = lambda model, _: 0.5 * (model.a.square() + 5 * model.b.square() + 3 * model.c.square())
    result = ew.sharpness(Three(), loss_fn, [()], num=3, **TIGHT)
    shares = result.by_parameter()
    assert next(iter(shares)) == "b"
    assert shares == pytest.approx({"b": 1.0, "a": 0.0, "c": 0.0}, abs=1e-12)
    warm = ew.sharpness(Three(), loss_fn, [()], start=result, **TIGHT)
    assert warm.by_parameter() == pytest.approx(shares, abs=1e-12)


def test_of_a_block_the_selected_parameters_share():
    model, batches = MLP.build()
    shares = ew.sharpness(model, mse, batches, params="0.*").by_parameter()
    assert set(shares) == {"0.weight", "0.bias"}
    assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-12)


def test_without_an_eigenvector_there_are_no_shares():
    model, batches = MLP.build()
    result = ew.sharpness(model, mse, batches)
    infinite = replace(result, value=math.inf, status=ew.Status.NOT_FINITE)
    with pytest.raises(
        ValueError, match=r"no top eigenvector to share out \(status NOT_FINITE\): measure where"
    ):
        infinite.by_parameter()
