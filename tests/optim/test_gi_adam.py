"""GI-Adam against the paper's notation, and against the habits of torch's optimizers.

Ladder: closed form (the first step) → reference.py in float64, on which torch's own Adam and AdamW are
known-good rows. Cannot see: kernels of other devices; CI has a CPU.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

from edgewise import GIAdam, GIAdamW
from optim.reference import adam
from oracles import bits

# One evaluation order against another in float64, ten steps: a few 10 ε relative to steps of lr.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
ALL = [Adam, AdamW, GIAdam, GIAdamW]  # torch's two are the known-good rows
OURS = [(GIAdam, Adam), (GIAdamW, AdamW)]
KERNELS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"amsgrad": True, "betas": (0.9, 0.6)},
    {"maximize": True, "weight_decay": 0.3},
    {"eps": 0.1, "betas": (0.5, 0.9), "lr": 0.2},
    {"amsgrad": True, "weight_decay": 0.1, "maximize": True, "betas": (0.8, 0.7)},
]


def gradients(steps, shape=(4, 3), dtype=torch.float64):
    """Gradients that shrink and grow, so that amsgrad's maximum differs from v."""
    return [torch.randn(shape, dtype=dtype) * (1 + 3 * math.cos(2 * i)) for i in range(steps)]


def apply(optimizer, parameter, gradient):
    parameter.grad = None if gradient is None else gradient.clone()
    optimizer.step()
    return parameter.detach().clone()


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [(kernel, torch.float64) for kernel in KERNELS]
    # torch's fused Adam takes real parameters only
    + [(kernel, torch.complex128) for kernel in KERNELS if "fused" not in kernel],
    ids=repr,
)
@pytest.mark.parametrize("cls", ALL)
def test_ten_steps_equal_the_reference(cls, kernel, options, dtype):
    start, steps = torch.randn(4, 3, dtype=dtype), gradients(10, dtype=dtype)
    options = {"weight_decay": 0.0, "lr": 0.01, **options}
    reference = adam(
        start,
        steps,
        **options,
        decoupled=issubclass(cls, AdamW),
        gradient_initialized=cls in (GIAdam, GIAdamW),
    )
    p = nn.Parameter(start.clone())
    optimizer = cls([p], **options, **kernel)
    for gradient, expected in zip(steps, reference, strict=True):
        torch.testing.assert_close(apply(optimizer, p, gradient), expected, **CLOSE)


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
@pytest.mark.parametrize(("ours", "torchs"), OURS)
def test_the_first_step_is_that_of_adam_times_a_root(ours, torchs, beta2):
    start, gradient = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    moved = []
    for cls in (ours, torchs):
        p = nn.Parameter(start.clone())
        optimizer = cls([p], lr=0.1, betas=(0.9, beta2), eps=1e-16, weight_decay=0.0)
        moved.append(apply(optimizer, p, gradient) - start)
    torch.testing.assert_close(moved[0], math.sqrt(1 - beta2) * moved[1], rtol=1e-10, atol=0)


