"""Sharpness and preconditioned sharpness of models.

Ladder: closed form (linear and logistic regression, scalings) → dense float64 by forward-over-reverse, with
P from the optimizer's state (which test_preconditioner derives from real steps). Cannot see: an eigenvalue
that a random start misses by chance.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgewise as ew
from cases import BY_NAME, CASES, MLP, OPT, PRECONDITIONED, ids, mlp, mse, train_step, vectors
from edgewise import PreconditionerError, Status, preconditioned_sharpness, sharpness
from edgewise.arguments import UnknownNameError
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.errors import LossError
from edgewise.optimizers.preconditioner import known_optimizers, preconditioner_of
from oracles import dense_gradient, dense_hessian, preconditioned, theta_of, top, trainable

# With rtol = 1e-8 the value misses an eigenvalue by at most the residual 1e-8·λ, and usually by its square.
TIGHT = {"rtol": 1e-8, "max_hvps": 500}
CLOSE = 2e-8
NUM_SEEDS = 100
REPEATS = 2  # evaluations of the first batch, to see that its loss repeats


def counted(loss_fn):
    calls = []

    def wrapped(model, batch):
        calls.append(batch)
        return loss_fn(model, batch)

    return wrapped, calls


def selected(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_linear_regression_in_closed_form():
    """L = mean (x·w − y)², H = 2/n XᵀX."""
    model = nn.Linear(5, 1, bias=False).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    result = sharpness(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [(x, y)], num=5, **TIGHT)
    torch.testing.assert_close(result.values, top(2 / 20 * x.T @ x, 5), rtol=CLOSE, atol=0)


@pytest.mark.parametrize("weights", [(1.0, 2.0, 0.5), (1.5, -1.0, 0.7, 2.0)])
def test_a_deep_linear_net_in_closed_form(weights):
    """f = πx, π = Πwᵢ, L = ½ mean (πx − y)²: H_ij = m₂ ππ/(wᵢwⱼ) + [i≠j](m₂π − m_xy) π/(wᵢwⱼ)."""
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in weights)).double()
    for layer, weight in zip(model, weights, strict=True):
        nn.init.constant_(layer.weight, weight)
    x, y = torch.randn(10, 1, dtype=torch.float64), torch.randn(10, 1, dtype=torch.float64)
    second, cross = float(x.square().mean()), float((x * y).mean())
    w = torch.tensor(weights, dtype=torch.float64)
    outer = 1 / torch.outer(w, w)
    bilinear = outer - torch.diag(outer.diag())
    pi = float(w.prod())
    closed = second * pi**2 * outer + (second * pi - cross) * pi * bilinear
    result = sharpness(model, mse, [(x, y)], num=2, **TIGHT)
    torch.testing.assert_close(result.values, top(closed, 2), rtol=CLOSE, atol=1e-9)


@pytest.mark.peers
def test_curvlinops_with_scipy_agrees():
    """Three batches of uneven size; with two outputs, half the squared norm is torch's mean over entries."""
    curvlinops = pytest.importorskip("curvlinops")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    model, batches = BY_NAME["tanh-mlp-mse"].build()
    theirs = curvlinops.HessianLinearOperator(model, nn.MSELoss(), list(model.parameters()), batches)
    values = linalg.eigsh(
        theirs.to_scipy(dtype=np.float64), k=2, which="LA", v0=np.ones(theirs.shape[0]), tol=1e-10
    )[0]
    ours = sharpness(model, mse, batches, num=2, **TIGHT)
    assert ours.values.tolist() == pytest.approx(sorted(values, reverse=True), rel=CLOSE)


