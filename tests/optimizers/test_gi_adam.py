"""GI-Adam against the paper's notation, and what is its own beside torch's Adam.

Ladder: closed forms (the first step, a late first step, the automatic warmup) → reference.py in float64, on which
torch's own Adam and AdamW are known-good rows → gradcheck. Habits that any Adam has: test_common.py; shards:
tests/distributed. Cannot see: kernels of other devices; CI has a CPU.
"""

import copy
import inspect
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

from edgewise import GIAdam, GIAdamW
from edgewise.optimizers import gi_adam
from edgewise.optimizers.preconditioner import preconditioner_of
from optimizers.reference import adam
from optimizers.runs import KERNELS, apply, gradients, run
from oracles import bits

# One evaluation order against another in float64, ten steps: a few 10 ε relative to steps of lr.
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
ALL = [Adam, AdamW, GIAdam, GIAdamW]  # torch's two are the known-good rows
OURS = [(GIAdam, Adam), (GIAdamW, AdamW)]
OPTIONS = [
    {},
    {"weight_decay": 0.3},
    {"amsgrad": True, "betas": (0.9, 0.6)},
    {"maximize": True, "weight_decay": 0.3},
    {"eps": 0.1, "betas": (0.5, 0.9), "lr": 0.2},
    {"amsgrad": True, "weight_decay": 0.1, "maximize": True, "betas": (0.8, 0.7)},
]
OWN = [{}, {"scale": 4.0}, {"per_entry": True}, {"scale": 3.0, "per_entry": True}]
# torch's fused Adam takes real parameters only
DTYPES = [(kernel, torch.float64) for kernel in KERNELS] + [
    (kernel, torch.complex128) for kernel in KERNELS[:2]
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
@pytest.mark.parametrize(("kernel", "dtype"), DTYPES, ids=repr)
@pytest.mark.parametrize(
    ("cls", "own"),
    [(Adam, {}), (AdamW, {})] + [(cls, own) for cls in (GIAdam, GIAdamW) for own in OWN],
    ids=repr,
)
def test_ten_steps_equal_the_reference(cls, own, kernel, options, dtype):
    start, steps = torch.randn(4, 3, dtype=dtype), gradients(10, dtype=dtype, late=True)
    options = {"weight_decay": 0.0, "lr": 0.01, **options, **own}
    reference = adam(
        start,
        steps,
        **options,
        decoupled=issubclass(cls, AdamW),
        gradient_initialized=cls in (GIAdam, GIAdamW),
    )
    found = run(cls, start, steps, **options, **kernel)
    torch.testing.assert_close(found, torch.stack(list(reference)), **CLOSE)


@pytest.mark.parametrize(("ours", "torchs"), OURS)
def test_the_signature_is_torchs_and_two_options(ours, torchs):
    plain = lambda cls: {n: (p.kind, p.default) for n, p in inspect.signature(cls).parameters.items()}
    found = plain(ours)
    assert [found.pop(name)[1] for name in ("scale", "per_entry")] == [1.0, False]
    assert found == plain(torchs)


@pytest.mark.parametrize("scale", [1, 4.0])
@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
@pytest.mark.parametrize(("ours", "torchs"), OURS)
def test_the_first_step_is_that_of_adam_times_a_root(ours, torchs, beta2, scale):
    start, gradient = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    options = {"lr": 0.1, "betas": (0.9, beta2), "eps": 1e-16, "weight_decay": 0.0}
    moved = [
        run(cls, start, [gradient], **options, **own)[0] - start
        for cls, own in ((ours, {"scale": scale}), (torchs, {}))
    ]
    factor = math.sqrt((1 - beta2) / (1 + (scale - 1) * beta2))
    torch.testing.assert_close(moved[0], factor * moved[1], rtol=1e-10, atol=0)


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


# Single entries

LATE = pytest.mark.parametrize("first", [1, 2, 7, 400])  # the step of the entry's first gradient


@LATE
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_a_late_entry_moves_by_the_formula(cls, kernel, scale, first):
    """(1 − β₁)/(1 − β₁ᵗ)·√((1 − β₂ᵗ)/(1 + (a − 1)β₂)) in units of the rate; √(1 − β₂) of Adam's at a = 1."""
    steps = [torch.tensor([1.0, 3.0 * (t == first)]).double() for t in range(1, first + 1)]
    options = {"lr": 1.0, "eps": 0.0 if first == 1 else 1e-30, "weight_decay": 0.0, **kernel}
    start = torch.zeros(2).double()
    moved = run(cls, start, steps, **options, scale=scale, per_entry=True)[-1][1].item()
    damping = 1 + (scale - 1) * 0.999
    formula = (1 - 0.9) / (1 - 0.9**first) * math.sqrt((1 - 0.999**first) / damping)
    assert -moved == pytest.approx(formula, rel=1e-9)
    whole = run(AdamW, start, steps, **options)[-1][1].item()
    assert moved == pytest.approx(math.sqrt((1 - 0.999) / damping) * whole, rel=1e-9)
    if first > 1:  # without per_entry, a late entry is Adam's
        assert run(cls, start, steps, **options, scale=scale)[-1][1].item() == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_rows_of_an_embedding_start_one_by_one(kernel):
    """Each row as if it were alone, but for the count of steps, which is the parameter's."""
    torch.manual_seed(1)
    embedding = nn.Embedding(6, 3).double()
    optimizer = GIAdam(embedding.parameters(), lr=0.1, per_entry=True, **kernel)
    seen = torch.zeros(6, dtype=torch.bool)
    for row in [2, 4, 2, 0, 0, 5]:
        optimizer.zero_grad()
        embedding(torch.tensor([row])).square().sum().backward()
        gradient = embedding.weight.grad.clone()
        before = optimizer.state[embedding.weight].get("exp_avg_sq", torch.zeros(6, 3).double()).clone()
        optimizer.step()
        v = optimizer.state[embedding.weight]["exp_avg_sq"]
        start = before[row] if seen[row] else gradient[row] ** 2
        torch.testing.assert_close(v[row], 0.999 * start + 0.001 * gradient[row] ** 2, **CLOSE)
        seen[row] = True
        assert torch.equal((v > 0).all(1), seen)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("beta2", [0.6, 0.999])
def test_a_positive_v_never_decays_to_zero(kernel, beta2):
    """Nor does it, therefore, start twice; below β₂ = 1/2 it does."""
    p = nn.Parameter(torch.ones(20))
    optimizer = GIAdam([p], betas=(0.9, beta2), per_entry=True, **kernel)
    apply(optimizer, p, 3e-23 * torch.arange(1, 21))
    v = optimizer.state[p]["exp_avg_sq"]
    assert (v > 0).all()
    for _ in range(300):
        apply(optimizer, p, torch.zeros(20))
    assert (v > 0).all()
    with torch.no_grad():
        v.mul_(0.4).mul_(0.4)
    assert (v == 0).any()


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize(
    ("dtype", "tiny", "enough"), [(torch.float32, 2.6e-23, 3e-23), (torch.float16, 1.7e-4, 1.8e-4)]
)
def test_an_entry_whose_square_underflows_waits(kernel, dtype, tiny, enough):
    p = nn.Parameter(torch.zeros(2, dtype=dtype))
    optimizer = GIAdam([p], per_entry=True, **kernel)
    apply(optimizer, p, torch.tensor([tiny, enough], dtype=dtype))
    assert (optimizer.state[p]["exp_avg_sq"] > 0).tolist() == [False, True]
    apply(optimizer, p, torch.full((2,), 0.5, dtype=dtype))
    v = optimizer.state[p]["exp_avg_sq"]
    assert v[0].item() == pytest.approx(0.25, rel=1e-3)
    assert v[1].item() == pytest.approx(0.25e-3, rel=2e-2)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_entries_that_have_started_are_left_alone_bit_for_bit(kernel):
    """Also where g² overflows: v of an entry that has one is torch's."""
    steps = [torch.randn(50), torch.randn(50) * 1e25, torch.randn(50)]
    started = [g.where(g != 0, torch.ones(())) for g in steps]
    p, q = nn.Parameter(torch.ones(50)), nn.Parameter(torch.ones(50))
    ours, torchs = GIAdam([p], per_entry=True, **kernel), Adam([q], **kernel)
    apply(ours, p, started[0])
    apply(torchs, q, started[0])
    q.data.copy_(p.data)
    torchs.load_state_dict(ours.state_dict())
    for gradient in started[1:]:
        assert bits(apply(ours, p, gradient)) == bits(apply(torchs, q, gradient))


@pytest.mark.parametrize("rejected", [None, 0.0, 1.0])
@pytest.mark.parametrize(
    "options", [{}, {"weight_decay": 0.3}, {"weight_decay": 0.3, "maximize": True}], ids=repr
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_starting_together_is_starting_one_by_one(dtype, options, rejected):
    """On a CPU, fused kernels take the one; on accelerators the other, under a scaler too."""
    make = lambda: [torch.randn(n, dtype=dtype) for n in (3, 5)]
    parameters, gradients, moments = make(), make(), [torch.zeros(n, dtype=dtype) for n in (3, 5)]
    moments[0][1] = 0.5
    if rejected:
        gradients[1][0] = math.inf
    expected = [moment.clone() for moment in moments]
    rejected = None if rejected is None else torch.tensor(rejected)
    group = GIAdam(parameters, scale=3.0, per_entry=True, **options).param_groups[0]
    gi_adam._start_together(group, parameters, gradients, moments, rejected)
    for p, gradient, moment, together in zip(parameters, gradients, expected, moments, strict=True):
        held = moment.clone()
        gi_adam._start_one(group, p, gradient, moment, rejected)
        torch.testing.assert_close(together, moment, **CLOSE)
        assert (bits(moment) == bits(held)) == bool(rejected)


def test_a_compiled_step_with_per_entry_is_refused():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = GIAdam([p], per_entry=True)
    with pytest.raises(Exception, match="per_entry=True has no compiled step"):
        torch.compile(optimizer.step, backend="eager")()
    assert optimizer.state == {}


@pytest.mark.filterwarnings("ignore")  # torch's own, of a compiled step
def test_a_compiled_step_is_that_of_a_plain_one():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer, other = (GIAdam([x], lr=torch.tensor(0.1)) for x in (p, q))
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        p.grad = q.grad = torch.randn(2)
        step()
        other.step()
        torch.testing.assert_close(p, q)


# Differentiable steps


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 2.0},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "maximize": True},
        {"amsgrad": True, "steps": 1},  # torch's own fails at the second
        {"per_entry": True, "scale": 2.0},
        {"per_entry": True, "weight_decay": 0.3},
    ],
    ids=repr,
)
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_gradients_flow_through_v0(cls, options):
    """By finite differences, of some steps, in the start and every gradient."""
    options = {"lr": 0.3, "betas": (0.5, 0.6), "weight_decay": 0.0, **options}
    steps = options.pop("steps", 3)

    def trained(theta, *grads):
        p = theta.clone()
        optimizer = cls([p], differentiable=True, **options)
        for gradient in grads:
            p.grad = gradient
            optimizer.step()
        return p

    inputs = [torch.randn(3).double().requires_grad_() for _ in range(1 + steps)]
    torch.autograd.gradcheck(trained, inputs)


