"""The top of one operator's spectrum: Lanczos from a start, checked by a cold one, by a route that holds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgewise.curvature.coarse import Coarse
from edgewise.curvature.lanczos import top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.results import EigenResult, SharpnessResult, signature
from edgewise.curvature.routes.second_derivative import WrongDerivativeError
from edgewise.ranks import local
from edgewise.status import Status

# Warm starts before one is checked by a cold one: after a crossing, they may follow the lower eigenvalue.
_COLD_EVERY = 50
# Times that the step of differences is chosen anew, along the eigenvectors that the one before has led to.
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

    solve = partial(_settled, operator, solver)
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
    *,
    start: Tensor,
    most: int,
    extra: int,
) -> tuple[EigenResult, float]:
    """Return eigenpairs by a route that holds, and by how much the top value may be off by that route, relative."""
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
        if not found.converged:
            return found, 0.0
        settled = [
            operator.settle_along(v, float(value))
            for v, value in zip(found.vectors.T, found.values, strict=True)
        ]
        error_along, _ = settled[0]
        left = most - (operator.evidence.num_products - before)
        if not any(changed for _, changed in settled):
            return found, error_along
        num_steps += 1
        if left < len(found.values) or num_steps > _MOST_STEPS:
            return replace(found, status=Status.BUDGET_EXHAUSTED), error_along
        start = found.vectors.T