def test_logistic_regression_in_closed_form():
    """H = 1/n Xᵀ diag(p(1 − p)) X."""
    model = nn.Linear(4, 1, bias=False).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.rand(30, 1).round().double()
    loss_fn = lambda m, b: nn.functional.binary_cross_entropy_with_logits(m(b[0]), b[1])
    p = torch.sigmoid(model(x)).detach()
    result = sharpness(model, loss_fn, [(x, y)], **TIGHT)
    assert result.value == pytest.approx(float(top(x.T @ (p * (1 - p) * x) / 30)), rel=CLOSE)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_sharpness_is_the_dense_top_eigenvalue(case, num_batches, num):
    model, batches = case.build()
    batches = batches[:num_batches]
    result = sharpness(model, case.loss_fn, batches, num=num, **TIGHT)
    hessian = dense_hessian(model, case.loss_fn, batches)
    torch.testing.assert_close(result.values, top(hessian, num), rtol=CLOSE, atol=1e-12)
    assert result.status is Status.CONVERGED
    v = result.vectors[:, 0]
    assert float((hessian @ v - result.value * v).norm()) == pytest.approx(result.residual, abs=1e-12)


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
@pytest.mark.parametrize("opt", PRECONDITIONED, ids=ids(PRECONDITIONED))
def test_preconditioned_sharpness_is_the_dense_symmetric_form(opt, case):
    model, optimizer, _ = case.build_trained(opt, 2)
    _, batches = case.build()
    gradient = dense_gradient(model, case.loss_fn, batches)
    tensors = [model.get_parameter(name) for name in trainable(model)]
    gradients = [
        g.view(t.shape) for g, t in zip(gradient.split([t.numel() for t in tensors]), tensors, strict=True)
    ]
    entries = preconditioner_of(optimizer, tensors, gradients).entries
    symmetric = preconditioned(dense_hessian(model, case.loss_fn, batches), entries)
    result = preconditioned_sharpness(model, case.loss_fn, batches, optimizer, **TIGHT)
    # P's 1/(√v̂ + ε) amplifies the gradient's rounding, where g is rounding only (the bias before BatchNorm)
    assert result.value == pytest.approx(float(top(symmetric)), rel=1e-6)
    assert result.converged


def test_the_supported_optimizers_are_listed():
    listed = preconditioned_sharpness.__doc__.split("optimizer: ")[1].split(" or one")[0]
    ours = {name for name in known_optimizers() if hasattr(torch.optim, name) or hasattr(ew, name)}
    assert set(re.split(r",\s+", listed)) == ours


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_plain_sgd_has_the_plain_sharpness(case):
    model, optimizer, batch = case.build_trained(OPT["sgd"], 1)
    plain = sharpness(model, case.loss_fn, [batch], **TIGHT)
    same = preconditioned_sharpness(model, case.loss_fn, [batch], optimizer, **TIGHT)
    assert same.value == plain.value
    assert same.num_hvps == plain.num_hvps


@given(st.floats(1e-3, 1e3))
def test_sharpness_scales_with_the_loss(c):
    model, batches = MLP.build()
    scaled = sharpness(model, lambda m, b: c * mse(m, b), batches, **TIGHT).value
    assert scaled == pytest.approx(c * sharpness(model, mse, batches, **TIGHT).value, rel=CLOSE)