def test_gradients_flow_through_v0_by_the_closed_form():
    """One step is −lr·√(1 − β₂)·g/(|g| + ε'): its derivative is lr·√(1 − β₂)·ε'/(|g| + ε')², ε' = ε·√(1 − β₂)."""
    root, eps = math.sqrt(1 - 0.9), 0.5
    g = torch.tensor([0.3, -2.0, 1.0]).double().requires_grad_()
    p = torch.zeros(3).double().requires_grad_().clone()
    p.grad = g * 1
    GIAdam([p], lr=0.1, betas=(0.9, 0.9), eps=eps, differentiable=True).step()
    (found,) = torch.autograd.grad(p.sum(), g)
    expected = -0.1 * root * eps * root / (g.detach().abs() + eps * root) ** 2
    torch.testing.assert_close(found, expected)


def test_gradients_flow_to_a_weight_decay_that_is_a_tensor():
    def trained(decay):
        p = torch.arange(1, 4).double().requires_grad_().clone()
        p.grad = torch.tensor([1.0, -1, 2]).double()
        GIAdam([p], lr=0.3, eps=0.1, differentiable=True, weight_decay=decay).step()
        return p.sum()

    decay, step = torch.tensor(0.4).double().requires_grad_(), 1e-6
    (found,) = torch.autograd.grad(trained(decay), decay)
    expected = (trained(0.4 + step) - trained(0.4 - step)) / (2 * step)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


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


