"""The diagonal preconditioner P of an optimizer's *next* update, read from its live state.

An adaptive optimizer steps along P⁻¹n, n linear in the gradients. P is what the next `step()` will divide by: its
second moment already contains the current gradient, its bias corrections are those of the coming step.
(Kalra & Barkeshli 2024, eq. for λ^{P⁻¹H}; the square root their text omits is in their code.)

What is n and what is P? Weights that change with t belong to P, so that the current gradient enters n with the
same weight at every step. That is 1 − β₁ for Adam, RAdam and Adamax, 1 − β₁² for NAdam, 1 for the others (P = 1
for SGD: with dampening, its first step weighs more).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop

from edgewise.arguments import a_function, described
from edgewise.errors import PreconditionerError
from edgewise.optimizers.groups import rate_ratios
from edgewise.parameters import flatten

OptimizerT = TypeVar("OptimizerT", bound=Optimizer)
Options: TypeAlias = Mapping[str, Any]
Entries: TypeAlias = Callable[[OptimizerT, Options, Options, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Diagonal:
    """A positive diagonal matrix; `power(-0.5)` is P^{-1/2}.

    >>> Diagonal(entries=torch.tensor([4.0, 1.0])).power(-0.5)
    tensor([0.5000, 1.0000])
    """

    entries: Tensor  # (n,), > 0

    def power(self, exponent: float) -> Tensor:
        """Return the diagonal of P^exponent, shape (n,)."""
        return self.entries.pow(exponent)


def preconditioner_of(
    optimizer: Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> Diagonal:
    """Return the P that the optimizer's next update divides by.

    Units: groups with other learning rates are scaled by lr₀/lr, so that one number, the first group's
    rate times the preconditioned sharpness, is compared with the stability limit.

    `check_covered` is what says early, and by name, which parameter has no P.

    Args:
        optimizer: one of `known_optimizers()`, with or without a step behind it.
        parameters: those to describe, all of them in the optimizer.
        gradients: their current gradients, same shapes.

    Raises:
        PreconditionerError: no diagonal preconditioner is known for this optimizer, or the one that was registered
            returns other entries than it should.
        KeyError: a parameter is not in the optimizer.

    Examples:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> adam = torch.optim.Adam([p], betas=(0.9, 0.999))
        >>> preconditioner_of(adam, [p], [torch.tensor([1.0, 2.0])]).entries  # (1 - 0.9)(|g| + eps)
        tensor([0.1000, 0.2000])
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    ratios = {
        id(group): ratio for group, ratio in zip(optimizer.param_groups, rate_ratios(optimizer), strict=True)
    }
    diagonals = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        group = groups[id(parameter)]
        state = optimizer.state.get(parameter, {})
        diagonals.append(diagonal(optimizer, group, state, parameter, gradient) / ratios[id(group)])
    return Diagonal(entries=flatten(diagonals).detach())