def test_a_constant_preconditioner_divides():
    """Adam with a vanishing gradient and ε = a has P = (1 − β₁)·a."""
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.randn(8, 3, dtype=torch.float64)
    loss_fn = lambda m, x: 0.5 * m(x).square().mean()
    adam = torch.optim.Adam(model.parameters(), eps=4.0)
    value = preconditioned_sharpness(model, loss_fn, [x], adam, **TIGHT).value
    assert value == pytest.approx(sharpness(model, loss_fn, [x], **TIGHT).value / (0.1 * 4.0), rel=CLOSE)


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
@pytest.mark.parametrize(("adam", "gi"), [(torch.optim.Adam, ew.GIAdam), (torch.optim.AdamW, ew.GIAdamW)])
def test_gi_adam_divides_the_initial_preconditioned_sharpness(adam, gi, beta2):
    """By 1/√(1 − β₂), ×31.6 at β₂ = 0.999, up to ε/√v̂ ~ 1e-8/1e-2."""
    model, batches = MLP.build()
    options = {"lr": 0.01, "betas": (0.9, beta2), "eps": 1e-12}
    values = [
        preconditioned_sharpness(model, mse, batches, cls(model.parameters(), **options), **TIGHT).value
        for cls in (adam, gi)
    ]
    assert values[0] / values[1] == pytest.approx(1 / math.sqrt(1 - beta2), rel=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize(("cls", "root"), [(torch.optim.Adam, 1.0), (ew.GIAdam, math.sqrt(1 - 0.99))])
def test_without_a_step_p_is_that_of_the_first_update(cls, root, dtype):
    """(1 − β₁)(|g| + ε) for Adam, (1 − β₁)(|g|/√(1 − β₂) + ε) for GI-Adam: as a docstring says."""
    model, batches = MLP.build()
    optimizer = cls(model.parameters(), lr=0.01, betas=(0.8, 0.99), eps=1e-3)
    gradient = dense_gradient(model, mse, batches)
    p = (1 - 0.8) * (gradient.abs() / root + 1e-3)
    expected = float(top(preconditioned(dense_hessian(model, mse, batches), p)))
    found = preconditioned_sharpness(model, mse, batches, optimizer, dtype=dtype, rtol=1e-5)
    assert found.value == pytest.approx(expected, rel=1e-4 if dtype else 1e-9)
    # and it is what the first update divides by: without momentum, θ' = θ − lr·(1 − β₁)·g/P
    before = theta_of(model, trainable(model))
    train_step(model, optimizer, lambda m, b: sum(len(x[0]) * mse(m, x) for x in b) / 16, batches)
    moved = before - theta_of(model, trainable(model))
    torch.testing.assert_close(moved, 0.01 * (1 - 0.8) * gradient / p, rtol=1e-6, atol=1e-9)


def test_groups_rates_enter_through_their_ratio():
    """Twice the rate in a group is half its P: the top of R^{1/2} H R^{1/2}, R the ratios."""
    model, batches = MLP.build()
    sgd = torch.optim.SGD(
        [{"params": model[2].parameters()}, {"params": model[0].parameters(), "lr": 0.3}], lr=0.1
    )
    ratios = torch.tensor([3.0] * 16 + [1.0] * 10, dtype=torch.float64)
    expected = top(preconditioned(dense_hessian(model, mse, batches), 1 / ratios))
    result = preconditioned_sharpness(model, mse, batches, sgd, **TIGHT)
    assert result.value == pytest.approx(float(expected), rel=CLOSE)


@pytest.mark.parametrize(
    ("params", "names"),
    [("0.*", ["0.weight", "0.bias"]), (["*.bias"], ["0.bias", "2.bias"])],
)
def test_a_block_by_name(params, names):
    model, batches = MLP.build()
    expected = float(top(dense_hessian(model, mse, batches, names)))
    assert sharpness(model, mse, batches, params=params, **TIGHT).value == pytest.approx(expected, rel=CLOSE)
    only = torch.optim.SGD([model.get_parameter(name) for name in names], lr=0.1)
    block = preconditioned_sharpness(model, mse, batches, only, params=params, **TIGHT)
    assert block.value == pytest.approx(expected, rel=CLOSE)


def test_a_result_says_which_parameters_it_is_about():
    model, batches = MLP.build()
    result = sharpness(model, mse, batches, params="0.*")
    assert result.parameters == (("0.weight", (4, 3)), ("0.bias", (4,)))
    with pytest.raises(ValueError, match=r"start has vectors of 16 entries"):
        sharpness(model, mse, batches, start=result)
    assert sharpness(model, mse, batches, params="0.*", start=result).num_hvps < result.num_hvps


# Costs


def test_a_single_batch_costs_one_forward():
    model, batches = MLP.build()
    loss_fn, calls = counted(mse)
    result = sharpness(model, loss_fn, batches[:1], **TIGHT)
    assert len(calls) == 1 + REPEATS
    assert result.num_hvps > 3
    calls.clear()
    sharpness(model, loss_fn, batches[:1], start=result)
    assert len(calls) == 1


def test_several_batches_cost_one_forward_each_and_product():
    model, batches = MLP.build()
    loss_fn, calls = counted(mse)
    result = sharpness(model, loss_fn, batches)
    assert len(calls) == REPEATS + 3 * result.num_hvps


def test_preconditioned_costs_the_gradient_in_addition():
    model, optimizer, _ = MLP.build_trained(OPT["adam"], 1)
    _, batches = MLP.build()
    loss_fn, calls = counted(mse)
    preconditioned_sharpness(model, loss_fn, batches[:1], optimizer)
    assert len(calls) == 1 + REPEATS  # the graph of the gradient that P needs serves the products
    calls.clear()
    result = preconditioned_sharpness(model, loss_fn, batches, optimizer)
    assert len(calls) == REPEATS + 3 * (1 + result.num_hvps)


def test_num_hvps_counts_every_product(monkeypatch):
    calls = []
    original = ReverseRoute.product
    monkeypatch.setattr(ReverseRoute, "product", lambda self, v: calls.append(1) or original(self, v))
    model, batches = MLP.build()
    assert sharpness(model, mse, batches).num_hvps == len(calls)


def test_a_full_space_costs_its_dimension():
    """Six parameters, distinct eigenvalues twice (two outputs): at most six products."""
    model, batches = BY_NAME["linear-regression"].build()
    assert sharpness(model, mse, batches, num=6, **TIGHT).num_hvps == 6


def test_a_budget_is_kept():
    model, batches = MLP.build()
    result = sharpness(model, mse, batches, rtol=1e-12, max_hvps=3)
    assert (result.num_hvps, result.status) == (3, Status.BUDGET_EXHAUSTED)
    assert result.residual > 1e-12 * result.value


def test_many_eigenvalues_close_below_are_seldom_taken_for_the_top():
    """H = diag(1, ten times 0.94, below 0.3): by the residual alone three in ten starts are content with 0.94."""
    values = torch.cat([torch.ones(1), torch.full((10,), 0.94), torch.linspace(0, 0.3, 60)]).double()
    model = nn.Linear(len(values), 1, bias=False).double()
    x = (len(values) / 2 * values).sqrt().diag()
    found = [
        sharpness(model, lambda m, x: m(x).square().mean(), [x], rtol=1e-2, seed=seed)
        for seed in range(NUM_SEEDS)
    ]
    assert all(result.converged for result in found)
    assert sum(result.value < 0.95 for result in found) <= 2 * NUM_SEEDS / 40  # the chance is 1/40 at most


def test_a_start_saves_products_along_a_run():
    model, batches = MLP.build()
    first = sharpness(model, mse, batches)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-5)
    cold, warm = sharpness(model, mse, batches), sharpness(model, mse, batches, start=first)
    assert warm.num_hvps < cold.num_hvps
    assert warm.value == pytest.approx(cold.value, rel=2e-3)  # both within rtol = 1e-3


