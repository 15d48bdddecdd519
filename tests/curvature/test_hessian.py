"""Routes to Hessian-vector products: reverse, forward, difference, and what "auto" picks.

Oracles: the dense float64 Hessian of `torch.func`; exact counts of loss evaluations. The routes themselves: routes/.
Cannot see: a fault shared by all of torch's derivatives; the difference route can, as it needs first derivatives only.
"""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import edgewise as ew
from cases import BY_NAME, CASES, MLP, CutTanh, OnceOnly
from edgewise.curvature.operators import Evidence, SymmetricOperator
from edgewise.errors import ClosedError, SecondDerivativeError
from oracles import bits, dense_hessian, top

ROUTES = ("reverse", "forward", "difference")
SCIPY = importlib.util.find_spec("scipy") is not None
REPEATS = 2  # evaluations of the first batch, to see that its loss repeats


class FusedTanh(nn.Module):
    def forward(self, x):
        return OnceOnly.apply(x)


def fused_mlp():
    """MLP's model with the fused tanh, and its twin that can be differentiated twice."""
    twin, batches = MLP.build()
    return nn.Sequential(twin[0], FusedTanh(), twin[2]), twin, batches


def counted(factor_of_call=lambda call: 1.0):
    """MLP's loss, and the list that grows with each of its calls."""
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        return MLP.loss_fn(model, batch) * factor_of_call(len(calls))

    return loss_fn, calls


@pytest.mark.parametrize("optimizer", [False, True], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("route", ROUTES)
def test_the_evidence_of_an_operator(route, optimizer):
    model, batches = MLP.build()
    adam = torch.optim.Adam(model.parameters()) if optimizer else None
    with ew.hessian(
        model, MLP.loss_fn, batches, optimizer=adam, hvp=route, max_graph_bytes=10**9
    ) as operator:
        before = operator.evidence
        assert (before.num_products, before.route, before.reason) == (0, route, "")
        for num in (1, 2):
            operator.matvec(torch.randn(operator.size, dtype=operator.dtype))
            assert operator.evidence.num_products >= num
        assert before.num_products == 0
        with pytest.raises(AttributeError):
            operator.evidence = before
        after = operator.evidence
    assert (after.relative_error > 0) is (route == "difference")
    assert (after.graph_bytes > 0) is (route == "reverse")


def test_the_evidence_says_why_an_earlier_route_was_not_taken():
    model, _, batches = fused_mlp()
    result = ew.sharpness(model, MLP.loss_fn, batches)
    with ew.hessian(model, MLP.loss_fn, batches) as operator:
        operator.matvec(torch.randn(operator.size, dtype=operator.dtype))
        assert operator.evidence.reason == result.hvp_reason != ""
        assert operator.evidence.route == result.hvp == "difference"


def test_a_plain_matrix_has_no_evidence_and_no_other_route():
    class Identity(SymmetricOperator):
        size, dtype, device = 2, torch.float32, torch.device("cpu")

        def matvec(self, vector):
            return vector

    assert Identity().evidence == Evidence()
    with pytest.raises(SecondDerivativeError, match="mine"):
        Identity().take_next_route(SecondDerivativeError("mine"))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["conv-batchnorm-xent", "tied-mse", "attention-xent"])
def test_no_route_leaves_a_trace(name, route):
    model, batches = BY_NAME[name].build()
    before = {key: bits(value) for key, value in model.state_dict().items()}
    held = [id(parameter) for module in model.modules() for parameter in module._parameters.values()]
    ew.sharpness(model, BY_NAME[name].loss_fn, batches, hvp=route)
    assert {key: bits(value) for key, value in model.state_dict().items()} == before
    assert [id(p) for module in model.modules() for p in module._parameters.values()] == held
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("route", ROUTES)
def test_routes_see_the_same_dropout_masks(route):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 2)).double()
    _, batches = MLP.build()
    torch.manual_seed(11)
    reference = ew.sharpness(model, MLP.loss_fn, batches[:1], hvp="reverse", rtol=1e-8)
    torch.manual_seed(11)
    found = ew.sharpness(model, MLP.loss_fn, batches[:1], hvp=route, rtol=1e-8)
    assert found.value == pytest.approx(reference.value, rel=1e-7)


def test_auto_takes_reverse_where_it_can():
    model, batches = MLP.build()
    found = ew.sharpness(model, MLP.loss_fn, batches)
    assert (found.hvp, found.hvp_reason, found.hvp_error) == ("reverse", "", 0.0)


def test_auto_falls_back_to_differences_and_says_why():
    model, twin, batches = fused_mlp()
    found = ew.sharpness(model, MLP.loss_fn, batches, rtol=1e-6)
    assert found.hvp == "difference"
    assert "reverse-over-reverse is not possible" in found.hvp_reason
    assert "forward-over-reverse is not possible" in found.hvp_reason
    assert 0 < found.hvp_error < 1e-6
    assert (
        ew.sharpness(model, MLP.loss_fn, batches, max_graph_bytes=10**9).graph_bytes == 0
    )  # none is kept in vain
    expected = float(top(dense_hessian(twin, MLP.loss_fn, batches))[0])
    assert found.value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("route", ["reverse", "forward"])
