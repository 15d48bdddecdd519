"""The stability limit against closed forms, and against optimizers that do or do not diverge.

Ladder: closed form; the real optimizer on a quadratic a thousandth below and above the limit, P frozen by a large ε.
Cannot see: how far training itself hovers from the limit, where P moves and gradients are noisy.
"""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import edgewise as ew
from cases import MLP, OPT, PRECONDITIONED, ids, mse, train_step
from edgewise.optimizers.preconditioner import diagonal
from oracles import bits

LR = 0.01
MINIMIZING = [opt for opt in PRECONDITIONED if not opt.options.get("maximize")]
NESTEROV = {"momentum": 0.9, "nesterov": True}

# name, class, options, limit in the long run, at the first step: η = 0.01
CLOSED_FORMS = [
    ("gd", torch.optim.SGD, {}, 2, 2),
    ("gd-decay", torch.optim.SGD, {"weight_decay": 0.3}, 2 - 0.003, 2 - 0.003),
    ("momentum", torch.optim.SGD, {"momentum": 0.9}, 3.8, 2),
    ("momentum-decay", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.3}, 3.8 - 0.003, 2 - 0.003),
    ("dampening", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}, 7.6, 2),
    ("all-dampened", torch.optim.SGD, {"momentum": 0.9, "dampening": 1.0}, math.inf, 2),
    ("nesterov", torch.optim.SGD, NESTEROV, 3.8 / 2.8, 2 / 1.9),
    ("nesterov-decay", torch.optim.SGD, NESTEROV | {"weight_decay": 0.3}, 3.8 / 2.8 - 0.003, 2 / 1.9 - 0.003),
    ("adam", torch.optim.Adam, {}, 38, 20),
    ("adam-fused", torch.optim.Adam, {"fused": True}, 38, 20),
    ("adam-beta", torch.optim.Adam, {"betas": (0.5, 0.9)}, 6, 4),
    ("adam-long", torch.optim.Adam, {"betas": (0.999, 0.999)}, 3998, 2000),
    ("adam-no-momentum", torch.optim.Adam, {"betas": (0.0, 0.9)}, 2, 2),
    ("adam-no-eps", torch.optim.Adam, {"eps": 0.0}, 38, 20),
    ("adam-coupled", torch.optim.Adam, {"weight_decay": 0.3}, 38, 20),  # of P⁻¹(H + γ)
    ("adamw", torch.optim.AdamW, {"weight_decay": 0.3}, 19 * (2 - 0.003), 10 * (2 - 0.003)),
    ("amsgrad", torch.optim.Adam, {"amsgrad": True}, 38, 20),
    ("gi-adam", ew.GIAdam, {}, 38, 20),
    ("gi-adamw", ew.GIAdamW, {"weight_decay": 0.3}, 19 * (2 - 0.003), 10 * (2 - 0.003)),
    ("radam", torch.optim.RAdam, {}, 38, 20),
    ("radam-never-adaptive", torch.optim.RAdam, {"betas": (0.9, 0.5)}, 38, 20),
    ("adamax", torch.optim.Adamax, {}, 38, 20),
    ("nadam", torch.optim.NAdam, {}, 3.8 / 0.28, 2 / 0.19),
    (
        "nadamw",
        torch.optim.NAdam,
        {"weight_decay": 0.3, "decoupled_weight_decay": True},
        (2 - 0.003) * 1.9 / 0.28,
        (2 - 0.003) / 0.19,
    ),
    ("rmsprop", torch.optim.RMSprop, {}, 2, 2),
    ("rmsprop-decay", torch.optim.RMSprop, {"weight_decay": 0.3}, 2, 2),
    ("rmsprop-centered", torch.optim.RMSprop, {"centered": True}, 2, 2),
    ("rmsprop-momentum", torch.optim.RMSprop, {"momentum": 0.9}, 3.8, 2),
    ("rmsprop-both", torch.optim.RMSprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.3}, 3.8, 2),
    ("adagrad", torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}, 2, 2),
    ("adadelta", torch.optim.Adadelta, {"rho": 0.5, "weight_decay": 0.3}, 2, 2),
]


def parameter(*shape):
    return nn.Parameter(torch.zeros(*shape or (2,)))