def test_the_same_seed_gives_the_same_bits_whatever_torchs_own_generator():
    model, batches = MLP.build()
    first = sharpness(model, mse, batches, seed=5)
    torch.manual_seed(99)
    second, other = sharpness(model, mse, batches, seed=5), sharpness(model, mse, batches, seed=6)
    assert torch.equal(first.vectors, second.vectors)
    assert not torch.equal(first.vectors, other.vectors)


def test_the_mode_of_the_model_is_measured():
    case = BY_NAME["conv-batchnorm-xent"]
    model, batches = case.build()
    train = sharpness(model, case.loss_fn, batches).value
    assert sharpness(model.eval(), case.loss_fn, batches).value != pytest.approx(train, rel=1e-2)


# Errors

BAD_ARGUMENTS = [
    ({"rtol": 0.0}, ValueError, r"rtol must be a finite number greater than 0, got 0\.0"),
    ({"rtol": math.nan}, ValueError, "rtol must be a finite number"),
    ({"rtol": "small"}, TypeError, "rtol must be a number, got 'small'"),
    ({"num": 0}, ValueError, "num must be 1 or greater"),
    ({"num": 1.5}, TypeError, "num must be a whole number"),
    ({"num": 27}, ValueError, "num must be at most the number of parameters, 26, got 27"),
    ({"max_hvps": 0}, ValueError, "max_hvps must be 1 or greater"),
    ({"num": 3, "max_hvps": 2}, ValueError, "max_hvps must be at least num = 3, got 2"),
    ({"params": "conv.*"}, UnknownNameError, r"'conv\.\*' matches no parameter"),
    ({"batches": []}, ValueError, "batches is empty"),
    ({"batches": torch.zeros(3, 3)}, TypeError, r"write \[batch\]"),
    ({"batches": iter([1])}, TypeError, "iterator"),
    ({"start": "other"}, ValueError, "start has vectors of 2 entries, the selected parameters have 26"),
    (
        {"start": "of the same size"},
        ValueError,
        r"start is of other parameters: it has \('weight', \(2, 13\)\) where .* \('0\.weight', \(4, 3\)\)",
    ),
    (
        {"rtol": 1e-16},
        ValueError,
        r"rtol must be at least 16 ε = 3\.6e-15, what torch\.float64.*no precision",
    ),
    (
        {"rtol": 1e-7, "dtype": torch.float32},
        ValueError,
        r"1\.9e-06, what torch\.float32.*dtype=torch\.float64",
    ),
    ({"dtype": torch.bfloat16}, ValueError, r"dtype must be torch\.float32, torch\.float64 or None"),
    ({"max_graph_bytes": 0}, ValueError, "max_graph_bytes must be 1 or greater"),
    ({"hvp": "check"}, UnknownNameError, "unknown hvp 'check'.*Did you mean 'checked'"),
]


