"""P, derived from what the optimizer's own step() does, not from a formula.

Ladder: closed form (the very first step, RAdam's threshold); an optimizer's real step: with u the update
and mₜ the first moment it leaves behind, P·u = mₜ. Cannot see: an error in P where mₜ is zero.
"""

import copy
import math

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import BY_NAME, MLP, OPT, PRECONDITIONED, Opt, ids, mse, train_step
from edgewise.errors import PreconditionerError
from edgewise.parameters import flatten
from edgewise.preconditioner import Diagonal, check_covered, preconditioner_of, rate_ratios

# P and the optimizer's kernel evaluate the same expression in float64, in another order: a few 10 ε; the
# difference θ − θ' amplifies that by |θ|/lr·|u|, at most 1e5 with RAdam's small first rectification.
CLOSE = {"rtol": 1e-9, "atol": 1e-14}
NO_STEP, RAMPED = 0, 8


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def first_moment(optimizer, parameter, gradient):
    """What P⁻¹ is applied to: the mean of gradients that the step left in the state."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    state = optimizer.state[parameter]
    if "exp_avg" in state:
        return state["exp_avg"]
    if "momentum_buffer" in state and state["momentum_buffer"] is not None:
        return state["momentum_buffer"]
    return gradient + group["weight_decay"] * parameter.detach()


def check_against_real_step(model, optimizer, gradients):
    """P·(θ − θ' − decoupled decay)/lr₀ equals the first moment after the step."""
    entries = preconditioner_of(optimizer, parameters_of(optimizer), gradients).entries
    assert (entries > 0).all()
    _, stepper = copy.deepcopy((model, optimizer))
    before = [p.detach().clone() for p in parameters_of(stepper)]
    for p, gradient in zip(parameters_of(stepper), gradients, strict=True):
        p.grad = gradient.clone()
    stepper.step()
    lr0 = float(stepper.param_groups[0]["lr"])
    updates, moments = [], []
    ours = parameters_of(optimizer)
    for i, p in enumerate(parameters_of(stepper)):
        group = next(g for g in stepper.param_groups if any(q is p for q in g["params"]))
        decay = group["lr"] * group["weight_decay"] * before[i] if group.get("decoupled_weight_decay") else 0
        updates.append((before[i] - p.detach() - decay) / lr0)
        moment = first_moment(stepper, p, gradients[i]) if stepper.state[p] else None
        moments.append(gradients[i] + group["weight_decay"] * before[i] if moment is None else moment)
    torch.testing.assert_close(entries * flatten(updates), flatten(moments), **CLOSE)
    assert all(p is q for p, q in zip(ours, parameters_of(optimizer), strict=True))


def gradients_of(model, optimizer, loss_fn, batch):
    return list(torch.autograd.grad(loss_fn(model, batch), parameters_of(optimizer)))


@pytest.mark.parametrize("steps", [NO_STEP, 1, 3, RAMPED])
@pytest.mark.parametrize("opt", PRECONDITIONED, ids=ids(PRECONDITIONED))
def test_p_times_the_real_update_is_the_first_moment(opt, steps):
    model, optimizer, batch = MLP.build_trained(opt, steps)
    check_against_real_step(model, optimizer, gradients_of(model, optimizer, mse, batch))


@pytest.mark.parametrize("opt", [OPT["sgd"], OPT["adam"], OPT["radam"], OPT["gi-adam"]], ids=lambda o: o.name)
def test_groups_are_scaled_to_the_first_groups_rate(opt):
    model, batches = MLP.build()
    groups = [
        {"params": model[0].parameters(), "lr": 0.02},
        {"params": [model[2].bias], "lr": 0.08},
        {"params": [model[2].weight], "lr": 0.005},
    ]
    optimizer = opt.cls(groups, **opt.options)
    for batch in batches:
        train_step(model, optimizer, mse, batch)
    check_against_real_step(model, optimizer, gradients_of(model, optimizer, mse, batches[0]))
    assert rate_ratios(optimizer) == pytest.approx([1, 4, 0.25])


def test_parameters_are_matched_by_identity_not_by_position():
    model, batches = MLP.build()
    optimizer = torch.optim.SGD(
        [{"params": model[2].parameters(), "lr": 1.0}, {"params": model[0].parameters(), "lr": 0.1}]
    )
    parameters = list(model.parameters())  # in the other order
    gradients = list(torch.autograd.grad(mse(model, batches[0]), parameters))
    entries = preconditioner_of(optimizer, parameters, gradients).entries
    torch.testing.assert_close(entries, torch.tensor([10.0] * 16 + [1.0] * 10).double(), **CLOSE)


def test_a_tensor_learning_rate_is_read():
    model, batches = MLP.build()
    rate = torch.tensor(0.01, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, foreach=False)
    train_step(model, optimizer, mse, batches[1])
    check_against_real_step(model, optimizer, gradients_of(model, optimizer, mse, batches[0]))


def test_radam_is_sgd_with_momentum_until_its_threshold():
    """ρₜ > 5 first at t = 6 for β₂ = 0.999 (Liu et al. 2020): P is a number before, a matrix after."""
    spread = []
    for steps in range(8):
        model, optimizer, batch = MLP.build_trained(OPT["radam"], steps)
        gradients = gradients_of(model, optimizer, mse, batch)
        entries = preconditioner_of(optimizer, parameters_of(optimizer), gradients).entries
        spread.append(float(entries.max() / entries.min()) > 1)
    assert spread == [False] * 5 + [True] * 3


@pytest.mark.parametrize(("cls", "factor"), [(torch.optim.Adam, 1.0), (ew.GIAdam, 1 / math.sqrt(1 - 0.99))])
def test_the_first_p_in_closed_form(cls, factor):
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    gradient = torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64)
    optimizer = cls([p], betas=(0.9, 0.99), eps=1e-3)
    entries = preconditioner_of(optimizer, [p], [gradient]).entries
    torch.testing.assert_close(entries, 0.1 * (factor * gradient.abs() + 1e-3), **CLOSE)