def reject(optimizer, p, scaler, gradient=math.inf):
    p.grad = torch.full_like(p, gradient)
    scaler.scale(torch.zeros(()))  # the scaler makes its scale at the first loss
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("gradient", [math.inf, math.nan])
@pytest.mark.parametrize("own", [*OWN, {"per_entry": True, "weight_decay": 0.3}], ids=repr)
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_a_rejected_step_initializes_nothing(cls, kernel, own, gradient):
    """At first, and for the entries that are still to come."""
    p, q = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer, scaler = cls([p], **own, **kernel), torch.amp.GradScaler("cpu", init_scale=1024.0)
    twin, other = cls([q], **own, **kernel), torch.amp.GradScaler("cpu", init_scale=1024.0)
    reject(optimizer, p, scaler, gradient)
    assert (p == 1).all()
    assert not optimizer.state[p] or not any(value.any() for value in optimizer.state[p].values())
    for row in ([1.0, 0, 0, 0], [2.0, 0, 1, 0], [1.0, 1, 1, 1]):
        for x, opt, scale in ((p, optimizer, scaler), (q, twin, other)):
            x.grad = scale.scale(torch.tensor(row))
            scale.step(opt)
            scale.update()
        before = copy.deepcopy(optimizer.state_dict()["state"][0])
        reject(optimizer, p, scaler, gradient)
        after = optimizer.state_dict()["state"][0]
        assert all(bits(before[name]) == bits(after[name]) for name in before)
        assert bits(p) == bits(q)  # the scales differ by powers of two


