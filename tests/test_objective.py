"""Value, gradient and Hessian-vector products of a loss over batches.

Ladder: dense float64 autograd by forward-over-reverse (oracles.py), hypothesis for splitting and permuting.
Cannot see: a loss function that does not return the mean over its batch; nothing can.
"""

import contextlib
import copy
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cases import BY_NAME, CASES, MLP, cross_entropy, ids, mse, train_step
from edgewise import critical_lr, preconditioned_sharpness, sharpness
from edgewise.curvature.hessian import HessianOperator
from edgewise.errors import LossError
from edgewise.isolation import isolated
from edgewise.objective import Objective, measuring_dtype
from oracles import bits, dense_gradient, dense_hessian, dense_value, top

# Two float64 evaluations of sums of fewer than 100 terms of order 1: they agree to a few 100 ε.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("num_batches", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_value_gradient_and_products_equal_the_dense_ones(case, num_batches):
    model, batches = case.build()
    batches = batches[:num_batches]
    hessian = dense_hessian(model, case.loss_fn, batches)
    with isolated(model) as snapshot:
        objective = Objective(model, case.loss_fn, batches, snapshot=snapshot)
        assert objective.value() == pytest.approx(dense_value(model, case.loss_fn, batches), rel=1e-12)
        torch.testing.assert_close(
            objective.gradient(), dense_gradient(model, case.loss_fn, batches), **CLOSE
        )
        for vector in torch.randn(3, objective.size, dtype=torch.float64):
            torch.testing.assert_close(objective.hvp(vector), hessian @ vector, **CLOSE)


@pytest.mark.parametrize("keep_graph", [False, True])
def test_a_kept_graph_gives_the_same_gradient_and_products(keep_graph):
    model, batches = MLP.build()
    objective = Objective(model, MLP.loss_fn, batches[:1])
    gradient = objective.gradient(keep_graph=keep_graph)
    assert not gradient.requires_grad
    vector = torch.ones(objective.size, dtype=torch.float64)
    torch.testing.assert_close(gradient, dense_gradient(model, mse, batches[:1]), **CLOSE)
    torch.testing.assert_close(
        objective.hvp(vector), dense_hessian(model, mse, batches[:1]) @ vector, **CLOSE
    )


@given(cuts=st.sets(st.integers(1, 15), max_size=4), order=st.randoms(use_true_random=False))
def test_splitting_and_permuting_batches_changes_nothing(cuts, order):
    model, batches = MLP.build()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    edges = [0, *sorted(cuts), 16]
    pieces = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    order.shuffle(pieces)
    whole, split = Objective(model, mse, [(x, y)]), Objective(model, mse, pieces)
    vector = torch.linspace(-1, 1, whole.size, dtype=torch.float64)
    assert split.value() == pytest.approx(whole.value(), rel=1e-12)
    torch.testing.assert_close(split.gradient(), whole.gradient(), **CLOSE)
    torch.testing.assert_close(split.hvp(vector), whole.hvp(vector), **CLOSE)


def test_uneven_batches_are_not_averaged_evenly():
    """The oracle of the test above would also be met if all the pieces were equally curved."""
    model, batches = MLP.build()
    even = sum(dense_hessian(model, mse, [batch]) for batch in batches) / len(batches)
    weighted = dense_hessian(model, mse, batches)
    assert (even - weighted).norm() > 0.05 * weighted.norm()


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


def test_entries_without_curvature_or_gradient_are_zero():
    case = BY_NAME["linear-bias-unused"]
    model, batches = case.build()
    objective = Objective(model, case.loss_fn, batches[:1])
    names = list(objective.parameters)
    product = objective.hvp(torch.ones(objective.size, dtype=torch.float64))
    parts = dict(zip(names, product.split([p.numel() for p in objective.tensors]), strict=True))
    gradients = dict(
        zip(names, objective.gradient().split([p.numel() for p in objective.tensors]), strict=True)
    )
    assert (gradients["offset"] == 1).all()
    assert (gradients["unused"] == 0).all()
    assert (parts["offset"] == 0).all()
    assert (parts["unused"] == 0).all()
    assert parts["net.weight"].norm() > 0


def test_a_loss_linear_in_all_parameters_has_a_zero_hessian():
    model = nn.Linear(2, 1)
    x = torch.randn(4, 2)
    objective = Objective(model, lambda model, x: model(x).mean(), [x])
    assert (objective.hvp(torch.ones(3)) == 0).all()
    assert objective.gradient().norm() > 0


def test_a_block_is_the_block_of_the_dense_hessian():
    model, batches = MLP.build()
    names = ["0.bias", "2.weight"]
    objective = Objective(model, mse, batches, params=["2.weight", "0.bias"])
    hessian = dense_hessian(model, mse, batches, names)
    assert objective.size == len(hessian) == 12
    vector = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(objective.hvp(vector), hessian @ vector, **CLOSE)