def call(measure, **kwargs):
    model, batches = MLP.build()
    loss_fn, calls = counted(mse)
    if kwargs.get("start") == "other":
        other = nn.Linear(2, 1, bias=False)
        kwargs["start"] = sharpness(other, lambda m, x: m(x).square().mean(), [torch.eye(2)])
    if kwargs.get("start") == "of the same size":
        other = nn.Linear(13, 2, bias=False)
        kwargs["start"] = sharpness(other, lambda m, x: m(x).square().mean(), [torch.eye(13)])
    optimizer = kwargs.pop("optimizer", None) or torch.optim.Adam(model.parameters())
    extra = (optimizer,) if measure is preconditioned_sharpness else ()
    try:
        measure(model, loss_fn, kwargs.pop("batches", batches), *extra, **kwargs)
    finally:
        assert calls == []  # no compute before the error


@pytest.mark.parametrize("measure", [sharpness, preconditioned_sharpness])
@pytest.mark.parametrize(("kwargs", "error", "message"), BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_before_any_loss(measure, kwargs, error, message):
    kwargs = {k: iter([1]) if k == "batches" and message == "iterator" else v for k, v in kwargs.items()}
    with pytest.raises(error, match=message):
        call(measure, **kwargs)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.optim.Rprop(mlp().parameters()), PreconditionerError, "Rprop.*critical_lr works"),
        (
            lambda: torch.optim.Adam(mlp().parameters()),
            ValueError,
            r"parameter 0 of shape \(4, 3\) is not in",
        ),
    ],
)
def test_an_optimizer_without_a_p_is_refused_before_any_loss(make, error, message):
    with pytest.raises(error, match=message):
        call(preconditioned_sharpness, optimizer=make())


@pytest.mark.parametrize("optimizer", [None, MLP, torch.optim.Adam, torch.optim.lr_scheduler.LRScheduler])
def test_what_is_no_optimizer_is_refused_before_any_loss(optimizer):
    model, batches = MLP.build()
    loss_fn, calls = counted(mse)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got"):
        preconditioned_sharpness(model, loss_fn, batches, optimizer)
    assert calls == []