def test_a_parameter_whose_first_gradient_comes_late_has_its_own_step():
    model, batches = MLP.build()
    optimizer = torch.optim.Adam(model.parameters())
    for batch in batches:
        optimizer.zero_grad()
        mse(model, batch).backward()
        model[2].bias.grad = None
        optimizer.step()
    gradients = gradients_of(model, optimizer, mse, batches[0])
    assert optimizer.state[model[2].bias] == {}
    check_against_real_step(model, optimizer, gradients)


def test_reading_changes_nothing():
    model, optimizer, batch = MLP.build_trained(OPT["gi-adam"], 0)
    gradients = gradients_of(model, optimizer, mse, batch)
    copies = [g.clone() for g in gradients]
    preconditioner_of(optimizer, parameters_of(optimizer), gradients)
    assert len(optimizer.state) == 0
    assert all(torch.equal(a, b) for a, b in zip(gradients, copies, strict=True))


def test_powers_of_a_diagonal():
    diagonal = Diagonal(entries=torch.tensor([4.0, 0.25]))
    assert diagonal.power(-0.5).tolist() == [0.5, 2.0]
    assert diagonal.power(1).tolist() == [4.0, 0.25]


def test_a_subclass_has_its_parents_p():
    class Mine(torch.optim.Adam):
        pass

    model, optimizer, batch = MLP.build_trained(Opt("mine", Mine, {"lr": 0.01}), 2)
    check_against_real_step(model, optimizer, gradients_of(model, optimizer, mse, batch))


@pytest.mark.parametrize("cls", [torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam])
def test_an_unknown_optimizer_is_told_what_works(cls):
    model, batches = MLP.build()
    optimizer = cls(model.parameters())
    gradients = gradients_of(model, optimizer, mse, batches[0])
    with pytest.raises(
        PreconditionerError, match=rf"{cls.__name__} has no diagonal.*critical_lr works with any"
    ):
        preconditioner_of(optimizer, parameters_of(optimizer), gradients)


def test_a_parameter_outside_the_optimizer_is_named():
    model, _ = BY_NAME["tanh-mlp-mse"].build()
    optimizer = torch.optim.Adam(model[0].parameters())
    with pytest.raises(ValueError, match=r"parameter 2 of shape \(2, 4\) is not in the optimizer: select"):
        check_covered(optimizer, list(model.parameters()))


def test_a_first_rate_of_zero_has_no_ratios():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    with pytest.raises(ValueError, match="the first parameter group has learning rate 0"):
        rate_ratios(optimizer)
