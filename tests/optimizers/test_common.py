"""What holds for any Adam: torch's two are the known-good rows beside GI-Adam's.

Ladder: the same optimizer in another way (another kernel, an interrupted run, negated gradients). Cannot see:
what all rows do wrong alike; the reference of test_gi_adam.py does.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

from edgewise import GIAdam, GIAdamW
from optimizers.runs import KERNELS, apply, gradients, run
from oracles import bits

ROWS = [
    (Adam, {}),
    (AdamW, {}),
    (GIAdam, {}),
    (GIAdamW, {"scale": 4.0}),
    (GIAdam, {"per_entry": True}),
    (GIAdamW, {"per_entry": True, "scale": 2.0}),
]
every_row = pytest.mark.parametrize(
    ("cls", "own"), ROWS, ids=lambda x: x.__name__ if isinstance(x, type) else repr(x)
)
OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"amsgrad": True, "betas": (0.9, 0.6)},
    {"maximize": True, "weight_decay": 0.3, "amsgrad": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@every_row
def test_kernels_agree(cls, own, options):
    start, steps = torch.randn(4, 3).double(), gradients(8, late=True)
    loop, foreach, fused = (run(cls, start, steps, **own, **options, **kernel) for kernel in KERNELS)
    torch.testing.assert_close(foreach, loop, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(fused, loop, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_maximizing_is_minimizing_the_negative(cls, own, kernel):
    start, steps = torch.randn(4, 3), gradients(8, dtype=torch.float32, late=True)
    expected = run(cls, start, [-g for g in steps], **own, **kernel, weight_decay=0.0)
    assert bits(run(cls, start, steps, **own, **kernel, weight_decay=0.0, maximize=True)) == bits(expected)


@pytest.mark.parametrize("kernel", [KERNELS[0], KERNELS[2]], ids=repr)  # torch's foreach refuses a tensor
@every_row
def test_a_tensor_is_a_rate(cls, own, kernel):
    start, steps = torch.randn(4, 3).double(), gradients(8, late=True)
    found = run(cls, start, steps, lr=torch.tensor(0.25).double(), **own, **kernel)
    torch.testing.assert_close(found, run(cls, start, steps, lr=0.25, **own, **kernel), rtol=1e-12, atol=0)


@every_row
def test_foreach_refuses_a_tensor_as_the_rate(cls, own):
    with pytest.raises(ValueError, match="lr as a Tensor is not supported"):
        cls([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1), foreach=True, **own)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_it_minimizes(cls, own, kernel):
    model = nn.Linear(4, 1)
    x = torch.randn(32, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    options = {"lr": 0.05, "betas": (0.9, 0.9)}  # forgets g₀ in tens of steps
    optimizer = cls(model.parameters(), **options, **own, **kernel)
    loss = lambda: (model(x) - y).square().mean()
    first = loss().item()
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.05 * first


# Saved and copied


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_a_saved_state_continues_bit_for_bit(cls, own, kernel, steps, tmp_path):
    grads = gradients(10, late=True)
    p = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    optimizer = cls([p], lr=0.1, amsgrad=True, **own, **kernel)
    for gradient in grads[:steps]:
        apply(optimizer, p, gradient)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    q = nn.Parameter(p.detach().clone())
    other = cls([q], lr=7.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for gradient in grads[steps:]:
        assert bits(apply(optimizer, p, gradient)) == bits(apply(other, q, gradient))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("steps", [0, 3])
@every_row
def test_a_copy_continues_bit_for_bit(cls, own, steps, copied):
    grads = gradients(6, late=True)
    p = nn.Parameter(torch.ones(4, 3).double())
    optimizer = cls([p], **own)
    for gradient in grads[:steps]:
        apply(optimizer, p, gradient)
    q, twin = copied((p, optimizer))
    assert twin.param_groups[0]["params"][0] is q
    for gradient in grads[steps:]:
        assert bits(apply(optimizer, p, gradient)) == bits(apply(twin, q, gradient))


@every_row
def test_a_copy_takes_more_groups(cls, own):
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    twin = copy.deepcopy(cls([p], lr=0.3, **own))
    twin.add_param_group({"params": [q]})
    assert {k: v for k, v in twin.param_groups[0].items() if k != "params"} == {
        k: v for k, v in twin.param_groups[1].items() if k != "params"
    }


# What a step touches


@every_row
def test_the_gradient_is_left_as_it_was(cls, own):
    p = nn.Parameter(torch.randn(3))
    optimizer = cls([p], weight_decay=0.3, maximize=True, **own)
    for _ in range(2):
        p.grad = gradient = torch.randn(3)
        held = gradient.clone()
        optimizer.step()
        assert p.grad is gradient
        assert bits(gradient) == bits(held)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_parameters_without_gradient_are_left_alone(cls, own, kernel):
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cls([q, p], **own, **kernel)
    for _ in range(2):
        apply(optimizer, p, torch.ones(3))
    assert (q == 1).all()
    assert optimizer.state[q] == {}
    assert (p != 1).all()


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_an_empty_group_is_no_hindrance(cls, own, kernel):
    p, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cls([{"params": []}, {"params": [p]}], **own, **kernel)
    expected = apply(cls([twin], **own, **kernel), twin, torch.ones(3))
    assert bits(apply(optimizer, p, torch.ones(3))) == bits(expected)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_a_group_added_later_starts_on_its_own(cls, own, kernel):
    p, q, twin = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = cls([p], **own, **kernel)
    apply(optimizer, p, torch.ones(2))
    optimizer.add_param_group({"params": [q], "lr": 0.3})
    other = cls([twin], lr=0.3, **own, **kernel)
    for factor in (3.0, -1.0):
        p.grad = torch.ones(2)
        found = apply(optimizer, q, torch.full((2,), factor))
        assert bits(found) == bits(apply(other, twin, torch.full((2,), factor)))


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_a_cleared_state_starts_anew(cls, own, kernel):
    p, twin = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = cls([p], weight_decay=0.0, **own, **kernel)
    apply(optimizer, p, torch.full((2,), 7.0))
    optimizer.state.clear()
    p.data.fill_(1.0)
    other = cls([twin], weight_decay=0.0, **own, **kernel)
    assert bits(apply(optimizer, p, torch.ones(2))) == bits(apply(other, twin, torch.ones(2)))


@every_row
def test_a_zero_first_gradient_moves_nothing(cls, own):
    p = nn.Parameter(torch.ones(2))
    assert torch.equal(apply(cls([p], weight_decay=0.0, **own), p, torch.zeros(2)), torch.ones(2))


# Closures and hooks


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@every_row
def test_a_closure_computes_the_gradient_of_the_step(cls, own, kernel):
    p, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, other = cls([p], **own, **kernel), cls([twin], **own, **kernel)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert bits(apply(other, twin, torch.full((3,), 2.0))) == bits(p)


@every_row
def test_step_hooks_run_once_a_step(cls, own):
    plain = nn.Parameter(torch.ones(1))
    apply(Adam([plain]), plain, torch.ones(1))  # torch patches the class's step at construction
    p, seen = nn.Parameter(torch.ones(1)), []
    optimizer = cls([p], **own)
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    apply(optimizer, p, torch.ones(1))
    apply(optimizer, p, torch.ones(1))
    assert seen == ["pre", "post"] * 2


# Errors are torch's


@every_row
def test_capturable_is_taken_and_on_a_cpu_refused_by_the_kernel(cls, own):
    p = nn.Parameter(torch.ones(1))
    optimizer = cls([p], capturable=True, **own)
    with pytest.raises(AssertionError, match="capturable=True"):
        apply(optimizer, p, torch.ones(1))


@every_row
@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "Invalid learning rate"),
        ({"betas": (1.0, 0.9)}, ValueError, "Invalid beta parameter at index 0"),
        ({"betas": (0.9, 1.0)}, ValueError, "Invalid beta parameter at index 1"),
        ({"eps": -1.0}, ValueError, "Invalid epsilon"),
        ({"weight_decay": -1.0}, ValueError, "Invalid weight_decay"),
        ({"fused": True, "differentiable": True}, RuntimeError, "`fused` does not support `differentiable`"),
        ({"fused": True, "foreach": True}, RuntimeError, "cannot be `True` together"),
    ],
)
def test_torchs_own_errors(cls, own, kwargs, error, message):
    with pytest.raises(error, match=message):
        cls([nn.Parameter(torch.ones(1))], **kwargs, **own)


@every_row
@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "empty parameter list"),
        (torch.ones(1), TypeError, "iterable of Tensors or dicts"),
        ([{"params": {torch.ones(1)}}], TypeError, "ordered collections"),
        (["w"], TypeError, "can only optimize Tensors"),
    ],
)
def test_torchs_own_errors_of_parameters(cls, own, params, error, message):
    with pytest.raises(error, match=message):
        cls(params, **own)


@every_row
def test_a_group_is_a_dict(cls, own):
    optimizer = cls([nn.Parameter(torch.ones(1))], **own)
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([nn.Parameter(torch.ones(1))])


@every_row
def test_sparse_gradients_are_refused_and_no_state_is_left_behind(cls, own):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3).to_sparse()
    optimizer = cls([p], **own)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state[p]


@every_row
def test_a_refused_step_does_not_count_as_the_first(cls, own):
    """The parameters before the one with a sparse gradient start when the step succeeds, from its gradients."""
    p, q, twin, last = (nn.Parameter(torch.ones(3)) for _ in range(4))
    optimizer, expected = cls([p, q], **own), cls([twin, last], **own)
    p.grad, q.grad = torch.full((3,), 7.0), torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    twin.grad, last.grad = torch.ones(3), torch.ones(3)
    expected.step()
    assert bits(p) == bits(twin)
    assert bits(q) == bits(last)
