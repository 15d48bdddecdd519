"""Models of any precision, measured as copies, without autocast.

Ladder: the same model of the wider precision; its dense derivatives. Cannot see: kernels in half precision on
accelerators.
"""

import contextlib
import copy

import pytest
import torch
from torch import nn

from cases import MLP, cross_entropy, mse, train_step
from edgewise import critical_lr, preconditioned_sharpness, sharpness
from edgewise.curvature.hessian import HessianOperator
from edgewise.curvature.routes.reverse import ReverseRoute
from edgewise.isolation import isolated
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective
from edgewise.loss.precision import measuring_dtype
from oracles import bits, top

# Two float64 evaluations of sums of fewer than 100 terms of order 1: they agree to a few 100 ε.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


HALF = [torch.bfloat16, torch.float16]


class LanguageModel(nn.Module):
    """Embeddings tied to the output, BatchNorm and a buffer that each forward assigns anew."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(7, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.full((4,), 0.5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, tokens):
        self.calls = self.calls + 1
        self.scale = self.scale * 1.5
        return self.out(self.norm(torch.tanh(self.mix(self.embed(tokens).mean(1)))) * self.scale)


def language():
    torch.manual_seed(4)
    batches = [(torch.randint(0, 7, (n, 3)), torch.randint(0, 7, (n,))) for n in (6, 9)]
    return LanguageModel(), batches, cross_entropy


def plain_mlp():
    model, batches = MLP.build()
    return model.float(), [(x.float(), y.float()) for x, y in batches], mse


MODELS = {"mlp": plain_mlp, "tied-batchnorm-lm": language}


def half(batches, dtype):
    return [tuple(t.to(dtype) if t.is_floating_point() else t for t in batch) for batch in batches]


def raw(tensor):
    """The bytes of a tensor, also of a precision that NumPy does not know."""
    return bits(tensor.detach().reshape(-1).view(torch.uint8))


def state_of(model):
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {name: (id(t), t.dtype, raw(t), t.requires_grad) for name, t in tensors.items()}


def dense_by_rows(objective):
    route = ReverseRoute(objective)
    return torch.stack([route.product(row) for row in torch.eye(objective.size, dtype=objective.dtype)])


@pytest.mark.parametrize("params", [None, ["*weight"]], ids=["all", "some"])
@pytest.mark.parametrize("stored", HALF, ids=str)
@pytest.mark.parametrize(("dtype", "close"), [(None, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", MODELS)
def test_a_half_precision_model_is_measured_as_its_cast_copy(name, dtype, close, stored, params):
    model, batches, loss_fn = MODELS[name]()
    model, batches = model.to(stored), half(batches, stored)
    wide = torch.float64
    oracle = copy.deepcopy(model).to(wide)
    with isolated(oracle) as snapshot:
        hessian = dense_by_rows(
            Objective(
                oracle, loss_fn, half(batches, wide), snapshot=snapshot, measuring=Measuring(params=params)
            )
        )
    before = state_of(model)
    found = sharpness(model, loss_fn, batches, dtype=dtype, params=params, rtol=close / 10, max_hvps=300)
    assert found.value == pytest.approx(float(top(hessian)), rel=close)
    assert found.vectors.dtype == (dtype or torch.float32)
    assert state_of(model) == before


@pytest.mark.parametrize("route", ["reverse", "forward", "difference"])
@pytest.mark.parametrize("name", MODELS)
def test_every_route_value_and_gradient_work_on_the_copies(name, route):
    """Forward over BatchNorm's fused kernel is unsymmetric in torch 2.13: in eval mode it is not used."""
    model, batches, loss_fn = MODELS[name]()
    model.bfloat16().eval()
    batches = half(batches, torch.bfloat16)
    oracle, wide = copy.deepcopy(model).double(), half(batches, torch.float64)
    before = state_of(model)
    with isolated(model) as snapshot, isolated(oracle) as other:
        ours = Objective(model, loss_fn, batches, snapshot=snapshot, measuring=Measuring(dtype=torch.float64))
        theirs = Objective(oracle, loss_fn, wide, snapshot=other)
        vector = torch.randn(ours.size, dtype=torch.float64)
        assert ours.value() == pytest.approx(theirs.value(), rel=1e-12)
        torch.testing.assert_close(ours.gradient(), theirs.gradient(), **CLOSE)
        torch.testing.assert_close(ours.gradient_at(vector, 0.1), theirs.gradient_at(vector, 0.1), **CLOSE)
        torch.testing.assert_close(ours.gradient(), theirs.gradient(), **CLOSE)  # the shift is gone
        product = HessianOperator(ours, route).matvec(vector)
        torch.testing.assert_close(product, ReverseRoute(theirs).product(vector), rtol=1e-6, atol=1e-7)
    assert state_of(model) == before


@pytest.mark.parametrize("name", MODELS)
def test_a_wider_measurement_is_that_of_the_wider_model(name):
    model, batches, loss_fn = MODELS[name]()
    before = state_of(model)
    found = sharpness(model, loss_fn, batches, dtype=torch.float64, rtol=1e-8)
    assert state_of(model) == before
    expected = sharpness(model.double(), loss_fn, half(batches, torch.float64), rtol=1e-8)
    assert found.value == pytest.approx(expected.value, rel=1e-10)