def test_a_route_that_was_asked_for_is_not_replaced(route):
    model, _, batches = fused_mlp()
    with pytest.raises(SecondDerivativeError, match='use hvp="difference"'):
        ew.sharpness(model, MLP.loss_fn, batches, hvp=route)


def test_a_runtime_error_of_the_users_is_not_taken_for_a_missing_derivative():
    model, batches = MLP.build()

    def loss_fn(model, batch):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese") as caught:
        ew.sharpness(model, loss_fn, batches)
    assert not isinstance(caught.value, SecondDerivativeError)


def test_forward_and_differences_keep_no_graph_for_the_preconditioner():
    """Besides the check that the loss repeats, one evaluation for the gradient in P, then one a product (forward)."""
    model, batches = MLP.build()
    loss_fn, calls = counted()
    optimizer = torch.optim.Adam(model.parameters())
    found = ew.preconditioned_sharpness(model, loss_fn, batches[:1], optimizer, hvp="forward")
    assert len(calls) == REPEATS + 1 + found.num_hvps


def test_an_unknown_route_is_refused_before_any_compute():
    model, batches = MLP.build()
    with pytest.raises(ValueError, match=r"unknown hvp 'revers'.*Did you mean 'reverse'"):
        ew.sharpness(model, lambda *_: pytest.fail("evaluated"), batches, hvp="revers")


# The operator's end


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_an_operator_is_closed_after_its_block_and_leaves_the_model_alone(preconditioned, raises):
    model, batches = MLP.build()
    optimizer = torch.optim.Adam(model.parameters()) if preconditioned else None
    try:
        with ew.hessian(model, MLP.loss_fn, batches, optimizer=optimizer) as operator:
            vector = torch.ones(operator.size, dtype=torch.float64)
            linear = operator.to_scipy() if SCIPY else None
            operator.matvec(vector)
            if raises:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # training goes on
    after = [bits(p) for p in model.parameters()]
    for use in (lambda: operator.matvec(vector), operator.to_scipy):
        with pytest.raises(ClosedError, match="its with block is over"):
            use()
    if linear is not None:
        with pytest.raises(ClosedError, match="its with block is over"):
            linear.matvec(vector.numpy())
    assert [bits(p) for p in model.parameters()] == after


# Kernels and functions that fail under a second derivative only


