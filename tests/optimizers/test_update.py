"""The update of any optimizer as a vector.

Ladder: closed forms (SGD's u is −g, AdamW's written out) → real steps of every torch.optim optimizer, and of two that
are not torch's, at several rates. Cannot see: a step that is linear up to 16‖θ‖ and not beyond.
"""

import copy

import prodigyopt
import pytest
import schedulefree
import torch
from torch import nn

import edgewise as ew
from cases import MLP, bias_free_mlp, every_optimizer, made, mse, train_step
from edgewise.isolation import isolated
from edgewise.optimizers.update import Update, check_steps_alone
from edgewise.ranks import Ranks
from oracles import bits

NONLINEAR = {"ASGD", "Adafactor", "Rprop"}  # once they have trained
THIRD_PARTY = {
    "AdamWScheduleFree": schedulefree.AdamWScheduleFree,
    "SGDScheduleFree": schedulefree.SGDScheduleFree,
    "RAdamScheduleFree": schedulefree.RAdamScheduleFree,
    "Prodigy": prodigyopt.Prodigy,
}


def update_of(optimizer, parameters, gradients, snapshot, dtype=torch.float64):
    parameters = list(parameters)
    return Update(optimizer, parameters, gradients, snapshot, ranks=Ranks(), first=0.01, dtype=dtype)


def trained(cls, steps):
    model, batch = bias_free_mlp(), MLP.build()[1][1]
    optimizer = made(cls, model)
    for _ in range(steps):
        train_step(model, optimizer, mse, batch)
    optimizer.zero_grad()
    mse(model, batch).backward()
    return model, optimizer


def real_update(model, optimizer, lr):
    """(θ′ − θ)/lr by a step on a deep copy."""
    twin, stepper = copy.deepcopy((model, optimizer))
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        ours.grad = theirs.grad.clone()
    ratio = lr / stepper.param_groups[0]["lr"]
    for group in stepper.param_groups:
        group["lr"] = group["lr"] * ratio
    stepper.step()
    moved = [(a - b).flatten() for a, b in zip(twin.parameters(), model.parameters(), strict=True)]
    return torch.cat(moved).detach() / lr


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("cls", [*every_optimizer(), *THIRD_PARTY.values()], ids=lambda cls: cls.__name__)
def test_the_update_is_what_real_steps_do(cls, steps):
    model, optimizer = trained(cls, steps)
    gradients = {p: p.grad for p in model.parameters()}
    with isolated(model, optimizer) as snapshot:
        update = update_of(optimizer, list(model.parameters()), gradients, snapshot)
        found = {lr: update.at(lr).clone() for lr in (1e-3, 0.01, 0.5)}
    if cls.__name__ in {"SGD", "Adam", "AdamW", "GIAdamW", "Muon", "RMSprop", "NAdam", "RAdam", "Adagrad"}:
        assert update.is_linear
    if steps and cls.__name__ in NONLINEAR:
        assert not update.is_linear
    for p, gradient in gradients.items():
        p.grad = gradient
    for lr, vector in found.items():
        expected = real_update(model, optimizer, lr)
        assert (vector - expected).norm() <= 2**-10 * expected.norm() + 1e-14 / lr


def test_closed_forms():
    model = nn.Linear(3, 1, bias=False).double()
    model(torch.ones(1, 3).double()).sum().backward()
    (p,) = model.parameters()
    for optimizer, expected in (
        (torch.optim.SGD([p], lr=0.1, weight_decay=0.5), -(p.grad + 0.5 * p.detach())),
        (torch.optim.AdamW([p], lr=0.1, weight_decay=0.5), -(torch.sign(p.grad) + 0.5 * p.detach())),
        (ew.GIAdamW([p], lr=0.1, weight_decay=0.5), -(0.001**0.5 * torch.sign(p.grad) + 0.5 * p.detach())),
    ):
        with isolated(model, optimizer) as snapshot:
            grads = {p: torch.ones(1, 3).double()}
            update = update_of(optimizer, [p], grads, snapshot)
            assert update.is_linear
            torch.testing.assert_close(update.at(0.3), expected.flatten(), rtol=1e-6, atol=1e-9)


