"""The diagonal preconditioner P of an optimizer's *next* update, read from its live state.

An adaptive optimizer steps along P⁻¹m, m a mean of gradients. P is what the next `step()` will divide by: its
second moment already contains the current gradient, its bias corrections are those of the coming step
(Kalra & Barkeshli 2024, eq. for λ^{P⁻¹H}; the square root their text omits is in their code).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RAdam

from edgewise.errors import PreconditionerError
from edgewise.parameters import flatten


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

    Args:
        optimizer: SGD, Adam, AdamW, RAdam, GIAdam or GIAdamW, with or without a step behind it.
        parameters: those to describe, all of them in the optimizer.
        gradients: their current gradients, same shapes.

    Raises:
        PreconditionerError: no diagonal preconditioner is known for this optimizer.
        ValueError: a parameter is not in the optimizer.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(2))
        >>> adam = torch.optim.Adam([p], betas=(0.9, 0.999))
        >>> preconditioner_of(adam, [p], [torch.tensor([1.0, 2.0])]).entries  # (1 - 0.9)(|g| + eps)
        tensor([0.1000, 0.2000])
    """
    check_covered(optimizer, parameters)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    ratios = {
        id(group): ratio for group, ratio in zip(optimizer.param_groups, rate_ratios(optimizer), strict=True)
    }
    diagonals = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        group = groups[id(parameter)]
        state = optimizer.state.get(parameter, {})
        diagonals.append(diagonal(optimizer, group, state, parameter, gradient) / ratios[id(group)])
    return Diagonal(entries=flatten(diagonals))


def check_covered(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Raise what `preconditioner_of` documents, before any gradient is computed."""
    if diagonal.dispatch(type(optimizer)) is diagonal.dispatch(object):
        raise PreconditionerError(
            f"{type(optimizer).__name__} has no diagonal preconditioner that edgewise knows; it knows "
            "SGD, Adam, AdamW, RAdam, GIAdam and GIAdamW. critical_lr works with any optimizer."
        )
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for i, parameter in enumerate(parameters):
        if id(parameter) not in known:
            raise ValueError(
                f"parameter {i} of shape {tuple(parameter.shape)} is not in the optimizer: "
                "select the optimizer's parameters with params=, or add it to the optimizer."
            )
    rate_ratios(optimizer)


def rate_ratios(optimizer: Optimizer) -> list[float]:
    """Return each group's learning rate over the first group's.

    Raises:
        ValueError: the first group's rate is zero, so that no ratio exists.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if rates[0] == 0:
        raise ValueError(
            "the first parameter group has learning rate 0: set the rate to measure in units of, "
            "for example the target of the warmup."
        )
    return [rate / rates[0] for rate in rates]


@singledispatch
def diagonal(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    state: Mapping[str, Any],
    parameter: Tensor,
    gradient: Tensor,
) -> Tensor:
    """Return P's entries for one parameter; register an optimizer class with `diagonal.register`."""
    raise NotImplementedError(f"no diagonal is registered for {type(optimizer).__name__}")


@diagonal.register(SGD)
def _(
    optimizer: SGD, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    return torch.ones_like(parameter)


@diagonal.register(Adam)
def _(
    optimizer: Adam, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    r"""(1 − β₁ᵗ)(√v̂ₜ + ε), v̂ₜ = vₜ/(1 − β₂ᵗ), vₜ = β₂vₜ₋₁ + (1 − β₂)gₜ²; with amsgrad the largest v so far."""
    beta1, beta2 = group["betas"]
    step = next_step(state)
    second = next_second_moment(group, state, parameter, gradient)
    if group["amsgrad"] and "max_exp_avg_sq" in state:
        second = torch.maximum(second, state["max_exp_avg_sq"])
    return (1 - beta1**step) * ((second / (1 - beta2**step)).sqrt() + group["eps"])


@diagonal.register(RAdam)
def _(
    optimizer: RAdam, group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    r"""(1 − β₁ᵗ)(√vₜ + ε)/(rₜ√(1 − β₂ᵗ)) once ρₜ > 5, (1 − β₁ᵗ) before (Liu et al. 2020, as in torch)."""
    beta1, beta2 = group["betas"]
    step = next_step(state)
    first_correction, second_correction = 1 - beta1**step, 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / second_correction
    if rho <= 5:
        return torch.full_like(parameter, first_correction)
    rectification = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    second = next_second_moment(group, state, parameter, gradient)
    return first_correction * (second.sqrt() + group["eps"]) / (rectification * math.sqrt(second_correction))


def next_step(state: Mapping[str, Any]) -> int:
    """Return the number, from 1, of the coming step."""
    return int(state["step"]) + 1 if "step" in state else 1


def next_second_moment(
    group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, gradient: Tensor
) -> Tensor:
    """Return β₂v + (1 − β₂)g², g with the coupled weight decay that the update will add."""
    beta2 = group["betas"][1]
    gradient = decayed_gradient(group, parameter, gradient)
    previous = state["exp_avg_sq"] if "exp_avg_sq" in state else torch.zeros_like(parameter)
    return beta2 * previous.detach() + (1 - beta2) * gradient.square()


def decayed_gradient(group: Mapping[str, Any], parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient as the optimizer's moments see it: negated to maximize, coupled decay added."""
    gradient = -gradient if group["maximize"] else gradient
    if group["weight_decay"] == 0 or group["decoupled_weight_decay"]:
        return gradient
    return gradient + group["weight_decay"] * parameter.detach()
