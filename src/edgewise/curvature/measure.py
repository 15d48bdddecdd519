"""The entry points `sharpness` and `preconditioned_sharpness`: what is given is checked; `solve` finds the values."""

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from edgewise.arguments import (
    CURVATURE_ORDER,
    a_loss_function,
    a_model,
    an_instance,
    an_optimizer,
    name_patterns,
    nonnegative_count,
    positive_count,
    positive_share,
)
from edgewise.curvature.hessian import Route, measured_operator
from edgewise.curvature.lanczos import FLOOR
from edgewise.curvature.results import SharpnessResult, Signature, signature
from edgewise.curvature.solve import top_of_spectrum
from edgewise.loss.checks import LossFunction
from edgewise.loss.measuring import Measuring
from edgewise.loss.precision import measuring_dtype, without_autocast
from edgewise.parameters import select_parameters
from edgewise.ranks import local


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
    dtype: torch.dtype | None = None,
    max_graph_bytes: int | None = None,
    seed: int = 0,
) -> SharpnessResult:
    """Measure the sharpness: the most positive eigenvalue of the Hessian of the loss.

        λ = max{vᵀ ∇²L(θ) v : ‖v‖ = 1},  L = Σᵢ nᵢLᵢ / Σᵢ nᵢ

    Gradient descent on L is stable while η·λ < 2. Units: loss / parameter².

    Under `DistributedDataParallel` or `fully_shard`, call it on all ranks, each with its own batches: L then is the
    mean over the batches of all ranks, and every rank gets the same values. FSDP2 allows differences of gradients
    only, the same number of batches on every rank, and neither `dtype` nor `max_graph_bytes`.

    Args:
        model: any module; measured in the train or eval mode it is in. Unchanged afterwards, bit for bit.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batches: a list of batches (`[batch]` for one) or another re-iterable, such as a data loader that does not
            shuffle, of which one batch is held at a time; weighted by their sizes nᵢ. A batch holds tensors, one row
            per sample, in any nest of tuples, mappings and dataclasses.
        rtol: stop when ‖Av − λv‖ ≤ rtol·|λ| for each pair, A the matrix whose eigenvalues are measured; from 16 ε of
            the dtype to 1.
        num: how many of the most positive eigenvalues.
        start: an earlier result of the same parameters to start from; costs less when the model has changed little.
            Without it, the loss is first seen to repeat: evaluated twice, on the first batch. Then it is evaluated on
            parts of the samples, which say where to look. Every 50th result in a row that started from another is
            checked by a cold start within `max_hvps`.
        hvp: how to take products: "reverse" (over a kept graph), "forward" (over reverse) or "difference" (of
            gradients, with an error bar). "auto" takes the first of these that the loss allows; "checked" does as
            well, and compares the first product with that of differences.
        max_hvps: budget of Hessian-vector products, of all samples.
        params: name patterns of the parameters to differentiate by, for the Hessian of one block; names are those
            inside `DistributedDataParallel`.
        dtype: precision to measure in, float32 or float64; `None` for that of the parameters, float32 if they are of
            half precision. A model of another precision is measured as a cast copy, and the batch with it; autocast is
            off, also where the model or `loss_fn` enters it.
        max_graph_bytes: what autograd's kept graphs may hold; a batch whose graph does not fit is split into
            micro-batches along the first dimension. `None` keeps the graph of a single batch, whatever its size.
            A product needs further memory for its backward pass.
        seed: of the start vector, ≥ 0; under FSDP2 rank r draws its part with seed + r.

    Returns:
        `SharpnessResult` with value, residual, status, num_hvps and the eigenvectors; under FSDP2 these hold the
        entries of this rank's shards.

    Raises:
        EdgewiseError: the measurement failed on another rank; names it and its error.
        TypeError: `batches` is not a collection, a parameter is complex, or an argument has the wrong type.
        ValueError: an argument is out of range, no parameter requires a gradient, a loader shuffles, the budget
            cannot be met, or the model is distributed in another way.
        LossError: the loss is not a finite scalar with a graph to the selected parameters, does not repeat, differs
            between passes, calls backward() itself, or is not the mean over the micro-batches of a batch that is split.
        SecondDerivativeError: no route gives products, not precisely enough, products show that torch's second
            derivative is wrong (by "auto", differences then take their place), or routes disagree.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> result = sharpness(model, lambda model, x: model(x).square().mean(), [batch])
        >>> round(result.value, 4), result.converged  # H = 2/n XᵀX = diag(9, 1)
        (9.0, True)

    Reference: arXiv 2406.09405, section 2.
    """
    params = name_patterns("params", params)
    parameters = _check(model, loss_fn, params, dtype, rtol, num, start, max_hvps, seed)
    measuring = Measuring(params=params, dtype=dtype, max_graph_bytes=max_graph_bytes)
    measured = measured_operator(
        model, loss_fn, batches, None, hvp, measuring, repeats=start is not None, rtol=rtol
    )
    with without_autocast(), measured as operator:  # it would round the solver's own products as well
        return top_of_spectrum(operator, parameters, rtol, num, start, max_hvps, seed)


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
    dtype: torch.dtype | None = None,
    max_graph_bytes: int | None = None,
    seed: int = 0,
) -> SharpnessResult:
    """Measure the preconditioned sharpness: the top eigenvalue of P⁻¹H for the optimizer's next update.

        λ^{P⁻¹H} = λ_max(P^{-1/2} H P^{-1/2}),  P of Adam = (1 − β₁ᵗ)(√v̂ₜ + ε)

    P already contains the gradient of `loss_fn` on `batches`. Adam is stable, late in training, while
    η·λ < (2 + 2β₁)/(1 − β₁), 38 at β₁ = 0.9; plain SGD has P = 1. Units: 1 / learning rate of the first group.

    Args:
        model: any module; measured in the train or eval mode it is in. Unchanged afterwards, bit for bit.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batches: a list of batches (`[batch]` for one) or another re-iterable, such as a data loader that does not
            shuffle, of which one batch is held at a time; weighted by their sizes nᵢ. A batch holds tensors, one row
            per sample, in any nest of tuples, mappings and dataclasses.
        optimizer: Adadelta, Adagrad, Adam, Adamax, AdamW, GIAdam, GIAdamW, NAdam, RAdam, RMSprop, SGD or one
            given to `register_preconditioner`, over the model's parameters; unchanged afterwards. Without a
            step behind it, P is that of the very first update: (1 − β₁)(|g| + ε) for Adam, whose v̂₁ = g², and
            (1 − β₁)(|g|/√(1 − β₂) + ε) for GI-Adam, whose v₁ = g². With `dtype`, its state is cast as the
            parameters are.
        rtol: stop when ‖Av − λv‖ ≤ rtol·|λ| for each pair, A the matrix whose eigenvalues are measured; from 16 ε of
            the dtype to 1.
        num: how many of the most positive eigenvalues.
        start: an earlier result of the same parameters to start from; costs less when the model has changed little.
            Without it, the loss is first seen to repeat: evaluated twice, on the first batch. Then it is evaluated on
            parts of the samples, which say where to look. Every 50th result in a row that started from another is
            checked by a cold start within `max_hvps`.
        hvp: how to take products: "reverse" (over a kept graph), "forward" (over reverse) or "difference" (of
            gradients, with an error bar). "auto" takes the first of these that the loss allows; "checked" does as
            well, and compares the first product with that of differences.
        max_hvps: budget of Hessian-vector products, of all samples.
        params: name patterns of the parameters to differentiate by, for the Hessian of one block; names are those
            inside `DistributedDataParallel`.
        dtype: precision to measure in, float32 or float64; `None` for that of the parameters, float32 if they are of
            half precision. A model of another precision is measured as a cast copy, and the batch with it; autocast is
            off, also where the model or `loss_fn` enters it.
        max_graph_bytes: what autograd's kept graphs may hold; a batch whose graph does not fit is split into
            micro-batches along the first dimension. `None` keeps the graph of a single batch, whatever its size.
            A product needs further memory for its backward pass.
        seed: of the start vector, ≥ 0; under FSDP2 rank r draws its part with seed + r.

    Returns:
        `SharpnessResult` with value, residual, status, num_hvps and the eigenvectors, which are those of the symmetric
        form; under FSDP2 these hold the entries of this rank's shards.

    Raises:
        EdgewiseError: the measurement failed on another rank; names it and its error.
        PreconditionerError: the optimizer has no known diagonal preconditioner.
        TypeError: `batches` is not a collection, a parameter is complex, or an argument has the wrong type.
        ValueError: an argument is out of range, a parameter is not in the optimizer, none requires a gradient, a
            loader shuffles, the budget cannot be met, or the model is distributed in another way.
        LossError: the loss is not a finite scalar with a graph to the selected parameters, does not repeat, differs
            between passes, calls backward() itself, or is not the mean over the micro-batches of a batch that is split.
        SecondDerivativeError: no route gives products, not precisely enough, products show that torch's second
            derivative is wrong (by "auto", differences then take their place), or routes disagree.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> loss_fn = lambda model, x: model(x).square().mean()
        >>> plain = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> round(preconditioned_sharpness(model, loss_fn, [batch], plain).value, 4)  # P = 1
        9.0

    Reference: arXiv 2406.09405, section 2 and appendix.
    """
    params = name_patterns("params", params)
    parameters = _check(model, loss_fn, params, dtype, rtol, num, start, max_hvps, seed)
    optimizer = an_optimizer("optimizer", optimizer, CURVATURE_ORDER)
    measuring = Measuring(params=params, dtype=dtype, max_graph_bytes=max_graph_bytes)
    measured = measured_operator(
        model, loss_fn, batches, optimizer, hvp, measuring, repeats=start is not None, rtol=rtol
    )
    with without_autocast(), measured as operator:  # it would round the solver's own products as well
        return top_of_spectrum(operator, parameters, rtol, num, start, max_hvps, seed)