def check_covered(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Raise where `preconditioner_of` has no answer, once, before any gradient is computed.

    Raises:
        PreconditionerError: no diagonal preconditioner is known for this optimizer.
        ValueError: a parameter is not in the optimizer, or no ratio of its groups' rates exists.
    """
    if diagonal.dispatch(type(optimizer)) is diagonal.dispatch(object):
        raise _unknown(optimizer)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for i, parameter in enumerate(parameters):
        if id(parameter) not in known:
            raise ValueError(
                f"parameter {i} of shape {tuple(parameter.shape)} is not in the optimizer: "
                "select the optimizer's parameters with params=, or add it to the optimizer."
            )
    rate_ratios(optimizer)


@singledispatch
def diagonal(
    optimizer: Optimizer, group: Options, state: Options, parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Return P's entries for one parameter; register an optimizer class with `diagonal.register`."""
    raise _unknown(optimizer)


def _unknown(optimizer: Optimizer) -> PreconditionerError:
    return PreconditionerError(
        f"{type(optimizer).__name__} has no diagonal preconditioner that edgewise knows; it knows "
        f"{', '.join(known_optimizers())}. critical_lr works with any optimizer; if the update is "
        "lr·P⁻¹ times a mean of gradients with a diagonal P, teach it with register_preconditioner."
    )


def known_optimizers() -> list[str]:
    """Return the public names of the optimizers whose P is registered, and of their subclasses."""
    pending, names = [cls for cls in diagonal.registry if cls is not object], set()
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        names.add(cls.__name__)
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def register_preconditioner(
    optimizer_class: type[OptimizerT],
) -> Callable[[Entries[OptimizerT]], Entries[OptimizerT]]:
    """Teach `preconditioned_sharpness` the diagonal P of an optimizer: decorates the function that returns it.

        θₜ₊₁ = θₜ − η·Pₜ⁻¹nₜ,  nₜ = Σ_{k≥0} c_k·gₜ₋ₖ  (c_k the same at every t)

    The function is called as `f(optimizer, group, state, parameter, gradient)` and returns the entries of the
    Pₜ that the coming `step()` divides by, in the parameter's shape. `group` is the parameter's group of
    options. `state` is `optimizer.state` of the parameter, empty before its first step, and not to be changed.
    `gradient` is the current gradient of the loss, before `maximize` and weight decay. Subclasses inherit the
    function; a later registration for the same class replaces it.

    Args:
        optimizer_class: a subclass of `torch.optim.Optimizer`.

    Returns:
        A decorator, which returns the function unchanged.

    Raises:
        TypeError: `optimizer_class` is not a subclass of `torch.optim.Optimizer`.
        PreconditionerError: when measuring: the entries are not a tensor of the parameter's shape, or negative.

    Examples:
        >>> class RootSGD(torch.optim.SGD):
        ...     "Steps by lr·g/√group['scale']."
        >>> @register_preconditioner(RootSGD)
        ... def root_sgd(optimizer, group, state, parameter, gradient):
        ...     return torch.full_like(parameter, group["scale"] ** 0.5)
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = RootSGD([{"params": [p], "scale": 9.0}], lr=0.1)
        >>> preconditioner_of(optimizer, [p], [torch.ones(2)]).entries
        tensor([3., 3.])

    Reference: arXiv 2406.09405, section 2.
    """
    is_class = isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)
    if not is_class or optimizer_class is Optimizer:
        raise TypeError(
            f"optimizer_class must be a subclass of torch.optim.Optimizer, got {described(optimizer_class)}: "
            "write @register_preconditioner(MyOptimizer) above the function."
        )

    def register(entries: Entries[OptimizerT]) -> Entries[OptimizerT]:
        takes = "(optimizer, group, state, parameter, gradient) that returns the entries of P"
        a_function("what is registered", entries, takes, count=5)

        def checked(
            optimizer: OptimizerT, group: Options, state: Options, parameter: Tensor, gradient: Tensor
        ) -> Tensor:
            found = entries(optimizer, group, state, parameter, gradient)
            return check_entries(optimizer_class.__name__, found, parameter)

        diagonal.register(optimizer_class, checked)
        return entries

    return register


def check_entries(name: str, entries: object, parameter: Tensor) -> Tensor:
    """Return the entries, or raise: they must be a tensor of the parameter's shape, none of them negative."""
    if not isinstance(entries, Tensor) or entries.shape != parameter.shape:
        got = f"shape {tuple(entries.shape)}" if isinstance(entries, Tensor) else type(entries).__name__
        raise PreconditionerError(
            f"the preconditioner registered for {name} returned {got}, expected a tensor of the "
            f"parameter's shape {tuple(parameter.shape)}: return one entry of P per entry of the parameter."
        )
    if (entries < 0).any():
        raise PreconditionerError(
            f"the preconditioner registered for {name} has negative entries, expected positive ones: "
            "return P, what the update divides by, without the sign of the step."
        )
    return entries


