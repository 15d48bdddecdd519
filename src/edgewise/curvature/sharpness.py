"""The two entry points: sharpness and preconditioned sharpness, one code path."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.curvature.hessian import ROUTES, HessianOperator, Route
from edgewise.curvature.lanczos import random_directions, top_eigenpairs
from edgewise.curvature.operators import PreconditionedOperator, SymmetricOperator
from edgewise.curvature.results import SharpnessResult
from edgewise.errors import known_name, positive_count, positive_number
from edgewise.isolation import isolated
from edgewise.objective import LossFunction, Objective
from edgewise.parameters import unflatten
from edgewise.preconditioner import check_covered, preconditioner_of


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    rtol: float = 1e-3,
    num: int = 1,
    start: SharpnessResult | None = None,
    hvp: Route = "auto",
    max_hvps: int = 200,
    params: str | Iterable[str] | None = None,
    seed: int = 0,
) -> SharpnessResult:
    """Measure the sharpness: the most positive eigenvalue of the Hessian of the loss.

        λ = max{vᵀ ∇²L(θ) v : ‖v‖ = 1},  L = Σᵢ nᵢLᵢ / Σᵢ nᵢ

    Gradient descent on L is stable while η·λ < 2. Units: loss / parameter².

    Args:
        model: any module; measured in the train or eval mode it is in. Unchanged afterwards, bit for bit.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batches: a list of batches (`[batch]` for one) or another re-iterable; weighted by their sizes nᵢ.
        rtol: stop when the residual ‖Hv − λv‖ ≤ rtol·|λ| for each of the `num` pairs.
        num: how many of the most positive eigenvalues.
        start: an earlier result to start from; costs less when the model has changed little.
        hvp: how to take products: "reverse" (over a kept graph), "forward" (over reverse), "difference" (of
            gradients, with an error bar), or "auto": the first of these that the loss allows.
        max_hvps: budget of Hessian-vector products.
        params: name patterns of the parameters to differentiate by, for the Hessian of one block.
        seed: of the start vector.

    Returns:
        `SharpnessResult` with value, residual, status, num_hvps and the eigenvectors.

    Raises:
        TypeError: `batches` is not a collection, or an argument has the wrong type.
        ValueError: an argument is out of range, or no parameter requires a gradient.
        LossError: the loss is not a finite scalar with a graph.
        SecondDerivativeError: no route gives products, or not precisely enough.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> result = sharpness(model, lambda model, x: model(x).square().mean(), [batch])
        >>> round(result.value, 4), result.converged  # H = 2/n XᵀX = diag(9, 1)
        (9.0, True)

    Reference: arXiv 2406.09405, section 2.
    """
    _check(rtol, num, max_hvps, hvp)
    with isolated(model) as snapshot:
        objective = Objective(model, loss_fn, batches, snapshot=snapshot, params=params)
        _check_fit(objective, num, start)
        hessian = HessianOperator(objective, hvp)
        return _measure(hessian, hessian, rtol, num, start, max_hvps, seed)


def preconditioned_sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    optimizer: Optimizer,
    *,
    rtol: float = 1e-3,
    num: int = 1,
    start: SharpnessResult | None = None,
    hvp: Route = "auto",
    max_hvps: int = 200,
    params: str | Iterable[str] | None = None,
    seed: int = 0,
) -> SharpnessResult:
    """Measure the preconditioned sharpness: the top eigenvalue of P⁻¹H for the optimizer's next update.

        λ^{P⁻¹H} = λ_max(P^{-1/2} H P^{-1/2}),  P of Adam = (1 − β₁ᵗ)(√v̂ₜ + ε)

    P already contains the gradient of `loss_fn` on `batches`. Adam is stable, late in training, while
    η·λ < (2 + 2β₁)/(1 − β₁), 38 at β₁ = 0.9; plain SGD has P = 1. Units: 1 / learning rate of the first group.

    Args:
        model: as for `sharpness`.
        loss_fn: as for `sharpness`.
        batches: as for `sharpness`.
        optimizer: Adadelta, Adagrad, Adam, Adamax, AdamW, GIAdam, GIAdamW, NAdam, RAdam, RMSprop, SGD or one
            given to `register_preconditioner`, over the model's parameters; unchanged afterwards. Without a
            step behind it, P is that of the very first update.
        rtol: as for `sharpness`.
        num: as for `sharpness`.
        start: as for `sharpness`.
        hvp: as for `sharpness`.
        max_hvps: as for `sharpness`.
        params: as for `sharpness`.
        seed: as for `sharpness`.

    Returns:
        `SharpnessResult`; vectors are eigenvectors of the symmetric form.

    Raises:
        PreconditionerError: the optimizer has no known diagonal preconditioner.
        TypeError: as for `sharpness`.
        ValueError: as for `sharpness`, or a parameter is not in the optimizer.
        LossError: as for `sharpness`.
        SecondDerivativeError: as for `sharpness`.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> loss_fn = lambda model, x: model(x).square().mean()
        >>> plain = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> round(preconditioned_sharpness(model, loss_fn, [batch], plain).value, 4)  # P = 1
        9.0

    Reference: arXiv 2406.09405, section 2 and appendix.
    """
    _check(rtol, num, max_hvps, hvp)
    with isolated(model, optimizer) as snapshot:
        objective = Objective(model, loss_fn, batches, snapshot=snapshot, params=params)
        _check_fit(objective, num, start)
        check_covered(optimizer, objective.tensors)
        keep_graph = hvp in ("auto", "reverse")
        gradients = unflatten(objective.gradient(keep_graph=keep_graph), objective.tensors)
        preconditioner = preconditioner_of(optimizer, objective.tensors, gradients)
        hessian = HessianOperator(objective, hvp)
        operator = PreconditionedOperator(hessian, preconditioner)
        return _measure(operator, hessian, rtol, num, start, max_hvps, seed)


def _check(rtol: float, num: int, max_hvps: int, hvp: str) -> None:
    known_name("hvp", hvp, ROUTES)
    positive_number("rtol", rtol)
    positive_count("num", num)
    if positive_count("max_hvps", max_hvps) < num:
        raise ValueError(f"max_hvps must be at least num = {num}, got {max_hvps}.")


def _check_fit(objective: Objective, num: int, start: SharpnessResult | None) -> None:
    if num > objective.size:
        raise ValueError(f"num must be at most the number of parameters, {objective.size}, got {num}.")
    if start is not None and len(start.subspace) != objective.size:
        raise ValueError(
            f"start has vectors of {len(start.subspace)} entries, the selected parameters have "
            f"{objective.size}: pass a result of the same model and params."
        )


def _measure(
    operator: SymmetricOperator,
    hessian: HessianOperator,
    rtol: float,
    num: int,
    start: SharpnessResult | None,
    max_hvps: int,
    seed: int,
) -> SharpnessResult:
    generator = torch.Generator().manual_seed(seed)
    result = top_eigenpairs(
        operator,
        num=num,
        rtol=rtol,
        max_hvps=max_hvps,
        start=_start_vectors(operator, start, generator),
        generator=generator,
    )
    return replace(
        result,
        num_hvps=hessian.num_products,
        hvp=hessian.route,
        hvp_reason=hessian.reason.strip(),
        hvp_error=hessian.relative_error,
    )


def _start_vectors(
    operator: SymmetricOperator, start: SharpnessResult | None, generator: torch.Generator
) -> Tensor:
    if start is None:
        return random_directions(operator, 1, generator)
    return start.subspace.T.to(dtype=operator.dtype, device=operator.device)