@pytest.mark.parametrize("own", OWN, ids=repr)
def test_the_usual_scale_is_no_infinity_in_float16(own):
    """65536, where a scaler starts, exceeds float16; the fused kernel unscales in float32."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer, scaler = GIAdam([p], lr=1.0, fused=True, **own), torch.amp.GradScaler("cpu")
    p.grad = (scaler.scale(torch.tensor([0.25, 0.125]))).half()
    scaler.step(optimizer)
    expected = own.get("scale", 1.0) * torch.tensor([0.25, 0.125]).square()
    torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"].float(), expected, rtol=2e-3, atol=0)


# State goes to torch's Adam and comes from it


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize(("ours", "torchs"), OURS)
def test_state_goes_both_ways_and_continues_bit_for_bit(ours, torchs, kernel, amsgrad, steps, tmp_path):
    grads = gradients(8)
    for source, target in ((ours, torchs), (torchs, ours)):
        p = nn.Parameter(torch.ones(4, 3).double())
        optimizer = source([p], lr=0.1, amsgrad=amsgrad, weight_decay=0.1, **kernel)
        for gradient in grads[:steps]:
            apply(optimizer, p, gradient)
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        saved = torch.load(tmp_path / "state.pt", weights_only=True)
        assert saved["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"} | (
            {"max_exp_avg_sq"} if amsgrad else set()
        )
        q = nn.Parameter(p.detach().clone())
        other = target([q])
        other.load_state_dict(saved)
        for gradient in grads[steps:]:
            assert bits(apply(optimizer, p, gradient)) == bits(apply(other, q, gradient))


def loaded(optimizer, state):
    optimizer.load_state_dict(state)
    return optimizer


COPIES = {
    "loaded": lambda optimizer: loaded(copy.deepcopy(optimizer), optimizer.state_dict()),
    "loaded from torch's": lambda optimizer: loaded(copy.deepcopy(optimizer), plain(optimizer)),
    "pickled": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "deep-copied": copy.deepcopy,
}


def plain(optimizer):
    """The state dict as torch's Adam would have saved it."""
    torchs = Adam([{"params": [torch.ones(2)]}, {"params": [torch.ones(2)]}])
    state = torchs.state_dict()
    assert not {"scale", "per_entry"} & set(state["param_groups"][0])
    return state


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_each_group_keeps_its_own_options(cls, copied):
    groups = [{"params": [torch.ones(2)]}, {"params": [torch.ones(2)], "scale": 5, "per_entry": False}]
    twin = copied(cls(groups, scale=3.0, per_entry=True))
    twin.add_param_group({"params": [torch.ones(2)]})
    twin.add_param_group({"params": [torch.ones(2)], "scale": 7.0})
    found = [(group["scale"], group["per_entry"]) for group in twin.param_groups]
    assert found == [(3.0, True), (5.0, False), (3.0, True), (7.0, True)]
    assert all(type(scale) is float for scale, _ in found)  # which torch.load takes with weights_only=True


def test_a_loaded_option_replaces_the_own():
    source, target = GIAdam([torch.ones(2)], scale=3.0), GIAdam([torch.ones(2)], per_entry=True)
    target.load_state_dict(source.state_dict())
    assert (target.param_groups[0]["scale"], target.param_groups[0]["per_entry"]) == (3.0, False)


