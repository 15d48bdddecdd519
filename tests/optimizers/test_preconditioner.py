"""P, derived from what the optimizer's own step() does, not from a formula.

Ladder: closed form (the very first step, RAdam's threshold, NAdam's limit); an optimizer's real step: with u
the update and n the mean of gradients it leaves behind, P·u = n. Cannot see: an error in P where n is zero.
"""

import copy
import math

import pytest
import torch
from torch import nn

import edgewise as ew
from cases import BY_NAME, MLP, OPT, PRECONDITIONED, Opt, ids, mse, train_step
from edgewise.errors import PreconditionerError
from edgewise.optimizers.groups import rate_ratios
from edgewise.optimizers.preconditioner import Diagonal, check_covered, known_optimizers, preconditioner_of
from edgewise.parameters import flatten

# P and the optimizer's kernel evaluate the same expression in float64, in another order: a few 10 ε; the
# difference θ − θ' amplifies that by |θ|/lr·|u|, at most 1e5 with RAdam's small first rectification.
CLOSE = {"rtol": 1e-9, "atol": 1e-14}
STEPS = [0, 1, 7]  # none yet, one, and past RAdam's threshold


def parameters_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def group_of(optimizer, parameter):
    return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def seen_gradient(group, parameter, gradient):
    """The gradient as the optimizer's means see it."""
    coupled = 0 if group.get("decoupled_weight_decay") else group["weight_decay"]
    return (-gradient if group["maximize"] else gradient) + coupled * parameter


def numerator(state, seen):
    """What P⁻¹ is applied to: the mean of gradients that the step left in the state."""
    if "exp_avg" in state:
        return state["exp_avg"]
    if "square_avg" not in state and state.get("momentum_buffer") is not None:
        return state["momentum_buffer"]
    return seen


def carried_over(state, group):
    """RMSprop's momentum is a sum of updates, each with the P of its own step: the share of the earlier ones."""
    return (
        group["momentum"] * state["momentum_buffer"] if {"square_avg", "momentum_buffer"} <= set(state) else 0
    )


def real_step(optimizer, gradients):
    """Per parameter: (θ − θ' − decay − what earlier steps carry over)/lr₀, the state afterwards, the gradient."""
    stepper = copy.deepcopy(optimizer)
    parameters = parameters_of(stepper)
    before = [p.detach().clone() for p in parameters]
    earlier = [copy.deepcopy(stepper.state.get(p, {})) for p in parameters]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient.clone()
    stepper.step()
    lr0, found = float(stepper.param_groups[0]["lr"]), []
    for p, old, state, gradient in zip(parameters, before, earlier, gradients, strict=True):
        group = group_of(stepper, p)
        decay = group["weight_decay"] * old if group.get("decoupled_weight_decay") else 0
        update = (old - p.detach() - group["lr"] * (decay + carried_over(state, group))) / lr0
        found.append((update, stepper.state[p], seen_gradient(group, old, gradient)))
    return found


def check_against_real_step(optimizer, gradients):
    """P·u equals the numerator after the step."""
    parameters = parameters_of(optimizer)
    entries = preconditioner_of(optimizer, parameters, gradients).entries
    assert (entries > 0).all()
    updates, states, seen = zip(*real_step(optimizer, gradients), strict=True)
    scaled = entries * flatten(updates)
    if isinstance(optimizer, torch.optim.NAdam):
        return check_nadam(scaled, flatten([state["exp_avg"] for state in states]), flatten(seen), optimizer)
    moments = [numerator(state, g) for state, g in zip(states, seen, strict=True)]
    torch.testing.assert_close(scaled, flatten(moments), **CLOSE)


def check_nadam(scaled, mean, gradient, optimizer):
    """P·u = a·m + b·g with two numbers a, b, and the current gradient's weight in it is 1 − β₁²."""
    beta1 = optimizer.defaults["betas"][0]
    if not torch.allclose(mean, (1 - beta1) * gradient, rtol=1e-9):  # not the first step, where m ∝ g
        a, b = torch.linalg.lstsq(torch.stack([mean, gradient], 1), scaled[:, None]).solution.flatten()
        assert float(a * (1 - beta1) + b) == pytest.approx(1 - beta1**2, rel=1e-9)
        assert min(a, b) > 0
        torch.testing.assert_close(scaled, a * mean + b * gradient, **CLOSE)
        return float(a), float(b)
    torch.testing.assert_close(scaled, (1 - beta1**2) * gradient, **CLOSE)
    return None


def gradients_of(model, optimizer, loss_fn, batch):
    return list(torch.autograd.grad(loss_fn(model, batch), parameters_of(optimizer)))