@pytest.mark.parametrize("stored", HALF, ids=str)
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.RAdam])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_preconditioner_is_that_of_the_cast_optimizer(cls, stored, steps):
    """P in float16 itself would be zero: the squares of small gradients are."""
    model, batches, loss_fn = plain_mlp()
    model, batches = model.to(stored), half(batches, stored)
    options = {"lr": 1e-3, "eps": 1e-4} | ({"centered": True} if cls is torch.optim.RMSprop else {})
    optimizer = cls(model.parameters(), **options)
    for _ in range(steps):
        train_step(model, optimizer, loss_fn, batches[0])
    wide, wide_batches = copy.deepcopy(model).double(), half(batches, torch.float64)
    twin = cls(wide.parameters(), **options)
    for theirs, ours in zip(wide.parameters(), model.parameters(), strict=True):
        for key, value in optimizer.state.get(ours, {}).items():
            twin.state[theirs][key] = value.double() if value.ndim else value.clone()
    before = [raw(v) for p in model.parameters() for v in optimizer.state.get(p, {}).values()]
    found = preconditioned_sharpness(model, loss_fn, batches, optimizer, dtype=torch.float64, rtol=1e-8)
    expected = preconditioned_sharpness(wide, loss_fn, wide_batches, twin, rtol=1e-8)
    assert found.value == pytest.approx(expected.value, rel=1e-6)
    assert [raw(v) for p in model.parameters() for v in optimizer.state.get(p, {}).values()] == before


class OldAutocast(torch.autocast):
    """As torch.cuda.amp's: a subclass with an __enter__ of its own."""

    def __init__(self):
        super().__init__("cpu", dtype=torch.bfloat16)

    def __enter__(self):
        return super().__enter__()


AUTOCASTS = {
    "with": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "subclass": OldAutocast,
}


@pytest.mark.parametrize("autocast", AUTOCASTS.values(), ids=AUTOCASTS)
@pytest.mark.parametrize("inside", [False, True], ids=["ambient", "inside"])
@pytest.mark.parametrize("route", ["reverse", "forward", "difference"])
def test_autocast_is_off_in_a_measurement_and_back_afterwards(route, inside, autocast):
    model, batches, loss_fn = plain_mlp()
    expected = sharpness(model, loss_fn, batches, hvp=route).value
    enter = torch.autocast.__enter__

    def decorated(model, batch):
        assert model(batch[0]).dtype == torch.float32
        return autocast()(loss_fn)(model, batch)

    with contextlib.nullcontext() if inside else autocast():
        assert sharpness(model, decorated if inside else loss_fn, batches, hvp=route).value == expected
        assert torch.is_autocast_enabled("cpu") is not inside
    assert torch.autocast.__enter__ is enter
    with autocast():
        assert model(batches[0][0]).dtype == torch.bfloat16


def test_autocast_comes_back_when_the_loss_raises():
    model, batches, _ = plain_mlp()
    enter = torch.autocast.__enter__

    def loss_fn(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            raise KeyError("mine")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(KeyError):
            sharpness(model, loss_fn, batches)
        assert torch.is_autocast_enabled("cpu")
    assert torch.autocast.__enter__ is enter


def test_the_critical_rate_is_of_the_loss_without_the_models_own_autocast():
    model, batches, _ = plain_mlp()
    seen = []

    def loss_fn(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen.append(model(batch[0]).dtype)
        return mse(model, batch)

    critical_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, batches[0])
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float16, torch.float64), torch.float64),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.float8_e4m3fn, torch.float32), torch.float32),
        ((torch.float32, torch.float32), torch.float32),
    ],
)
def test_the_widest_precision_of_the_parameters_is_measured(dtypes, expected):
    model = nn.ParameterList([nn.Parameter(torch.ones(2).to(dtype)) for dtype in dtypes])
    assert measuring_dtype(model) == expected
    hidden = lambda m, x: sum((p.to(expected) ** 2).sum() for p in m)
    assert sharpness(model, hidden, [0]).value == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, "float64"])
def test_a_precision_that_does_not_do_is_refused_before_any_loss(dtype):
    model, batches, _ = plain_mlp()
    with pytest.raises(ValueError, match=r"dtype must be torch\.float32, torch\.float64 or None, got"):
        sharpness(model, lambda *_: pytest.fail("evaluated"), batches, dtype=dtype)


def test_an_error_of_the_cast_model_says_that_it_is_cast():
    model, batches, _ = plain_mlp()
    loss_fn = lambda m, b: (m(b[0].bfloat16()) - b[1]).square().mean()
    with pytest.raises(RuntimeError) as caught:
        sharpness(model.bfloat16(), loss_fn, half(batches, torch.bfloat16))
    assert any(
        "cast to torch.float32 for the measurement (dtype=)" in note for note in caught.value.__notes__
    )