def test_groups_use_their_own_scale():
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = GIAdam([{"params": [p]}, {"params": [q], "scale": 9.0}], betas=(0.9, 0.5), scale=2.0)
    p.grad = q.grad = torch.full((3,), 2.0)
    optimizer.step()
    assert optimizer.state[p]["exp_avg_sq"].tolist() == [0.5 * 2 * 4 + 0.5 * 4] * 3
    assert optimizer.state[q]["exp_avg_sq"].tolist() == [0.5 * 9 * 4 + 0.5 * 4] * 3


# P of the next update


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("own", OWN, ids=repr)
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_the_diagonal_is_what_the_step_divides_by(cls, own, steps, decay, amsgrad):
    """Of entries that started, start now, and have yet to start: (θ − θ')·P = lr·m."""
    grads = gradients(4, late=True)
    p = nn.Parameter(torch.randn(4, 3).double())
    optimizer = cls([p], lr=0.1, weight_decay=decay, eps=1e-3, amsgrad=amsgrad, **own)
    for gradient in grads[:steps]:
        apply(optimizer, p, gradient)
    held = copy.deepcopy(optimizer.state_dict())
    entries = preconditioner_of(optimizer, [p], [grads[steps]]).entries.reshape(4, 3)
    kept = optimizer.state_dict()["state"].get(0, {})
    assert all(bits(value) == bits(kept[name]) for name, value in held["state"].get(0, {}).items())
    before = p.detach().clone() * (1 - 0.1 * decay if cls is GIAdamW else 1)
    after = apply(optimizer, p, grads[steps])
    torch.testing.assert_close(
        (before - after) * entries, 0.1 * optimizer.state[p]["exp_avg"], rtol=1e-9, atol=1e-15
    )


# Errors


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({"scale": 0.5}, ValueError, r"scale must be a finite number, 1 or greater, got 0\.5.*pass 1\.0"),
        ({"scale": math.nan}, ValueError, "got nan"),
        ({"scale": math.inf}, ValueError, "got inf"),
        ({"scale": -1}, ValueError, "got -1"),
        ({"scale": True}, TypeError, "got True"),
        ({"scale": "2"}, TypeError, "got '2'"),
        ({"scale": None}, TypeError, "got None"),
        ({"scale": torch.tensor(2.0)}, TypeError, r"got tensor\(2\.\)"),
        ({"per_entry": 1}, TypeError, "per_entry must be True or False, got 1.*pass True"),
        ({"per_entry": None}, TypeError, "got None"),
    ],
)
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_a_bad_option_is_refused_first(cls, own, error, message):
    good = [nn.Parameter(torch.ones(1))]
    with pytest.raises(error, match=message):
        cls(good, lr=-1.0, **own)
    with pytest.raises(error, match=message):
        cls([{"params": good}, {"params": [torch.ones(1)], **own}])
    optimizer = cls(good)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": ["not a tensor"], **own})
    assert len(optimizer.param_groups) == 1
    state = optimizer.state_dict()
    state["param_groups"][0] |= own
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(state)
    assert (optimizer.param_groups[0]["scale"], optimizer.param_groups[0]["per_entry"]) == (1.0, False)


# Half precision


@pytest.mark.parametrize("kernel", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=repr)
@pytest.mark.parametrize("beta2", [0.99, 0.996, 0.9985, 0.999])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("cls", [GIAdam, GIAdamW])
def test_where_v_never_decays_a_warning_says_so(cls, dtype, beta2, kernel):
    """After gradients of zero for 3,000 steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = cls([p := nn.Parameter(torch.ones(8, dtype=dtype))], lr=0.0, betas=(0.9, beta2), **kernel)
    p.grad = torch.linspace(1, 1.4, 8).to(dtype)
    optimizer.step()
    start = optimizer.state[p]["exp_avg_sq"].clone()
    p.grad = torch.zeros_like(p)
    for _ in range(3000):
        optimizer.step()
    stands = bool((optimizer.state[p]["exp_avg_sq"] > 0.5 * start).any())
    assert stands == bool(caught) == (dtype == torch.bfloat16 and beta2 > 0.996)
    assert all(w.filename == __file__ and "v rounds to v" in str(w.message) for w in caught)


def test_a_group_added_later_is_looked_at_as_well():
    optimizer = GIAdamW([nn.Parameter(torch.ones(1))])
    with pytest.warns(
        UserWarning, match=r"bfloat16, where β₂ = 0\.999 times v rounds to v.* or take β₂ ≤ 0\.99609"
    ):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1, dtype=torch.bfloat16))]})