def failing(backward):
    """tanh with a backward of its own."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.tanh()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient, ctx.saved_tensors[0])

    return Function


def by_out(gradient, y):
    return torch.mul(gradient, 1 - y.detach().square(), out=torch.empty_like(gradient))


def by_numpy(gradient, y):
    return torch.from_numpy(gradient.numpy() * (1 - y.detach().numpy() ** 2))


def asserting(gradient, y):
    assert not gradient.requires_grad
    return gradient * (1 - y.square())


def typed(gradient, y):
    if torch.is_grad_enabled():
        raise TypeError("no second derivative here")
    return gradient * (1 - y.square())


def unsupported(gradient, y):
    if torch.is_grad_enabled():
        raise NotImplementedError
    return gradient * (1 - y.square())


@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
@pytest.mark.parametrize(
    "backward", [by_out, by_numpy, asserting, typed, unsupported], ids=lambda f: f.__name__
)
def test_auto_goes_on_where_a_backward_fails_with_a_graph(backward, optimizer):
    twin, batches = MLP.build()
    tanh = failing(backward)
    loss_fn = lambda m, b: 0.5 * (m[2](tanh.apply(m[0](b[0]))) - b[1]).square().sum(1).mean()
    if optimizer is None:
        found, true = (ew.sharpness(twin, f, batches, rtol=1e-6) for f in (loss_fn, MLP.loss_fn))
    else:
        adam = optimizer(twin.parameters(), eps=1e-2)
        found, true = (
            ew.preconditioned_sharpness(twin, f, batches, adam, rtol=1e-6) for f in (loss_fn, MLP.loss_fn)
        )
    assert (found.hvp, true.hvp) == ("difference", "reverse")
    assert "reverse-over-reverse is not possible" in found.hvp_reason
    assert found.value == pytest.approx(true.value, rel=1e-5)


@pytest.mark.parametrize("hvp", ["auto", *ROUTES])
def test_what_the_loss_raises_in_an_ordinary_backward_is_the_users_own(hvp):
    def raising(gradient, y):
        raise KeyError("mine")

    model, batches = MLP.build()
    tanh = failing(raising)
    loss_fn = lambda m, b: m[2](tanh.apply(m[0](b[0]))).square().mean()
    with pytest.raises(KeyError, match="mine"):
        ew.sharpness(model, loss_fn, batches, hvp=hvp)


# The checked route


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checked_measurement_is_the_unchecked_one_with_evidence(case, dtype):
    model, batches = case.build()
    found = ew.sharpness(model, case.loss_fn, batches, hvp="checked", dtype=dtype)
    plain = ew.sharpness(model, case.loss_fn, batches, dtype=dtype)
    assert (found.value, found.hvp) == (plain.value, "reverse")
    assert plain.num_hvps + 2 <= found.num_hvps <= plain.num_hvps + 10  # a central difference at 1 to 4 steps
    assert (
        0 < found.hvp_error < 0.1 * torch.finfo(dtype).eps ** (1 / 3)
    )  # ordinary models are far from the bar


@pytest.mark.parametrize("measure", [ew.sharpness, ew.preconditioned_sharpness])
def test_a_checked_measurement_sees_a_wrong_second_derivative(measure):
    model, batches = MLP.build()
    extra = (torch.optim.Adam(model.parameters()),) if measure is ew.preconditioned_sharpness else ()
    loss_fn = lambda m, b: 0.5 * (m[2](CutTanh.apply(m[0](b[0]))) - b[1]).square().sum(1).mean()
    measure(model, loss_fn, batches, *extra, hvp="reverse")  # goes unnoticed
    with pytest.raises(
        SecondDerivativeError, match=r"routes disagree by 0\.\d+, more than .*custom autograd"
    ):
        measure(model, loss_fn, batches, *extra, hvp="checked")


def test_a_checked_measurement_by_differences_has_their_error_bar():
    model, _, batches = fused_mlp()
    found = ew.sharpness(model, MLP.loss_fn, batches, hvp="checked")
    assert (found.hvp, found.num_hvps) == ("difference", found.num_hvps)
    assert found.hvp_error == ew.sharpness(model, MLP.loss_fn, batches, hvp="difference").hvp_error


# Activation checkpointing


class Checkpointed(nn.Module):
    """MLP's model, whose middle is computed again in the backward pass."""

    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return self.net[2](checkpoint(self.net[1], self.net[0](x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("reentrant", "route"), [(False, "reverse"), (True, "difference")])
@pytest.mark.parametrize("num_batches", [1, 3])
def test_activation_checkpoints_are_measured(num_batches, reentrant, route, dtype):
    """In float32 the modules hold copies, also while the backward pass computes anew."""
    plain, batches = MLP.build()
    batches = batches[:num_batches]
    expected = float(top(dense_hessian(plain, MLP.loss_fn, batches))[0])
    model = Checkpointed(
        nn.Sequential(plain[0], nn.Sequential(plain[1], nn.Linear(4, 4), nn.Tanh()), plain[2]), reentrant
    )
    model.net[1][1].double()
    oracle = nn.Sequential(plain[0], *model.net[1], plain[2])
    expected = float(top(dense_hessian(oracle, MLP.loss_fn, batches))[0])
    before = {key: bits(value) for key, value in model.state_dict().items()}
    found = ew.sharpness(model, MLP.loss_fn, batches, rtol=1e-5, dtype=dtype)
    assert found.hvp == route
    assert ("use_reentrant=True" in found.hvp_reason) == reentrant
    assert found.value == pytest.approx(expected, rel=1e-3 if reentrant and dtype == torch.float32 else 1e-6)
    assert {key: bits(value) for key, value in model.state_dict().items()} == before
    assert all(p.grad is None for p in model.parameters())


def test_a_reentrant_checkpoint_runs_no_hook_of_the_parameters_and_serves_p():
    """Its gradient needs loss.backward(), which fills .grad and runs hooks: of copies."""
    plain, batches = MLP.build()
    optimizer = torch.optim.Adam(plain.parameters())
    expected = ew.preconditioned_sharpness(plain, MLP.loss_fn, batches, optimizer, rtol=1e-6)
    model, seen = Checkpointed(plain, True), []
    held = [id(p) for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.register_post_accumulate_grad_hook(seen.append)
    found = ew.preconditioned_sharpness(model, MLP.loss_fn, batches, optimizer, rtol=1e-6)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert seen == []
    assert [id(p) for p in model.parameters()] == held
    assert all((p.grad == 1).all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler warns of torch's own parts
def test_a_compiled_model_is_measured_by_another_route():
    """torch.compile has no double backward; which route is left depends on torch, the value does not."""
    model, batches = MLP.build()
    expected = ew.sharpness(model, MLP.loss_fn, batches[:1], rtol=1e-8).value
    compiled = torch.compile(model, backend="aot_eager")  # all of the compiler but the code it would write
    found = ew.sharpness(compiled, MLP.loss_fn, batches[:1], rtol=1e-6)
    assert found.hvp != "reverse"
    assert "does not currently support double backward" in found.hvp_reason
    assert found.value == pytest.approx(expected, rel=1e-6)