@diagonal.register(SGD)
def _(optimizer: SGD, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    return torch.ones_like(parameter)


@diagonal.register(Adam)
def _(optimizer: Adam, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """(1 − β₁ᵗ)(√v̂ₜ + ε), v̂ₜ = vₜ/(1 − β₂ᵗ), vₜ = β₂vₜ₋₁ + (1 − β₂)gₜ²; with amsgrad the largest v so far."""
    beta1, beta2 = group["betas"]
    step = next_step(state)
    second = next_mean_square(state, "exp_avg_sq", decayed_gradient(group, parameter, gradient), beta2)
    if group["amsgrad"] and "max_exp_avg_sq" in state:
        second = torch.maximum(second, state["max_exp_avg_sq"])
    return (1 - beta1**step) * ((second / (1 - beta2**step)).sqrt() + group["eps"])


@diagonal.register(RAdam)
def _(optimizer: RAdam, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """(1 − β₁ᵗ)(√vₜ + ε)/(rₜ√(1 − β₂ᵗ)) once ρₜ > 5, (1 − β₁ᵗ) before (Liu et al. 2020, as in torch)."""
    beta1, beta2 = group["betas"]
    step = next_step(state)
    first_correction, second_correction = 1 - beta1**step, 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / second_correction
    if rho <= 5:
        return torch.full_like(parameter, first_correction)
    rectification = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    second = next_mean_square(state, "exp_avg_sq", decayed_gradient(group, parameter, gradient), beta2)
    return first_correction * (second.sqrt() + group["eps"]) / (rectification * math.sqrt(second_correction))


@diagonal.register(NAdam)
def _(optimizer: NAdam, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """(1 − β₁²)(√v̂ₜ + ε)/((1 − β₁)aₜ + bₜ), where torch steps along (aₜmₜ + bₜgₜ)/(√v̂ₜ + ε).

    aₜ = μₜ₊₁/(1 − μ₁⋯μₜ₊₁) and bₜ = (1 − μₜ)/(1 − μ₁⋯μₜ) tend to β₁ and 1 − β₁: n then is Nesterov's mean.
    """
    beta1, beta2 = group["betas"]
    step = next_step(state)
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
    product = float(state.get("mu_product", torch.ones((), device="cpu")) * mu)  # torch keeps it in float32
    weight = (1 - beta1) * mu_next / (1 - product * mu_next) + (1 - mu) / (1 - product)  # of gₜ
    second = next_mean_square(state, "exp_avg_sq", decayed_gradient(group, parameter, gradient), beta2)
    root = (second / (1 - beta2**step)).sqrt()
    return (1 - beta1**2) * (root + group["eps"]) / weight


@diagonal.register(Adamax)
def _(optimizer: Adamax, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """(1 − β₁ᵗ)uₜ, uₜ = max(β₂uₜ₋₁, |gₜ| + ε)."""
    beta1, beta2 = group["betas"]
    gradient = decayed_gradient(group, parameter, gradient)
    largest = torch.maximum(beta2 * saved(state, "exp_inf", gradient), gradient.abs() + group["eps"])
    return (1 - beta1 ** next_step(state)) * largest


@diagonal.register(RMSprop)
def _(optimizer: RMSprop, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """√vₜ + ε, centered √(vₜ − ḡₜ²) + ε, both means with α. Momentum sums P⁻¹g: each g with the P of its step."""
    gradient = decayed_gradient(group, parameter, gradient)
    second = next_mean_square(state, "square_avg", gradient, group["alpha"])
    if group["centered"]:
        mean = torch.lerp(saved(state, "grad_avg", gradient), gradient, 1 - group["alpha"])
        second = second - mean.square()
    return second.sqrt() + group["eps"]


@diagonal.register(Adagrad)
def _(optimizer: Adagrad, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """(1 + (t − 1)·lr_decay)(√Σgₜ² + ε), the sum from its initial value on."""
    gradient = decayed_gradient(group, parameter, gradient)
    start = 0 if "sum" in state else optimizer.defaults["initial_accumulator_value"]  # a group added later
    total = saved(state, "sum", gradient) + start + gradient.square()
    return (1 + (next_step(state) - 1) * group["lr_decay"]) * (total.sqrt() + group["eps"])


@diagonal.register(Adadelta)
def _(optimizer: Adadelta, group: Options, state: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """√(vₜ + ε)/√(Δₜ₋₁ + ε): Δ, the mean of squared updates, contains the past ones only, as v the past gradients."""
    second = next_mean_square(state, "square_avg", decayed_gradient(group, parameter, gradient), group["rho"])
    moved = saved(state, "acc_delta", gradient)
    return (second + group["eps"]).sqrt() / (moved + group["eps"]).sqrt()


def next_step(state: Options) -> int:
    """Return the number, from 1, of the coming step."""
    return int(state["step"]) + 1 if "step" in state else 1


def saved(state: Options, name: str, like: Tensor) -> Tensor:
    """Return a tensor of the state, zeros before the first step."""
    return state[name] if name in state else torch.zeros_like(like)


def next_mean_square(state: Options, name: str, gradient: Tensor, beta2: float) -> Tensor:
    """Return β₂v + (1 − β₂)g², v from the state."""
    previous = saved(state, name, gradient)
    return beta2 * previous.detach() + (1 - beta2) * gradient.square()


def decayed_gradient(group: Options, parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient as the optimizer's moments see it: negated to maximize, coupled decay added."""
    gradient = -gradient if group["maximize"] else gradient
    if group["weight_decay"] == 0 or group.get("decoupled_weight_decay", False):
        return gradient
    return gradient + group["weight_decay"] * parameter.detach()