def limit_of(cls, **options):
    return ew.stability_limit(cls([parameter()], **{"lr": LR} | options))


@pytest.mark.parametrize(
    ("cls", "options", "value", "initial"),
    [row[1:] for row in CLOSED_FORMS],
    ids=[r[0] for r in CLOSED_FORMS],
)
def test_the_closed_forms(cls, options, value, initial):
    found = limit_of(cls, **options)
    assert found.status is ew.Status.EXACT
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.initial == pytest.approx(initial, rel=1e-8)


@pytest.mark.parametrize("opt", MINIMIZING, ids=ids(MINIMIZING))
def test_every_optimizer_with_a_p_has_a_limit(opt):
    found = limit_of(opt.cls, **opt.options)
    assert found.status is ew.Status.EXACT
    assert 0 < found.initial <= found.value < math.inf


@given(
    beta=st.floats(0.01, 0.99),
    decay=st.floats(0, 1),
    lr=st.floats(1e-8, 1),
    cls=st.sampled_from([torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam]),
)
def test_the_formulas_of_the_docstring(beta, decay, lr, cls):
    if cls is torch.optim.SGD:
        found = limit_of(cls, momentum=beta, weight_decay=decay, lr=lr).value
        assert found == pytest.approx(2 + 2 * beta - lr * decay, rel=1e-6)
    elif cls is torch.optim.AdamW:
        found = limit_of(cls, betas=(beta, 0.99), weight_decay=decay, lr=lr).value
        assert found == pytest.approx((2 - lr * decay) * (1 + beta) / (1 - beta), rel=1e-6)
    else:
        options = {"betas": (beta, 0.99), "weight_decay": decay, "decoupled_weight_decay": True, "lr": lr}
        found = limit_of(cls, **options).value
        nesterov = (1 + beta) / ((1 - beta) * (1 + 2 * beta))
        assert found == pytest.approx((2 - lr * decay) * nesterov, rel=1e-6)


