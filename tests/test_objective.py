"""Value, gradient and Hessian-vector products of a loss over batches.

Ladder: dense float64 autograd by forward-over-reverse (oracles.py), hypothesis for splitting and permuting.
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

import edgewise as ew
from cases import BY_NAME, CASES, MLP, ids, mse, train_step
from edgewise import sharpness
from edgewise.errors import LossError
from edgewise.isolation import isolated
from edgewise.objective import Objective
from oracles import dense_gradient, dense_hessian, dense_value, loss_after_step

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


# Sparse gradients


class Words(nn.Module):
    """Words of a vocabulary, summed: a word may occur twice in a sentence."""

    def __init__(self, sparse, bag):
        super().__init__()
        torch.manual_seed(0)
        self.bag = bag
        self.words = (nn.EmbeddingBag if bag else nn.Embedding)(10, 4, sparse=sparse, dtype=torch.float64)
        self.out = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        return self.out(torch.tanh(self.words(x)) if self.bag else torch.tanh(self.words(x)).sum(1))


SENTENCES = [
    (torch.tensor([[0, 1, 1], [2, 1, 5]]), torch.tensor([[1.0, 0], [0, 1]]).double()),
    (torch.tensor([[3, 1, 9]]), torch.tensor([[0.5, 0.5]]).double()),
]
SPARSE_OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.1),
}


@pytest.mark.parametrize("num_batches", [1, 2])
@pytest.mark.parametrize("bag", [False, True])
def test_sparse_gradients_are_what_they_stand_for(bag, num_batches):
    batches = SENTENCES[:num_batches]
    sparse, dense = Words(True, bag), Words(False, bag)
    found, same = (sharpness(model, mse, batches, rtol=1e-8).value for model in (sparse, dense))
    assert found == pytest.approx(same, rel=1e-7)
    assert found == pytest.approx(float(top_of(dense, batches)), rel=1e-6)
    with isolated(sparse) as snapshot:
        objective = Objective(sparse, mse, batches, snapshot=snapshot)
        torch.testing.assert_close(objective.gradient(), dense_gradient(dense, mse, batches), **CLOSE)


def top_of(model, batches):
    """By `torch.autograd.functional.hessian`, of the words taken as rows of a matrix."""
    shapes = [p.shape for p in model.parameters()]

    def loss(flat):
        words, weight, bias = (
            part.view(shape)
            for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)
        )
        total = 0.0
        for x, y in batches:
            hidden = torch.tanh(words[x].mean(1)) if model.bag else torch.tanh(words[x]).sum(1)
            total = total + len(x) / sum(len(b[0]) for b in batches) * mse(
                lambda h: h @ weight.T + bias, (hidden, y)
            )
        return total

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch's own Adagrad
@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize("name", SPARSE_OPTIMIZERS)
def test_measurements_with_sparse_gradients_are_those_with_dense_ones(name, bag):
    """The momentum of a sparse gradient is sparse as well, and comes back after trial steps."""
    measured = []
    for model in (Words(True, bag), Words(False, bag)):
        optimizer = SPARSE_OPTIMIZERS[name](model)
        for batch in (*SENTENCES, SENTENCES[0]):
            train_step(model, optimizer, mse, batch)
        look = lambda m=model, o=optimizer: (
            ew.preconditioned_sharpness(m, mse, SENTENCES, o, rtol=1e-6).value,
            ew.critical_lr(m, o, mse, SENTENCES[1]).slope,
            ew.critical_lr(m, o, mse, batches=SENTENCES).lr,
            ew.Monitor(m, o, mse, every=1).observe(SENTENCES[0]).sharpness,
        )
        measured.append(ew.assert_no_side_effects(model, optimizer, look))
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)


def test_an_optimizer_for_sparse_gradients_alone_gets_them():
    """SparseAdam steps rows that have a gradient, and refuses dense ones."""
    model = Words(True, False)
    optimizer = torch.optim.SparseAdam([model.words.weight], lr=0.1)
    found = ew.critical_lr(model, optimizer, mse, SENTENCES[0])
    loss = mse(model, SENTENCES[0])
    loss.backward()
    current = ew.critical_lr(model, optimizer, mse, SENTENCES[0], gradient="current")
    assert found.lr == pytest.approx(current.lr, rel=1e-6)
    for factor, rises in ((0.9 * found.bracket[0] / 0.1, False), (1.1 * found.bracket[1] / 0.1, True)):
        assert (loss_after_step(model, optimizer, mse, SENTENCES[0], factor) > loss.item()) == rises
    with pytest.raises(ew.PreconditionerError, match="SparseAdam has no diagonal"):
        ew.preconditioned_sharpness(model, mse, SENTENCES, optimizer, params="words.*")


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
