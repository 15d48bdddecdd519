"""Curvatures along a run: calls `measure` again and again, each time from where the last one ended."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeAlias

from torch import nn
from torch.optim import Optimizer

from edgewise.curvature.hessian import Route
from edgewise.curvature.measure import preconditioned_sharpness, sharpness
from edgewise.curvature.results import SharpnessResult, signature
from edgewise.loss.checks import LossFunction
from edgewise.parameters import select_parameters

Measure: TypeAlias = Literal["sharpness", "preconditioned_sharpness"]

MEASURES: tuple[Measure, ...] = ("sharpness", "preconditioned_sharpness")


class Follower:
    """Measures the curvatures of one model again and again, with the options of `sharpness`.

    It starts from the latest finite result of the same parameters: some may have been unfrozen since.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        *,
        rtol: float,
        hvp: Route = "auto",
        params: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        self._model, self._optimizer, self._loss_fn = model, optimizer, loss_fn
        self._rtol, self._hvp, self._params, self._seed = rtol, hvp, params, seed
        self._latest: dict[str, SharpnessResult] = {}

    @property
    def is_cold(self) -> bool:
        """Whether there is nothing to start from."""
        return not self._latest

    def measure(
        self, name: str, batches: Iterable[Any], *, loss_fn: LossFunction | None = None, max_hvps: int = 200
    ) -> SharpnessResult:
        """Measure one of `MEASURES`, within so many products; of another `loss_fn` than the own, where one is given."""
        start = self._latest.get(name)
        if start is not None and start.parameters != signature(select_parameters(self._model, self._params)):
            start = None
        function: Callable[..., SharpnessResult] = sharpness
        if name == "preconditioned_sharpness":
            function = partial(preconditioned_sharpness, optimizer=self._optimizer)
        result = function(
            self._model,
            self._loss_fn if loss_fn is None else loss_fn,
            batches,
            start=start,
            rtol=self._rtol,
            hvp=self._hvp,
            max_hvps=max_hvps,
            params=self._params,
            seed=self._seed,
        )
        if math.isfinite(result.value):
            self._latest[name] = result
        return result

    def forget(self) -> None:
        """Start anew: the next measurement knows of none before."""
        self._latest.clear()