def in_groups(opt, model, **options):
    """The optimizer over three groups of different rates, in another order than the model's."""
    rate = opt.options["lr"]
    groups = [
        {"params": model[2].parameters(), "lr": rate},
        {"params": [model[0].bias], "lr": 4 * rate},
        {"params": [model[0].weight], "lr": rate / 4},
    ]
    return opt.cls(groups, **opt.options | options)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("opt", PRECONDITIONED, ids=ids(PRECONDITIONED))
def test_p_times_the_real_update_is_the_mean_of_gradients(opt, steps):
    model, optimizer, batch = MLP.build_trained(opt, steps)
    check_against_real_step(optimizer, gradients_of(model, optimizer, mse, batch))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("opt", PRECONDITIONED, ids=ids(PRECONDITIONED))
def test_groups_are_scaled_to_the_first_groups_rate(opt, maximize, steps):
    model, batches = MLP.build()
    optimizer = in_groups(opt, model, maximize=maximize, weight_decay=0.2)
    for i in range(steps):
        train_step(model, optimizer, mse, batches[i % 3])
    check_against_real_step(optimizer, gradients_of(model, optimizer, mse, batches[0]))
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
    check_against_real_step(optimizer, gradients_of(model, optimizer, mse, batches[0]))


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
    check_against_real_step(optimizer, gradients)


def test_nadams_mean_tends_to_nesterovs():
    """With μ = β₁ and 1 − β₁ᵗ → 1: n = β₁m + (1 − β₁)g, its weights those of the docstring's limit."""
    nadam = Opt("nadam", torch.optim.NAdam, {"lr": 1e-3, "betas": (0.6, 0.9), "momentum_decay": 1e4})
    model, optimizer, batch = MLP.build_trained(nadam, 60)
    gradients = gradients_of(model, optimizer, mse, batch)
    assert check_against_real_step(optimizer, gradients) == pytest.approx((0.6, 0.4), rel=1e-6)


def steps_with_a_later_group(cls):
    """Whether the optimizer's own step makes state that is missing; Adagrad's did not always."""
    later = nn.Parameter(torch.ones(2))
    optimizer = cls([nn.Parameter(torch.ones(2))])
    optimizer.add_param_group({"params": [later]})
    later.grad = torch.ones(2)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("opt", [OPT["adagrad-decay"], OPT["adam"], OPT["nadam"]], ids=lambda o: o.name)
def test_a_group_added_later_starts_like_the_first(opt):
    model, batches = MLP.build()
    optimizer = opt.cls(model[0].parameters(), **opt.options)
    train_step(model, optimizer, mse, batches[0])
    optimizer.add_param_group({"params": model[2].parameters()})
    gradients = gradients_of(model, optimizer, mse, batches[1])
    # NAdam's numerator has other weights at another step.
    if opt.name != "nadam" and steps_with_a_later_group(opt.cls):
        return check_against_real_step(optimizer, gradients)
    late = preconditioner_of(optimizer, list(model[2].parameters()), gradients[2:]).entries
    fresh = opt.cls(model[2].parameters(), **opt.options)
    assert torch.equal(late, preconditioner_of(fresh, parameters_of(fresh), gradients[2:]).entries)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("opt", PRECONDITIONED, ids=ids(PRECONDITIONED))
def test_reading_changes_nothing(opt, steps):
    model, optimizer, batch = MLP.build_trained(opt, steps)
    gradients = gradients_of(model, optimizer, mse, batch)
    before = copy.deepcopy((optimizer.state_dict(), gradients))
    entries = preconditioner_of(optimizer, parameters_of(optimizer), gradients).entries
    assert not entries.requires_grad
    torch.testing.assert_close((optimizer.state_dict(), gradients), before, rtol=0, atol=0)


def test_powers_of_a_diagonal():
    diagonal = Diagonal(entries=torch.tensor([4.0, 0.25]))
    assert diagonal.power(-0.5).tolist() == [0.5, 2.0]
    assert diagonal.power(1).tolist() == [4.0, 0.25]


def test_a_subclass_has_its_parents_p():
    class Mine(torch.optim.Adam):
        pass

    model, optimizer, batch = MLP.build_trained(Opt("mine", Mine, {"lr": 0.01}), 2)
    check_against_real_step(optimizer, gradients_of(model, optimizer, mse, batch))


# Third-party optimizers