def test_a_frozen_model_is_refused():
    model, batches = MLP.build()
    with pytest.raises(ValueError, match="requires a gradient"):
        sharpness(model.requires_grad_(False), mse, batches)


@pytest.mark.parametrize("measure", [sharpness, preconditioned_sharpness])
def test_a_loss_that_is_not_finite_is_no_measurement(measure):
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 0)
    extra = (optimizer,) if measure is preconditioned_sharpness else ()
    with pytest.raises(LossError, match="batch 0 is nan"):
        measure(model, lambda m, b: mse(m, b) * math.nan, [batch], *extra)


@pytest.mark.parametrize("hvp", ["reverse", "difference"])
@pytest.mark.parametrize("status", Status)
def test_a_result_is_a_line_and_says_whether_it_may_be_used(status, hvp):
    result = replace(
        result_of(-1.2345678e-5), residual=2.345e-9, hvp_error=1e-4, num_hvps=200, hvp=hvp, status=status
    )
    assert str(result) == f"-1.23457e-05 ± 3.6e-09 ({status.name}, 200 products by {hvp})"
    assert len(str(result)) <= 100
    assert result.ok is result.converged is (status is Status.CONVERGED)


def test_the_line_of_a_result_that_is_exact_or_not_finite():
    assert str(result_of(9.0)) == "9 ± 0 (CONVERGED, 1 product by reverse)"
    infinite = replace(result_of(math.inf), residual=math.inf, status=Status.NOT_FINITE)
    assert str(infinite) == "inf ± inf (NOT_FINITE, 1 product by reverse)"
    assert not infinite.ok


def result_of(value):
    """A result made by hand."""
    vectors = torch.ones(1, 1)
    values = torch.tensor([value], dtype=torch.float64)
    return ew.SharpnessResult(
        value=value,
        values=values,
        vectors=vectors,
        subspace=vectors,
        residual=0.0,
        status=Status.CONVERGED,
        num_hvps=1,
    )


def test_vectors_have_the_order_of_the_models_parameters():
    model, batches = MLP.build()
    result = sharpness(model, mse, batches, **TIGHT)
    names = trainable(model)
    assert len(result.vectors) == len(theta_of(model, names))
    v = result.vectors[:, 0]
    assert float(v @ dense_hessian(model, mse, batches, names) @ v) == pytest.approx(result.value, rel=CLOSE)


def test_every_fiftieth_warm_start_is_checked_by_a_cold_one():
    """H = diag(9, 4, 1): a start that is exactly an eigenvector of a lower eigenvalue stays there, until then."""
    model = nn.Linear(3, 1, bias=False).double()
    batch = torch.diag(torch.tensor([9.0, 4.0, 1.0]).sqrt()).double()
    curvature = lambda **kw: sharpness(model, lambda m, x: 1.5 * m(x).square().mean(), [batch], **kw)
    cold = curvature()
    lower = torch.eye(3).double()[:, 1:2]
    locked = replace(cold, vectors=lower, subspace=lower)
    blind = curvature(start=locked)
    assert (cold.num_warm, blind.num_warm) == (0, 1)
    assert blind.value == pytest.approx(4.0)
    checked = curvature(start=replace(locked, num_warm=49))
    assert checked.num_warm == 0
    assert checked.value == pytest.approx(9.0)
    assert checked.num_hvps > blind.num_hvps
    assert curvature(start=replace(locked, num_warm=49), max_hvps=2).num_hvps <= 2


def test_a_warm_start_keeps_the_last_two_top_vectors():
    torch.manual_seed(0)
    model, batches = mlp().double(), [tuple(part.double() for part in vectors(8))]
    first = sharpness(model, mse, batches)
    second = sharpness(model, mse, batches, start=first)
    assert second.subspace.shape == (first.subspace.shape[0], 2)
    assert torch.equal(second.subspace[:, :1], second.vectors)
    assert torch.equal(second.subspace[:, 1:], first.vectors)
    assert second.num_hvps == 2  # nothing has changed: one product for each vector kept