def test_dropout_masks_are_equal_across_evaluations_under_a_snapshot():
    model = nn.Sequential(nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 2)).double()
    _, batches = MLP.build()
    free = Objective(model, mse, batches[:2])
    assert free.value() != free.value()
    with isolated(model) as snapshot:
        held = Objective(model, mse, batches[:2], snapshot=snapshot)
        assert held.value() == held.value()
        assert torch.equal(held.gradient(), held.gradient())
        vector = torch.ones(held.size, dtype=torch.float64)
        assert torch.equal(held.hvp(vector), held.hvp(vector))


def test_products_with_dropout_are_the_derivative_of_the_gradient():
    """Central differences of gradients with equal masks; error h²/6·|∂³| + ε/h·|g| ~ 1e-10 at h = 1e-5."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    _, batches = MLP.build()
    with isolated(model) as snapshot:
        objective = Objective(model, mse, batches[:1], snapshot=snapshot)
        vector = torch.randn(objective.size, dtype=torch.float64)
        product = objective.hvp(vector)

        def moved(h):
            twin = copy.deepcopy(model)
            with torch.no_grad():
                flat = nn.utils.parameters_to_vector(twin.parameters())
                nn.utils.vector_to_parameters(flat + h * vector, twin.parameters())
            return Objective(twin, mse, batches[:1], snapshot=snapshot).gradient()

        difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
    torch.testing.assert_close(product, difference, rtol=1e-7, atol=1e-8)


def test_a_frozen_parameter_made_trainable_enters():
    case = BY_NAME["frozen-layer"]
    model, batches = case.build()
    frozen = Objective(model, case.loss_fn, batches).size
    model.requires_grad_(True)
    assert Objective(model, case.loss_fn, batches).size == frozen + 16


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


# Precision

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
    return torch.stack([objective.hvp(row) for row in torch.eye(objective.size, dtype=objective.dtype)])


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
            Objective(oracle, loss_fn, half(batches, wide), snapshot=snapshot, params=params)
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
        ours = Objective(model, loss_fn, batches, snapshot=snapshot, dtype=torch.float64)
        theirs = Objective(oracle, loss_fn, wide, snapshot=other)
        vector = torch.randn(ours.size, dtype=torch.float64)
        assert ours.value() == pytest.approx(theirs.value(), rel=1e-12)
        torch.testing.assert_close(ours.gradient(), theirs.gradient(), **CLOSE)
        torch.testing.assert_close(ours.gradient_at(0.1 * vector), theirs.gradient_at(0.1 * vector), **CLOSE)
        torch.testing.assert_close(ours.gradient(), theirs.gradient(), **CLOSE)  # the shift is gone
        product = HessianOperator(ours, route).matvec(vector)
        torch.testing.assert_close(product, theirs.hvp(vector), rtol=1e-6, atol=1e-7)
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


def test_the_critical_rate_is_of_the_loss_that_training_sees():
    model, batches, _ = plain_mlp()
    seen = []

    def loss_fn(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen.append(model(batch[0]).dtype)
        return mse(model, batch)

    critical_lr(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, batches[0])
    assert set(seen) == {torch.bfloat16}


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
    assert "cast to torch.float32 for the measurement (dtype=)" in caught.value.__notes__[1]


# Memory

SCALARS = 16  # bytes that may be freed, and their address used again, while a graph is built


def wide_mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    return model, [
        (torch.randn(n, 3, dtype=torch.float64), torch.randn(n, 2, dtype=torch.float64)) for n in (7, 4)
    ]


def graph_bytes(model, batches):
    return sharpness(model, mse, batches, max_graph_bytes=10**9).graph_bytes


def test_graphs_are_kept_as_long_as_they_fit():
    model, batches = wide_mlp()
    calls = []
    counting = lambda m, b: calls.append(len(b[0])) or mse(m, b)
    expected = sharpness(model, mse, batches, rtol=1e-9).value
    both = graph_bytes(model, batches)
    assert both == sum(graph_bytes(model, [batch]) for batch in batches)
    found = sharpness(model, counting, batches, rtol=1e-9, max_graph_bytes=both)
    assert (found.graph_bytes, calls) == (
        both,
        [7, 7, 1, 2, 1, 2, 7, 4],
    )  # repeats, bytes, graphs; no product
    assert found.value == pytest.approx(expected, rel=1e-9)
    calls.clear()
    less = sharpness(model, counting, batches, rtol=1e-9, max_graph_bytes=both - 1)
    assert less.graph_bytes == 0
    assert calls[6:] == [7, 4] * less.num_hvps
    assert less.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("route", ["auto", "reverse", "forward", "difference"])
def test_a_batch_that_does_not_fit_is_split_by_the_largest_size_that_does(route):
    model, batches = wide_mlp()
    calls = []
    counting = lambda m, b: calls.append(len(b[0])) or mse(m, b)
    expected = sharpness(model, mse, batches, rtol=1e-7).value
    kept = route in ("auto", "reverse")
    budget = SCALARS + held_bytes(model, (batches[0][0][:3], batches[0][1][:3]), create_graph=kept)
    found = sharpness(model, counting, batches, rtol=1e-7, hvp=route, max_graph_bytes=budget)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert calls[-5:] in ([3, 3, 1, 3, 1], [3, 3, 1, 4])  # the first does not fit, the second may
    assert found.graph_bytes == 0


def held_bytes(model, batch, *, create_graph):
    """By hooks of the test's own: the bytes of all saved storages but those of parameters and inputs."""
    sizes = {}
    pack = lambda t: (
        sizes.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t.detach()
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        torch.autograd.grad(mse(model, batch), list(model.parameters()), create_graph=create_graph)
    outside = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *batch]}
    return sum(size for address, size in sizes.items() if address not in outside)