class RootStep(torch.optim.Optimizer):
    """θ ← θ − lr·m/√(1 + t), m the mean of gradients."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "weight_decay": 0, "maximize": False})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["exp_avg"] = torch.lerp(state.get("exp_avg", torch.zeros_like(p)), p.grad, 0.5)
                p.sub_(group["lr"] * state["exp_avg"] / (1 + state["step"]) ** 0.5)


class RootStepChild(RootStep):
    pass


def root_step(optimizer, group, state, parameter, gradient):
    assert "lr" in group
    assert gradient.shape == parameter.shape
    return torch.full_like(parameter, (2 + state.get("step", 0)) ** 0.5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("cls", [RootStep, RootStepChild])
def test_a_registered_class_and_its_subclass_are_read(registry, cls, steps):
    assert cls.__name__ not in known_optimizers()
    assert ew.register_preconditioner(RootStep)(root_step) is root_step
    assert cls.__name__ in known_optimizers()
    model, batches = MLP.build()
    optimizer = in_groups(Opt("root", cls, {"lr": 0.1}), model)
    for i in range(steps):
        train_step(model, optimizer, mse, batches[i % 3])
    check_against_real_step(optimizer, gradients_of(model, optimizer, mse, batches[0]))


def test_a_later_registration_replaces_and_a_subclass_may_have_its_own(registry):
    p = nn.Parameter(torch.zeros(2))
    for cls, entry in [(RootStep, 2.0), (RootStep, 3.0), (RootStepChild, 5.0)]:
        ew.register_preconditioner(cls)(lambda o, g, s, p, gradient, entry=entry: torch.full_like(p, entry))
    values = [preconditioner_of(cls([p]), [p], [p]).entries[0].item() for cls in (RootStep, RootStepChild)]
    assert values == [3.0, 5.0]


@pytest.mark.parametrize(
    "found", [root_step, torch.optim.Optimizer, RootStep([nn.Parameter(torch.zeros(1))]), int]
)
def test_only_an_optimizer_class_can_be_registered(registry, found):
    with pytest.raises(
        TypeError, match=r"(?s)subclass of torch.optim.Optimizer, got .*write @register_precond"
    ):
        ew.register_preconditioner(found)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (2.0, r"for RootStep returned float, expected .* shape \(2, 3\): return one entry"),
        (torch.ones(3), r"returned shape \(3,\), expected"),
        (-torch.ones(2, 3), "for RootStep has negative entries, expected positive"),
    ],
)
def test_entries_that_are_no_diagonal_are_refused(registry, entries, message):
    ew.register_preconditioner(RootStep)(lambda *_: entries)
    p = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(PreconditionerError, match=message):
        preconditioner_of(RootStepChild([p]), [p], [torch.ones(2, 3)])


# Errors

WITHOUT_P = ["Adafactor", "ASGD", "LBFGS", "Muon", "Rprop", "SparseAdam"]


@pytest.mark.parametrize("cls", [*(getattr(torch.optim, name) for name in WITHOUT_P), RootStep])
def test_an_unknown_optimizer_is_told_what_works(cls):
    p = nn.Parameter(torch.ones(2, 2))
    words = rf"^{cls.__name__} has no diagonal.*it knows .*Adadelta.*GIAdamW.*SGD.*critical_lr works with any"
    with pytest.raises(PreconditionerError, match=words + ".*register_preconditioner"):
        preconditioner_of(cls([p]), [p], [torch.ones(2, 2)])


def test_every_optimizer_of_torch_is_decided():
    classes = [value for value in vars(torch.optim).values() if isinstance(value, type)]
    names = {cls.__name__ for cls in classes if issubclass(cls, torch.optim.Optimizer)} - {"Optimizer"}
    assert names == (set(known_optimizers()) & names) | set(WITHOUT_P)
    assert not set(known_optimizers()) & set(WITHOUT_P)
    tested = {opt.cls.__name__ for opt in PRECONDITIONED}
    assert tested >= set(known_optimizers()) & names


def test_a_parameter_outside_the_optimizer_is_named():
    model, _ = BY_NAME["tanh-mlp-mse"].build()
    optimizer = torch.optim.Adam(model[0].parameters())
    with pytest.raises(ValueError, match=r"parameter 2 of shape \(2, 4\) is not in the optimizer: select"):
        check_covered(optimizer, list(model.parameters()))


def test_a_first_rate_of_zero_has_no_ratios():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.0, 0.1)]
    with pytest.raises(ValueError, match="the first parameter group has learning rate 0"):
        rate_ratios(torch.optim.SGD(groups))


def test_where_all_rates_are_zero_those_at_the_start_of_the_schedule_count():
    """At the end of a decay to zero, P is still measured in the unit of the run."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.4)]
    optimizer = torch.optim.SGD(groups)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert rate_ratios(optimizer) == pytest.approx([1, 4])
    assert rate_ratios(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)) == [1]


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("group", [0, 2])
def test_a_learning_rate_that_is_none_is_refused(group, rate):
    model, batches = MLP.build()
    optimizer = in_groups(OPT["adam"], model)
    optimizer.param_groups[group]["lr"] = rate
    message = f"learning rate of parameter group {group} must be a finite number, 0 or greater, got {rate}"
    with pytest.raises(ValueError, match=message):
        rate_ratios(optimizer)
    with pytest.raises(ValueError, match=message):
        ew.preconditioned_sharpness(model, mse, [batches[0]], optimizer)