def _check(
    model: nn.Module,
    loss_fn: LossFunction,
    params: str | Iterable[str] | None,
    dtype: torch.dtype | None,
    rtol: float,
    num: int,
    start: SharpnessResult | None,
    max_hvps: int,
    seed: int,
) -> dict[str, nn.Parameter]:
    """Return the parameters that a result of these arguments is about, by name."""
    a_model(model, CURVATURE_ORDER)
    a_loss_function(loss_fn, CURVATURE_ORDER)
    nonnegative_count("seed", seed)
    precision = measuring_dtype(model, dtype)
    reachable = FLOOR * torch.finfo(precision).eps
    if positive_share("rtol", rtol, "it is the residual over the value, such as 1e-3") < reachable:
        mend = "or pass dtype=torch.float64" if precision is torch.float32 else "no precision reaches less"
        raise ValueError(
            f"rtol must be at least 16 ε = {reachable:.1e}, what {precision} resolves, got {rtol!r}: raise it, {mend}."
        )
    selected = select_parameters(model, params)
    size = sum(parameter.numel() for parameter in selected.values())  # of shards, over all ranks
    if positive_count("num", num) > size:
        raise ValueError(f"num must be at most the number of parameters, {size}, got {num}.")
    if positive_count("max_hvps", max_hvps) < num:
        raise ValueError(f"max_hvps must be at least num = {num}, got {max_hvps}.")
    if start is not None:
        _check_start(
            start, signature(selected), sum(local(parameter).numel() for parameter in selected.values())
        )
    return selected


def _check_start(start: SharpnessResult, parameters: Signature, size: int) -> None:
    an_instance("start", start, SharpnessResult, "pass an earlier result of the same measurement, or None")
    if len(start.subspace) != size:
        raise ValueError(
            f"start has vectors of {len(start.subspace)} entries, the selected parameters have {size}: "
            "pass a result of the same model and params."
        )
    if start.parameters and start.parameters != parameters:
        theirs, ours = next(pair for pair in zip_longest(start.parameters, parameters) if pair[0] != pair[1])
        raise ValueError(
            f"start is of other parameters: it has {theirs} where the selected ones have {ours}: "
            "pass a result of the same model and params."
        )