def test_constant_gradients_give_the_automatic_warmup():
    """v stays g², so that step t has length lr·√(1 − β₂ᵗ)."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = GIAdam([p], lr=1.0, betas=(0.9, 0.99), eps=0.0)
    before = 0.0
    for t in range(1, 50):
        apply(optimizer, p, torch.full((1,), 3.0, dtype=torch.float64))
        assert before - p.item() == pytest.approx(math.sqrt(1 - 0.99**t), rel=1e-9)
        before = p.item()


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_first_gradient_that_comes_late_starts_its_own_v(kernel):
    early, late = nn.Parameter(torch.zeros(2).double()), nn.Parameter(torch.zeros(2).double())
    optimizer = GIAdam([early, late], lr=0.1, **kernel)
    steps = gradients(6, (2,))
    for gradient in steps[:3]:
        early.grad = gradient
        optimizer.step()
    assert optimizer.state[late] == {}
    assert (late == 0).all()
    for gradient in steps[3:]:
        early.grad = late.grad = gradient
        optimizer.step()
    *_, expected = adam(torch.zeros(2).double(), steps[3:], lr=0.1)
    torch.testing.assert_close(late.detach(), expected, **CLOSE)
    *_, expected = adam(torch.zeros(2).double(), steps, lr=0.1)
    torch.testing.assert_close(early.detach(), expected, **CLOSE)


@pytest.mark.parametrize("cls", ALL)
def test_a_zero_first_gradient_moves_nothing(cls):
    p = nn.Parameter(torch.ones(2))
    assert torch.equal(apply(cls([p], weight_decay=0.0), p, torch.zeros(2)), torch.ones(2))


# Mixed precision: a GradScaler hands scaled gradients to the fused kernel, which unscales and skips by itself


@pytest.mark.parametrize("overflows", [0, 2])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("cls", ALL)
def test_a_grad_scaler_changes_nothing(cls, kernel, overflows):
    """Powers of two scale exactly; the first steps overflow and are skipped, as they do in practice."""
    p, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cls([p], lr=0.1, weight_decay=0.1, **kernel)
    plain = cls([twin], lr=0.1, weight_decay=0.1, **kernel)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(overflows):
        optimizer.zero_grad()
        scaler.scale((p * math.inf).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (p == 1).all()
    for factor in (2.0, 3.0, -1.0):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        apply(plain, twin, torch.full((3,), factor))
    torch.testing.assert_close(p, twin, rtol=1e-6, atol=0)


# Habits of torch's optimizers


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("cls", ALL)
def test_it_minimizes(cls, kernel):
    model = nn.Linear(4, 1)
    x = torch.randn(32, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    optimizer = cls(model.parameters(), lr=0.05, betas=(0.9, 0.9), **kernel)  # forgets g₀ in tens of steps
    loss = lambda: (model(x) - y).square().mean()
    first = loss().item()
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.05 * first


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("cls", ALL)
def test_a_saved_state_continues_bit_for_bit(cls, steps, tmp_path):
    grads = gradients(10)
    start = torch.randn(4, 3, dtype=torch.float64)
    p = nn.Parameter(start.clone())
    optimizer = cls([p], lr=0.1, amsgrad=True)
    for gradient in grads[:steps]:
        apply(optimizer, p, gradient)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    q = nn.Parameter(p.detach().clone())
    other = cls([q], lr=7.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for gradient in grads[steps:]:
        assert bits(apply(optimizer, p, gradient)) == bits(apply(other, q, gradient))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("ours", "torchs"), OURS)
def test_the_state_has_torchs_keys_and_loads_into_torchs_adam(ours, torchs, amsgrad):
    states, optimizers = [], []
    for cls in (ours, torchs):
        p = nn.Parameter(torch.ones(2))
        optimizers.append(cls([p], amsgrad=amsgrad))
        apply(optimizers[-1], p, torch.ones(2))
        states.append(optimizers[-1].state_dict())
    assert states[0]["state"][0].keys() == states[1]["state"][0].keys()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    optimizers[1].load_state_dict(states[0])
    optimizers[0].load_state_dict(states[1])


@pytest.mark.parametrize("cls", ALL)
def test_a_deep_copy_continues_bit_for_bit(cls):
    p = nn.Parameter(torch.ones(3))
    optimizer = cls([p])
    apply(optimizer, p, torch.randn(3))
    q, twin = copy.deepcopy((p, optimizer))
    gradient = torch.randn(3)
    assert bits(apply(optimizer, p, gradient)) == bits(apply(twin, q, gradient))


@pytest.mark.parametrize("cls", ALL)
def test_the_gradient_is_left_as_it_was(cls):
    p = nn.Parameter(torch.randn(3))
    optimizer = cls([p], weight_decay=0.3, maximize=True)
    for _ in range(2):
        p.grad = gradient = torch.randn(3)
        held = gradient.clone()
        optimizer.step()
        assert p.grad is gradient
        assert bits(gradient) == bits(held)


@pytest.mark.parametrize("cls", ALL)
def test_parameters_without_gradient_are_left_alone(cls):
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cls([p, q])
    apply(optimizer, p, torch.ones(3))
    assert (q == 1).all()
    assert optimizer.state[q] == {}
    assert (p != 1).all()


@pytest.mark.parametrize("cls", ALL)
def test_a_closure_computes_the_gradient_of_the_step(cls):
    p, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, other = cls([p]), cls([twin])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert bits(apply(other, twin, torch.full((3,), 2.0))) == bits(p)


@pytest.mark.parametrize("cls", ALL)
def test_step_hooks_run_once_a_step(cls):
    plain = nn.Parameter(torch.ones(1))
    apply(Adam([plain]), plain, torch.ones(1))  # torch patches the class's step at construction
    p, seen = nn.Parameter(torch.ones(1)), []
    optimizer = cls([p])
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    apply(optimizer, p, torch.ones(1))
    apply(optimizer, p, torch.ones(1))
    assert seen == ["pre", "post"] * 2


@pytest.mark.parametrize("cls", ALL)
def test_capturable_is_taken_and_on_a_cpu_refused_by_the_kernel(cls):
    p = nn.Parameter(torch.ones(1))
    optimizer = cls([p], capturable=True)
    with pytest.raises(AssertionError, match="capturable=True"):
        apply(optimizer, p, torch.ones(1))


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0"),
        ({"betas": (0.9, 1.0)}, "Invalid beta parameter at index 1"),
        ({"eps": -1.0}, "Invalid epsilon"),
        ({"weight_decay": -1.0}, "Invalid weight_decay"),
    ],
)
def test_torchs_own_errors(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls([nn.Parameter(torch.ones(1))], **kwargs)


@pytest.mark.parametrize("cls", ALL)
def test_sparse_gradients_are_refused_and_no_state_is_left_behind(cls):
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3).to_sparse()
    optimizer = cls([p])
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state[p]


@pytest.mark.parametrize("cls", ALL)
def test_groups_have_their_own_options(cls):
    p, q = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(2).double())
    optimizer = cls(
        [{"params": [p]}, {"params": [q], "lr": 0.3, "betas": (0.5, 0.9)}], lr=0.1, weight_decay=0.0
    )
    steps = gradients(3, (2,))
    for gradient in steps:
        p.grad = q.grad = gradient
        optimizer.step()
    initialized = cls in (GIAdam, GIAdamW)
    for parameter, options in ((p, {"lr": 0.1}), (q, {"lr": 0.3, "betas": (0.5, 0.9)})):
        *_, expected = adam(torch.ones(2).double(), steps, **options, gradient_initialized=initialized)
        torch.testing.assert_close(parameter.detach(), expected, **CLOSE)