def test_the_bytes_are_those_that_autograd_saves():
    model, batches = wide_mlp()
    expected = held_bytes(model, batches[0], create_graph=True)
    assert abs(graph_bytes(model, batches[:1]) - expected) <= SCALARS


def test_a_budget_below_one_sample_is_refused_with_what_it_needs():
    model, batches = wide_mlp()
    with pytest.raises(
        ValueError, match=r"max_graph_bytes=10 is too small.*single sample of batch 0 holds [\d,]+ bytes"
    ):
        sharpness(model, mse, batches, max_graph_bytes=10)


@pytest.mark.parametrize(
    ("budget", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_budget_is_a_positive_count(budget, error):
    model, batches = wide_mlp()
    with pytest.raises(error, match="max_graph_bytes must be"):
        sharpness(model, lambda *_: pytest.fail("evaluated"), batches, max_graph_bytes=budget)


def test_batch_norm_in_training_is_not_split():
    case = BY_NAME["conv-batchnorm-xent"]
    model, batches = case.build()
    whole = sharpness(model, case.loss_fn, batches, max_graph_bytes=10**9)
    assert whole.graph_bytes > 0  # it fits: nothing is split
    assert whole.value == pytest.approx(sharpness(model, case.loss_fn, batches).value, rel=1e-9)
    budget = whole.graph_bytes // 4
    with pytest.raises(
        ValueError, match=r"asks to split batch 0.* 1 \(BatchNorm2d\) normalizes over the batch.*eval"
    ):
        sharpness(model, case.loss_fn, batches, max_graph_bytes=budget)
    model.eval()
    split_up = sharpness(model, case.loss_fn, batches, max_graph_bytes=budget, rtol=1e-9)
    assert split_up.value == pytest.approx(sharpness(model, case.loss_fn, batches, rtol=1e-9).value, rel=1e-8)


def test_a_loss_that_is_no_mean_over_samples_is_not_split():
    model, batches = wide_mlp()
    total = lambda m, b: (m(b[0]) - b[1]).square().sum()
    budget = graph_bytes(model, batches[:1]) // 2
    with pytest.raises(
        LossError, match=r"batch 0 was to be split into micro-batches of \d.* not a mean over samples"
    ):
        sharpness(model, total, batches[:1], max_graph_bytes=budget)


def test_a_loader_is_measured_within_a_budget():
    model, (batch, _) = wide_mlp()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch), batch_size=3)
    expected = sharpness(model, mse, [batch], rtol=1e-8).value
    budget = SCALARS + held_bytes(model, (batch[0][:2], batch[1][:2]), create_graph=True)
    found = sharpness(model, mse, loader, rtol=1e-8, max_graph_bytes=budget)
    assert found.value == pytest.approx(expected, rel=1e-8)


# Losses that do not repeat


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("layer", [OwnGenerator, Counter])
def test_a_layer_that_does_not_repeat_is_named(layer):
    model, batches = MLP.build()
    noisy = nn.Sequential(nn.Sequential(model[0], layer()), nn.Tanh(), model[2])
    with pytest.raises(LossError, match=rf"first to differ is 0\.1 \({layer.__name__}\).*model\.eval\(\)"):
        sharpness(noisy, mse, batches)


def test_a_loss_function_that_does_not_repeat_is_named():
    model, batches = MLP.build()
    generator = torch.Generator().manual_seed(0)
    loss_fn = lambda m, b: mse(m, b) + torch.rand((), generator=generator)
    with pytest.raises(LossError, match="no module differs, loss_fn or batches do"):
        sharpness(model, loss_fn, batches)


def test_dropout_repeats_and_a_warm_start_is_trusted():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    _, batches = MLP.build()
    first = sharpness(model, mse, batches)
    counted = nn.Sequential(model[0], model[1], nn.Sequential(Counter(), model[2]))
    with pytest.raises(LossError, match=r"2\.0 \(Counter\)"):
        sharpness(counted, mse, batches)
    calls = []
    sharpness(model, lambda m, b: calls.append(1) or mse(m, b), batches[:1], start=first)
    assert len(calls) == 1


def test_batches_of_other_values_in_each_pass_do_not_repeat():
    class Drifting:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(torch.full((4, 3), float(self.passes)).double(), torch.ones(4, 2).double())])

    model, _ = MLP.build()
    with pytest.raises(LossError, match="loss_fn or batches do"):
        sharpness(model, mse, Drifting())