def test_parameters_without_a_gradient_or_an_optimizer_stay():
    model = nn.ModuleList([nn.Linear(2, 1, bias=False) for _ in range(3)])
    optimizer = torch.optim.AdamW(list(model[0].parameters()) + list(model[1].parameters()), lr=0.1)
    gradients = {model[0].weight: torch.ones(1, 2)}
    with isolated(model, optimizer) as snapshot:
        parameters = list(model.parameters())
        update = update_of(optimizer, parameters, gradients, snapshot, torch.float32)
        vector = update.at(0.1)
    assert (vector[:2] != 0).all()
    assert (vector[2:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_give_a_direction(dtype):
    """A step of a thousandth of θ is one rounding of bfloat16: longer steps tell the direction."""
    torch.manual_seed(0)
    model = nn.Linear(50, 20).to(dtype)
    gradients = {p: torch.randn_like(p) for p in model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with isolated(model, optimizer) as snapshot:
        parameters = list(model.parameters())
        update = update_of(optimizer, parameters, gradients, snapshot, torch.float32)
        vector = update.at(1e-4)
        exact = -torch.cat([g.flatten() for g in gradients.values()]).float()
    assert update.is_linear
    assert (vector - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()


class Saturating(torch.optim.Optimizer):
    """u(η) = −g/(1 + η)."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * group["lr"] / (1 + group["lr"]))


def test_what_an_update_overwrites_is_said_of_a_step_that_is_no_longer_than_it_must_be():
    w = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    optimizer = Saturating([w])
    with isolated(optimizer=optimizer) as snapshot:
        update = update_of(optimizer, [w], {w: torch.full_like(w, 10.0)}, snapshot)
    assert not update.is_linear
    assert update.relative_length(0.01) == pytest.approx(10 / 1.01, rel=1e-12)  # at the first rate, 0.01


def test_what_an_update_overwrites_at_another_rate_is_measured_there():
    w = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    optimizer = Saturating([w])
    with isolated(optimizer=optimizer) as snapshot:
        update = update_of(optimizer, [w], {w: torch.full_like(w, 10.0)}, snapshot)
        assert update.relative_length(3.0) == pytest.approx(10 / 4, rel=1e-12)


def test_a_linear_update_gives_the_optimizer_s_copies_up():
    model, optimizer = trained(torch.optim.Adam, 3)
    before = [bits(v) for state in optimizer.state.values() for v in state.values()]
    gradients = {p: p.grad for p in model.parameters()}
    with isolated(model, optimizer) as snapshot:
        assert snapshot.optimizer is not None
        update_of(optimizer, list(model.parameters()), gradients, snapshot)
        assert snapshot.optimizer is None
        assert [bits(v) for state in optimizer.state.values() for v in state.values()] == before


@pytest.mark.parametrize("name", THIRD_PARTY)
@pytest.mark.parametrize("steps", [0, 3])
def test_critical_rates_of_optimizers_that_are_not_torch_s(name, steps):
    """Both ends of the bracket by real steps; and nothing is left behind."""
    model, optimizer = trained(THIRD_PARTY[name], steps)
    batch = MLP.build()[1][1]
    find = lambda: ew.critical_lr(model, optimizer, mse, batch)
    found = ew.assert_no_side_effects(model, optimizer, find)
    if (
        found.status is ew.Status.NOT_A_DESCENT_DIRECTION
    ):  # a schedule-free step also moves towards an average
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert gradient @ real_update(model, optimizer, 0.01) >= 0
        return
    assert found.status is ew.Status.FOUND
    with torch.no_grad():
        base = mse(model, batch).item()
        theta = torch.cat([p.flatten() for p in model.parameters()])
    losses = []
    for end in found.bracket:
        moved = theta + end * real_update(model, optimizer, end)
        twin = copy.deepcopy(model)
        torch.nn.utils.vector_to_parameters(moved, twin.parameters())
        with torch.no_grad():
            losses.append(mse(twin, batch).item())
    assert losses[0] <= base < losses[1]


# Steps that need a closure


class Required(torch.optim.SGD):
    def step(self, closure):
        closure()
        super().step()


class KeywordOnly(torch.optim.SGD):
    def step(self, *, closure):
        closure()
        super().step()


class Asserted(torch.optim.SGD):
    def step(self, closure=None):
        assert closure is not None, "sharpness-aware minimization needs a closure"
        closure()
        super().step()


class CalledLate(torch.optim.SGD):
    """Climbs along the gradients before it calls the closure that it was not given."""

    def step(self, closure=None):
        norm = torch.stack(
            [p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]
        ).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=0.05 / (float(norm) + 1e-12))
                    self.state[p]["climbed"] = True
        closure()
        super().step()


class EarlyOut(torch.optim.SGD):
    """Does nothing without gradients, and else calls the closure."""

    def step(self, closure=None):
        if any(p.grad is not None for g in self.param_groups for p in g["params"]):
            closure()
        super().step()


class WithoutOne(torch.optim.SGD):
    """Takes no closure, and fails while nobody has set it going."""

    is_going = False

    def step(self):
        if not self.is_going:
            raise RuntimeError("not going yet")
        super().step()


def entries(model):
    return {
        "critical_lr": lambda o: ew.critical_lr(model, o, mse, MLP.build()[1][1]),
        "current": lambda o: ew.critical_lr(model, o, mse, MLP.build()[1][1], gradient="current"),
        "linear": lambda o: ew.LinearWarmup(o, warmup_steps=4, lr_init="critical"),
        "catapult": ew.CatapultWarmup,
        "edge": ew.EdgeWarmup,
    }


@pytest.mark.parametrize("cls", [Required, KeywordOnly, Asserted, CalledLate, EarlyOut, torch.optim.LBFGS])
@pytest.mark.parametrize("entry", ["critical_lr", "current", "linear", "catapult", "edge"])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_a_step_that_needs_a_closure_is_refused_at_the_call_and_leaves_no_trace(cls, entry, has_gradient):
    model = bias_free_mlp()
    optimizer = cls(model.parameters(), lr=0.1)
    if has_gradient:
        mse(model, MLP.build()[1][1]).backward()
    message = rf"{cls.__name__} evaluates the loss inside its step.*without closure"

    def refused():
        with pytest.raises(TypeError, match=message):
            entries(model)[entry](optimizer)

    ew.assert_no_side_effects(model, optimizer, refused)
    assert not optimizer.state
    assert "initial_lr" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    "cls", [*every_optimizer(), *THIRD_PARTY.values(), WithoutOne], ids=lambda cls: cls.__name__
)
@pytest.mark.parametrize("training", [True, False], ids=["in train mode", "not"])
def test_a_step_that_works_alone_is_not_refused_for_what_else_it_raises(cls, training):
    model = bias_free_mlp()
    optimizer = made(cls, model) if cls is not WithoutOne else WithoutOne(model.parameters(), lr=0.1)
    if not training and hasattr(optimizer, "eval"):
        optimizer.eval()
    tried, kept = [], len(optimizer.state)
    ew.assert_no_side_effects(model, optimizer, lambda: tried.append(check_steps_alone(optimizer)))
    assert tried == [None]
    assert len(optimizer.state) == kept


def test_a_step_is_tried_once():
    steps = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(closure)
            return super().step(closure)

    optimizer = Counting(bias_free_mlp().parameters(), lr=0.1)
    for _ in range(3):
        check_steps_alone(optimizer)
    assert steps == [None]
