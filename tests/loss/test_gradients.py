"""First derivatives of the loss: of batches, sums, micro-batches, reentrant checkpoints and sparse gradients.

Ladder: `loss.backward()`; dense float64 autograd (oracles.py); the same words with dense gradients. Sharded gradients:
test_distributed.py. Cannot see: a gradient that is wrong in torch itself.
"""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import edgewise as ew
from cases import BY_NAME, CASES, ids, mlp, mse, train_step, vectors
from edgewise import sharpness
from edgewise.errors import LossError
from edgewise.isolation import isolated
from edgewise.loss.measuring import Measuring
from edgewise.loss.objective import Objective
from oracles import dense_gradient, dense_hessian, loss_after_step, top

# Two float64 evaluations of sums of fewer than 100 terms of order 1: they agree to a few 100 ε.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_values_and_gradients_are_those_of_backward_on_the_weighted_mean(case):
    model, batches = case.build()
    total = sum(len(batch[0]) for batch in batches)
    expected = []
    with isolated(model):
        for batch in batches:
            loss = case.loss_fn(model, batch)
            (len(batch[0]) / total * loss).backward()
            expected.append(loss.item())
        gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with isolated(model) as snapshot:
        objective = Objective(model, case.loss_fn, batches, snapshot=snapshot)
        values, found = objective.values_and_gradients()
    assert values == pytest.approx(expected, rel=1e-12)
    selected = [g for g, p in zip(gradients, model.parameters(), strict=True) if p.requires_grad]
    assert [g is None for g in found] == [g is None for g in selected]
    for one, other in zip(found, selected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, **CLOSE)


def test_a_loss_of_no_selected_parameter_has_no_gradient():
    case = BY_NAME["linear-bias-unused"]
    model, batches = case.build()
    objective = Objective(model, case.loss_fn, batches, measuring=Measuring(params="unused"))
    with pytest.raises(LossError, match="does not depend on the selected parameters"):
        objective.values_and_gradients()


def test_a_gradient_in_micro_batches_is_that_of_the_batch():
    torch.manual_seed(0)
    model, batch = mlp().double(), tuple(part.double() for part in vectors(7))
    sizes = []
    counting = lambda m, b: sizes.append(len(b[0])) or mse(m, b)
    with isolated(model) as snapshot:
        measuring = Measuring(max_graph_bytes=200)  # two samples hold 32 bytes each of tanh and of the output
        objective = Objective(model, counting, [batch], snapshot=snapshot, measuring=measuring)
        torch.testing.assert_close(objective.gradient(), dense_gradient(model, mse, [batch]), **CLOSE)
        assert max(sizes[-2:]) < 7
        values, gradients = objective.values_and_gradients()
    assert values == pytest.approx([mse(model, batch).item()], rel=1e-12)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.testing.assert_close(flat, dense_gradient(model, mse, [batch]), **CLOSE)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_reentrant_checkpoint_has_its_gradient_by_backward_of_copies(num_batches):
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
    model = nn.Sequential(first, second)
    batches = [tuple(part.double() for part in vectors(n)) for n in (5, 3)][:num_batches]
    plain = lambda m, b: (m(b[0]).tanh() - b[1]).square().sum(1).mean()
    again = lambda m, b: plain(lambda x: checkpoint(m[1], m[0](x), use_reentrant=True), b)
    seen = []
    first.weight.register_post_accumulate_grad_hook(seen.append)
    with isolated(model) as snapshot:
        objective = Objective(model, again, batches, snapshot=snapshot)
        for _ in range(2):
            torch.testing.assert_close(objective.gradient(), dense_gradient(model, plain, batches), **CLOSE)
    assert seen == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_reentrant_checkpoint_of_an_input_leaves_no_parameter_out():
    """As PEFT makes it: the input is a leaf that wants a gradient, and leads torch.autograd.grad to no parameter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = tuple(part.double() for part in vectors(5))
    plain = lambda m, b: (m(b[0]) - b[1]).square().sum(1).mean()
    inside = lambda m, x: m[2](checkpoint(m[:2], x.detach().requires_grad_(), use_reentrant=True))
    again = lambda m, b: plain(lambda x: inside(m, x), b)
    with isolated(model) as snapshot:
        objective = Objective(model, again, [batch], snapshot=snapshot)
        torch.testing.assert_close(objective.gradient(), dense_gradient(model, plain, [batch]), **CLOSE)
    found = sharpness(model, again, [batch], rtol=1e-6)
    assert (found.hvp, found.converged) == ("difference", True)
    assert found.value == pytest.approx(float(top(dense_hessian(model, plain, [batch]))), rel=1e-5)


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
