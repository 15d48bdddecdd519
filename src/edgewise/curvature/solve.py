"""The top of one operator's spectrum: Lanczos from a start, checked by a cold one, by a route that holds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgewise.curvature.closer import Deviation, deviations
from edgewise.curvature.coarse import Coarse
from edgewise.curvature.lanczos import top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.results import EigenResult, SharpnessResult, signature
from edgewise.curvature.routes.difference import WORST_ERROR, too_coarse
from edgewise.curvature.routes.second_derivative import WrongDerivativeError
from edgewise.ranks import local
from edgewise.status import Status

# Warm starts before one is checked by a cold one: after a crossing, they may follow the lower eigenvalue.
_COLD_EVERY = 50
# Times that differences are taken otherwise, or once more, from the eigenvectors that those before have led to.
_MOST_STEPS = 3


def top_of_spectrum(
    operator: SymmetricOperator,
    parameters: Mapping[str, Tensor],
    rtol: float,
    num: int,
    start: SharpnessResult | None,
    max_hvps: int,
    seed: int,
) -> SharpnessResult:
    """Return what `sharpness` documents, of any operator with evidence; its vectors hold the `parameters`, by name."""
    generator = torch.Generator().manual_seed(seed + operator.shard)
    coarse: Coarse | None = None

    def solver(start: Tensor, **options: Any) -> EigenResult:
        guide, chance = None, 1.0
        if coarse is not None:
            guide, chance = coarse.guide(rtol, generator), coarse.most_chance(start) if num == 1 else 1.0
        return top_eigenpairs(
            operator,
            num=num,
            rtol=rtol,
            start=start,
            generator=generator,
            expand=guide,
            most_chance=chance,
            **options,
        )

    solve = partial(_settled, operator, solver, rtol)
    if start is None:
        coarse = Coarse(operator, max_hvps)
        found, error = solve(start=coarse.start(num, generator), most=max_hvps, extra=1)
        subspace, num_warm = found.subspace, 0
    else:
        earlier = start.subspace.T.to(dtype=operator.dtype, device=operator.device)
        found, error = solve(start=earlier, most=max_hvps, extra=0)
        # Each vector in one piece, as the solver reads them.
        subspace = torch.cat([found.vectors.T, start.vectors[:, :1].T.to(found.vectors)]).T
        num_warm = start.num_warm + 1
    left = max_hvps - operator.evidence.num_products
    if num_warm >= _COLD_EVERY and left >= num:
        coarse = Coarse(operator, left)
        cold, cold_error = solve(start=coarse.start(num, generator), most=left, extra=1)
        num_warm = 0
        if cold.value > found.value:
            found, error, subspace = cold, cold_error, cold.subspace
    evidence = operator.evidence
    return SharpnessResult(
        value=found.value,
        values=found.values,
        vectors=found.vectors,
        subspace=subspace,
        residual=found.residual,
        status=found.status,
        num_hvps=evidence.num_products,
        cost=evidence.num_products + (0.0 if coarse is None else coarse.cost),
        num_warm=num_warm,
        hvp=evidence.route,
        hvp_reason=evidence.reason,
        hvp_error=max(error, evidence.relative_error),
        graph_bytes=evidence.graph_bytes,
        parameters=signature(parameters),
        shares=_shares(operator, found.vectors[:, 0], parameters.values()),
    )


def _shares(operator: SymmetricOperator, vector: Tensor, parameters: Iterable[Tensor]) -> tuple[float, ...]:
    """Return each parameter's share of the squared norm of a vector; of sharded ones, summed over the ranks."""
    parts = vector.split([local(parameter).numel() for parameter in parameters])
    squares = torch.stack([part.square().sum(dtype=torch.float64) for part in parts])
    squares = operator.reduce(squares).cpu()
    return tuple((squares / squares.sum()).tolist())


def _settled(
    operator: SymmetricOperator,
    solver: Callable[..., EigenResult],
    rtol: float,
    *,
    start: Tensor,
    most: int,
    extra: int,
) -> tuple[EigenResult, float]:
    """Return eigenpairs by a route that holds, and by how much a value may be off by that route, relative."""
    before, left, num_steps = operator.evidence.num_products, most, 0
    while True:
        try:
            found = solver(start=start, max_products=left, extra=extra)
        except WrongDerivativeError as error:
            operator.take_next_route(error)
            left = most - (operator.evidence.num_products - before)
            if left < len(start):
                raise
            continue
        worst = Deviation()
        if found.converged:
            worst = max(deviations(operator, found, rtol), key=lambda each: each.error, default=worst)
            if worst.error <= rtol:
                return found, worst.error
        num_steps += 1
        left = most - (operator.evidence.num_products - before)
        has_budget = left > len(found.values)
        goes_on = has_budget and num_steps <= _MOST_STEPS and found.status is not Status.NOT_FINITE
        is_closer = goes_on and operator.take_closer(found.vectors[:, worst.index])
        if is_closer or (goes_on and worst.error - worst.explained > rtol):
            start = found.vectors.T
            continue
        if has_budget and worst.explained > WORST_ERROR and worst.index == 0:
            raise too_coarse(worst.explained, "along the eigenvector that was found")
        if worst.error > WORST_ERROR or worst.error - worst.explained > rtol:
            found = replace(found, status=Status.BUDGET_EXHAUSTED)
        return found, worst.error