@pytest.mark.parametrize("lr", [1e-30, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("eps", [1e-30, 1e-8, 1.0, 1e12])
def test_neither_rate_nor_epsilon_matters_without_decay(lr, eps):
    assert limit_of(torch.optim.Adam, lr=lr, eps=eps).value == pytest.approx(38, rel=1e-8)
    assert limit_of(torch.optim.RMSprop, lr=lr, eps=eps).value == pytest.approx(2, rel=1e-8)


# Against divergence

BIG = 1e6  # ε: P is ε, to 1e-6
SMALL = 1e-20  # θ

DIVERGENCE = [
    ("gd", torch.optim.SGD, {}, 1.0),
    ("gd-decay", torch.optim.SGD, {"weight_decay": 20.0}, 1.0),
    ("momentum", torch.optim.SGD, {"momentum": 0.9}, 1.0),
    ("momentum-decay", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 50.0}, 1.0),
    ("dampening", torch.optim.SGD, {"momentum": 0.8, "dampening": 0.3}, 1.0),
    ("nesterov", torch.optim.SGD, NESTEROV, 1.0),
    ("nesterov-decay", torch.optim.SGD, NESTEROV | {"weight_decay": 20.0}, 1.0),
    ("adam", torch.optim.Adam, {"eps": BIG}, BIG),
    ("amsgrad", torch.optim.Adam, {"eps": BIG, "amsgrad": True}, BIG),
    ("adamw", torch.optim.AdamW, {"eps": BIG, "weight_decay": 30.0}, BIG),
    ("gi-adamw", ew.GIAdamW, {"eps": BIG, "weight_decay": 30.0}, BIG),
    ("radam", torch.optim.RAdam, {"eps": BIG, "betas": (0.9, 0.9)}, BIG),
    ("nadam", torch.optim.NAdam, {"eps": BIG, "momentum_decay": 10.0}, BIG),
    ("adamax", torch.optim.Adamax, {"eps": BIG}, BIG),
    ("rmsprop", torch.optim.RMSprop, {"eps": BIG}, BIG),
    ("rmsprop-momentum", torch.optim.RMSprop, {"eps": BIG, "momentum": 0.9}, BIG),
    ("adagrad", torch.optim.Adagrad, {"eps": BIG}, BIG),
    ("adadelta", torch.optim.Adadelta, {"eps": BIG}, 1.0),
]


def growth(cls, options, curvature):
    """How much larger θ is after 3000 steps on ½·curvature·θ² than after 1000."""
    theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = cls([theta], lr=LR, **options)
    theta.grad = torch.zeros_like(theta)
    for _ in range(300):  # bias corrections end
        optimizer.step()
    theta.data.fill_(SMALL)
    path = []
    for _ in range(3000):
        theta.grad = curvature * theta.detach()
        optimizer.step()
        path.append(abs(theta.item()))
        if path[-1] > 1e4 * SMALL:  # where ε is large no longer
            return math.inf
    return max(path[2900:]) / max(path[900:1000])


@pytest.mark.parametrize(
    ("cls", "options", "p"), [row[1:] for row in DIVERGENCE], ids=[r[0] for r in DIVERGENCE]
)
def test_a_thousandth_below_it_converges_and_above_it_diverges(cls, options, p):
    at_limit = limit_of(cls, **options).value / LR * p
    assert growth(cls, options, at_limit * (1 - 1e-3)) < 0.1
    assert growth(cls, options, at_limit * (1 + 1e-3)) > 10


@pytest.mark.parametrize(
    ("cls", "options", "p"), [row[1:] for row in DIVERGENCE], ids=[r[0] for r in DIVERGENCE]
)
def test_initially_the_first_step_lands_as_far_on_the_other_side(cls, options, p):
    theta = nn.Parameter(torch.full((1,), SMALL, dtype=torch.float64))
    optimizer = cls([theta], lr=LR, **options)
    initial = ew.stability_limit(optimizer).initial
    divisor = diagonal(optimizer, optimizer.param_groups[0], {}, theta, theta.detach()).item()
    theta.grad = initial / LR * divisor * theta.detach()
    optimizer.step()
    assert theta.item() / SMALL == pytest.approx(-1, rel=1e-5)


# Third-party optimizers


class Recursive(torch.optim.Optimizer):
    """Any combination of past gradients; P = 1."""

    def __init__(self, params, weights, lr=LR):
        super().__init__(params, {"lr": lr, "weights": weights})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                past = self.state[p].setdefault("past", [])
                past.insert(0, p.grad.clone())
                p.sub_(group["lr"] * self.combined(group["weights"], past))

    def combined(self, weights, past):
        return sum(w * g for w, g in zip(weights, past, strict=False))


class Sign(Recursive):
    def combined(self, weights, past):
        return past[0].sign()


class Squared(Recursive):
    def combined(self, weights, past):
        return past[0] * past[0].abs()


class Clipped(Recursive):
    def combined(self, weights, past):
        return past[0].clamp(-1.5, 1.5)


class Fading(Recursive):
    def combined(self, weights, past):
        return past[0] / len(past)


class CautiousDecay(Recursive):
    """Decays only parameters that the update also shrinks."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(LR * (p.grad + 0.5 * p * (p * p.grad > 0)))


@pytest.fixture
def recursive(registry):
    """`Recursive` and its subclasses have P = 1, for the length of a test."""
    ew.register_preconditioner(Recursive)(lambda o, group, state, p, gradient: torch.ones_like(p))


def delayed(steps):
    return 2 * math.sin(math.pi / (2 * (2 * steps + 1)))


@pytest.mark.parametrize(
    ("weights", "value", "initial"),
    [
        ([1.0], 2, 2),
        ([0.5, 0.5], 2, 4),  # z = ±i: N(−1) = 0
        ([0.75, 0.25], 4, 2 / 0.75),
        ([0.0, 1.0], delayed(1), math.inf),  # a complex pair crosses
        ([0.0, 0.0, 0.0, 1.0], delayed(3), math.inf),
        ([0.7**k + 0.3**k for k in range(100)], 2 / (1 / 1.7 + 1 / 1.3), 1.0),  # two momenta
        ([-1.0], 0, 0),  # uphill
        ([0.0], math.inf, math.inf),  # not at all
    ],
)
def test_a_registered_optimizer_is_interrogated(recursive, weights, value, initial):
    found = limit_of(Recursive, weights=weights)
    assert found.status is ew.Status.EXACT
    assert found.value == pytest.approx(value, rel=1e-8)
    assert found.initial == pytest.approx(initial, rel=1e-8)


@pytest.mark.parametrize("cls", [Sign, Squared, Clipped, Fading, CautiousDecay])
def test_an_update_that_is_not_linear_has_no_limit(recursive, cls):
    found = limit_of(cls, weights=[1.0])
    assert found.status is ew.Status.NO_LINEAR_LIMIT
    assert math.isnan(found.value)
    assert math.isnan(found.initial)


def test_a_window_longer_than_any_recursion_has_no_limit(recursive):
    assert limit_of(Recursive, weights=[0.1] * 10).status is ew.Status.NO_LINEAR_LIMIT


@pytest.mark.parametrize("cls", [torch.optim.Muon, torch.optim.Adafactor, torch.optim.LBFGS, Sign, Recursive])
def test_without_a_p_there_is_no_unit(cls):
    options = {"weights": [1.0]} if issubclass(cls, Recursive) else {}
    found = ew.stability_limit(cls([parameter(2, 2)], lr=LR, **options))
    assert found.status is ew.Status.NO_PRECONDITIONER
    assert math.isnan(found.value)


class Own(torch.optim.SGD):
    """Has an attribute of its own, and a constructor that takes other names."""

    def __init__(self, weights, rate):
        super().__init__(weights, lr=rate)
        self.gain = 2.0

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad *= self.gain
        super().step(closure)


def test_plain_attributes_are_kept():
    assert ew.stability_limit(Own([parameter()], LR)).value == pytest.approx(1)


# Groups and rates


def test_of_several_groups_the_smallest_limit_is_reported():
    groups = [
        {"params": [parameter()], "betas": (0.5, 0.9)},
        {"params": [parameter()], "lr": 7 * LR},
        {"params": [parameter()], "betas": (0.0, 0.9), "lr": 0.0},  # stands still
    ]
    found = ew.stability_limit(torch.optim.Adam(groups, lr=LR))
    assert (found.value, found.initial) == pytest.approx((6, 4))
    assert found.status is ew.Status.EXACT


def test_each_group_decays_at_its_own_rate():
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 10 * LR}]
    assert ew.stability_limit(torch.optim.SGD(groups, lr=LR, weight_decay=0.3)).value == pytest.approx(
        2 - 0.03
    )


def test_a_group_without_a_limit_takes_it_from_all(recursive):
    groups = [{"params": [parameter()], "weights": [1.0]}, {"params": [parameter()], "weights": [0.1] * 10}]
    assert ew.stability_limit(Recursive(groups, weights=[])).status is ew.Status.NO_LINEAR_LIMIT


def test_a_rate_that_a_schedule_took_to_zero_is_the_one_it_started_from():
    optimizer = torch.optim.AdamW([parameter()], lr=LR, weight_decay=0.3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    assert optimizer.param_groups[0]["lr"] == 0
    assert ew.stability_limit(optimizer).value == pytest.approx(19 * (2 - 0.003))


def test_options_may_be_tensors():
    options = {"lr": torch.tensor(LR, dtype=torch.float64), "betas": (torch.tensor(0.5), torch.tensor(0.9))}
    optimizer = torch.optim.AdamW([parameter()], weight_decay=0.3, capturable=True, foreach=False, **options)
    assert ew.stability_limit(optimizer).value == pytest.approx(3 * (2 - 0.003))


def test_the_default_dtype_and_device_do_not_matter():
    with torch.device("meta"):
        assert limit_of(torch.optim.NAdam).value == pytest.approx(3.8 / 0.28)
    torch.set_default_dtype(torch.float64)
    try:
        assert limit_of(torch.optim.NAdam).value == pytest.approx(3.8 / 0.28)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("cls", "options", "ok", "text"),
    [
        (torch.optim.Adam, {}, True, "38 in the long run, 20 at the first step (EXACT)"),
        (torch.optim.Adafactor, {}, False, "nan in the long run, nan at the first step (NO_PRECONDITIONER)"),
        (Sign, {"weights": [1.0]}, False, "nan in the long run, nan at the first step (NO_LINEAR_LIMIT)"),
    ],
)
def test_a_limit_is_one_line(recursive, cls, options, ok, text):
    found = limit_of(cls, **options)
    assert (found.ok, str(found)) == (ok, text)


# Nothing is touched


def fingerprint(model, optimizer):
    states = [optimizer.state.get(p, {}) for p in model.parameters()]
    entry = lambda value: bits(value) if isinstance(value, torch.Tensor) else repr(value)
    return {
        "parameters": [(id(p), bits(p), p._version, id(p.grad), bits(p.grad)) for p in model.parameters()],
        "state": [{k: (id(v), entry(v)) for k, v in state.items()} for state in states],
        "num_state": len(optimizer.state),
        "groups": [{k: (id(v), repr(v)) for k, v in group.items()} for group in optimizer.param_groups],
        "attributes": {k: (id(v), repr(v)) for k, v in vars(optimizer).items()},
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "torch": bits(torch.get_rng_state()),
    }


@pytest.mark.parametrize("opt", MINIMIZING, ids=ids(MINIMIZING))
def test_the_live_optimizer_is_untouched(opt):
    model, optimizer, _ = MLP.build_trained(opt, 2)
    before = fingerprint(model, optimizer)
    ew.stability_limit(optimizer)
    assert fingerprint(model, optimizer) == before


def test_its_state_does_not_matter():
    model, optimizer, batch = MLP.build_trained(OPT["nadamw"], 0)
    fresh = ew.stability_limit(optimizer)
    for _ in range(3):
        train_step(model, optimizer, mse, batch)
    assert ew.stability_limit(optimizer) == fresh


class Noisy(torch.optim.SGD):
    def step(self, closure=None):
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        super().step(closure)


def test_random_numbers_are_not_used_up():
    model, batches = MLP.build()
    optimizer = Noisy(model.parameters(), lr=LR)
    train_step(model, optimizer, mse, batches[0])
    before = fingerprint(model, optimizer)
    assert ew.stability_limit(optimizer).value == pytest.approx(2)
    assert fingerprint(model, optimizer) == before


def test_no_hook_and_no_scheduler_sees_the_scratch_steps():
    model, optimizer, batch = MLP.build_trained(OPT["adam"], 1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # patches optimizer.step
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("own"))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("post")),
    ]
    try:
        ew.stability_limit(optimizer)
        assert seen == []
        train_step(model, optimizer, mse, batch)
        assert sorted(seen) == ["own", "post", "pre"]
    finally:
        for handle in handles:
            handle.remove()
    scheduler.step()


# Errors


def scheduler():
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD([parameter()], lr=LR), 1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            scheduler,
            TypeError,
            "must be a torch.optim.Optimizer, got a StepLR: pass the optimizer that trains",
        ),
        (lambda: None, TypeError, "got None"),
        (
            lambda: torch.optim.SGD(
                [{"params": [parameter()]}, {"params": [parameter()], "lr": 1.0}], lr=0.0
            ),
            ValueError,
            "first parameter group has learning rate 0",
        ),
        (lambda: with_rate(math.nan), ValueError, "learning rate of parameter group 0 must be a finite"),
        (
            lambda: torch.optim.SGD([parameter()], lr=LR, maximize=True),
            ValueError,
            "group 0 has maximize=True.*Negate the loss",
        ),
        (
            lambda: torch.optim.Adam(
                [{"params": [parameter()]}, {"params": [parameter()], "maximize": True}]
            ),
            ValueError,
            "group 1 has maximize=True.*Negate the loss",
        ),
    ],
)
def test_bad_input_is_named(make, error, message):
    with pytest.raises(error, match=message):
        ew.stability_limit(make())


def with_rate(lr):
    optimizer = torch.optim.SGD([parameter()], lr=LR)
    optimizer.param_groups[0]["lr"] = lr
    return optimizer


def test_a_step_that_fails_on_the_scratch_copy_says_whose_it_is():
    class Needy(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        ew.stability_limit(Needy([parameter()], lr=LR))
    assert any("scratch copy of Needy" in note for note in caught.value.__notes__)
