"""A trial: how a model trains from where it is, for some updates that leave no trace.

- A *path*: `EdgeWarmup` towards a ceiling far above, which shows the rate that the updates bear at each moment.
- *Short runs* from the path's end, each up to another rate and then down to 0 as in training, on the same batches with
  the same random numbers, so that they differ by their rates alone.

`edgewise.advice.rates` says at which rates the short runs are, and what all of it means.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.advice.rates import next_rate, run_rate
from edgewise.advice.supply import Supply, generators_of
from edgewise.advice.trials import Path, ShortRun, Trial
from edgewise.arguments import a_loss_function, a_model, an_optimizer, positive_count
from edgewise.isolation import Snapshot, isolated
from edgewise.isolation.random_states import RandomStates
from edgewise.loss.checks import (
    GraphOnDemand,
    LossFunction,
    checked_loss,
    differentiable_loss,
    forward_only,
)
from edgewise.optimizers.groups import measured_rates, set_rates
from edgewise.optimizers.update import check_steps_alone
from edgewise.warmup import EdgeWarmup
from edgewise.warmup.aside import warmups_aside

CEILING = 2.0**16  # of the path, in current rates
LEAST_UPDATES = 20
_ORDER = ("model", "optimizer", "loss_fn", "batches")
_PATH = 0.25  # share of the updates
_RUNS = 3  # at least, of which those that end early leave updates for more
_MOST_RUNS = 6
_EVALUATED = 6  # batches, after each short run
_LEARNED = 1e-3  # of the first loss: where no more is left, what it does says nothing
_FORWARDS = 3  # that cost as much as an update

Progress = Callable[[int, int], object]  # updates made, and updates in all


def run_trial(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    max_updates: int = 200,
    on_update: Progress | None = None,
) -> Trial:
    """Train for some updates, see what happens, and bring everything back bit for bit.

    Parameters, buffers, the optimizer's state and rates, `.grad`, modes and random numbers are afterwards what they
    were, and batches are given again. Groups keep the ratios of their rates; those whose rate is 0 stay where they are.

    Args:
        model: any module, in the mode that it trains in.
        optimizer: any whose `step()` needs no closure, on parameters of the model.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batches: batches as in training, in a list or a data loader; read from the start again where they run out.
        max_updates: of the trial in all, ≥ 20; three forwards count as one.
        on_update: called with the number of updates made and that of all, after each.

    Returns:
        `Trial`, to be given to `suggest`.

    Raises:
        TypeError: an argument has the wrong type, the optimizer needs a closure, or `batches` can be read only once.
        ValueError: an argument is out of range, there is no batch, the first group has rate 0, or no parameter of the
            optimizer requires a gradient.
        LossError: the loss at the start is not a finite scalar with a graph.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> trial = run_trial(model, sgd, lambda model, x: model(x).square().mean(), [x], max_updates=50)
        >>> trial.num_updates <= 50, sgd.param_groups[0]["lr"]
        (True, 0.01)
    """
    a_model(model, _ORDER)
    optimizer = an_optimizer("optimizer", optimizer, _ORDER, has_rates=True)
    a_loss_function(loss_fn, _ORDER)
    supply = Supply(batches)
    max_updates = positive_count("max_updates", max_updates)
    if max_updates < LEAST_UPDATES:
        raise ValueError(
            f"max_updates must be {LEAST_UPDATES} or greater, got {max_updates}: fewer updates show no rate."
        )
    measured_rates(optimizer)  # raises where there are none
    check_steps_alone(optimizer)
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "no parameter of the optimizer requires a gradient: unfreeze some, as by parameter.requires_grad_()."
        )
    states = RandomStates(generators_of(batches))
    try:
        with isolated(model, optimizer), warmups_aside(optimizer):
            return _Trial(model, optimizer, loss_fn, supply, max_updates, on_update).run()
    finally:
        states.restore()


class _Trial:
    """A trial under way, inside `isolated`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        supply: Supply,
        max_updates: int,
        on_update: Progress | None,
    ) -> None:
        self._model, self._optimizer, self._loss_fn = model, optimizer, loss_fn
        self._supply, self._on_update = supply, on_update
        self._max_updates = max_updates
        self._num_updates = self._num_forwards = 0
        self._rates = measured_rates(optimizer)
        self._forward = GraphOnDemand(list(model.parameters()))  # of losses that differentiate
        self._num_evaluated = max(1, min(_EVALUATED, max_updates // 30))

    def run(self) -> Trial:
        """Return what a path and short runs from its end show."""
        evaluated = self._supply.take(self._num_evaluated)
        self._prepare()
        loss = checked_loss(self._loss_fn(self._model, evaluated[0]), "the first batch")
        differentiable_loss(loss, "the first batch")
        self._num_forwards += 1
        start = self._evaluate(evaluated)
        path = self._path(max(5, round(_PATH * self._max_updates)))
        runs: list[ShortRun] = []
        if path.rates and not path.diverged and path.fallback is None:
            with isolated(self._model, self._optimizer) as end:
                self._short_runs(end, start, path, runs, evaluated)
        return Trial(
            lr=self._rates[0],
            ceiling=CEILING * self._rates[0],
            start=start,
            path=path,
            runs=tuple(runs),
            num_updates=self._num_updates,
            num_forwards=self._num_forwards,
            max_updates=self._max_updates,
            num_passes=self._supply.num_passes,
        )

    def _short_runs(
        self, end: Snapshot, start: float, path: Path, runs: list[ShortRun], evaluated: Sequence[Any]
    ) -> None:
        left = self._max_updates - self._num_updates - self._num_forwards / _FORWARDS
        length = int(left / _RUNS - len(evaluated) / _FORWARDS)
        batches = self._supply.take(max(1, length))
        while len(runs) < _MOST_RUNS and self._affords(len(batches), len(evaluated)):
            lr = next_rate(path, runs)
            runs.append(self._short_run(lr, path.rates[-1], start, batches, evaluated))
            end.rewind()

    def _affords(self, num_updates: int, num_forwards: int) -> bool:
        """Whether the budget holds so many more."""
        cost = self._num_updates + num_updates + (self._num_forwards + num_forwards) / _FORWARDS
        return cost <= self._max_updates

    def _prepare(self) -> None:
        """Let the optimizer be one that no scheduler knows of, and leave out groups at rate 0."""
        groups = self._optimizer.param_groups
        for group in groups:
            group.pop("initial_lr", None)
        groups[:] = [group for group, lr in zip(groups, self._rates, strict=True) if lr > 0]

    def _set_rate(self, lr: float) -> None:
        moved = [rate for rate in self._rates if rate > 0]
        set_rates(self._optimizer, [lr / self._rates[0] * rate for rate in moved])

    def _path(self, num_updates: int) -> Path:
        """Follow `EdgeWarmup`, until it can measure nothing or the loss is not finite."""
        self._set_rate(CEILING * self._rates[0])
        with warnings.catch_warnings():
            # What it warns of, such as that it cannot measure, is told by the result.
            warnings.filterwarnings("ignore", message="EdgeWarmup ")
            return self._follow(EdgeWarmup(self._optimizer), num_updates)

    def _follow(self, warmup: EdgeWarmup, num_updates: int) -> Path:
        rates: list[float] = []
        losses: list[float] = []
        try:
            for batch in self._supply.take(num_updates):
                loss = self._backward(batch)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]) or 0 <= losses[-1] < _LEARNED * losses[0]:
                    break
                warmup.observe(lambda batch=batch: self._loss_fn(self._model, batch), loss=loss)  # type: ignore[misc]
                if warmup.fallback is not None:
                    break
                rates.append(float(self._optimizer.param_groups[0]["lr"]))
                self._step()
                warmup.step()
        finally:
            warmup.close()
        self._num_forwards += warmup.num_forwards
        report = warmup.report()
        return Path(
            rates=tuple(rates),
            losses=tuple(losses[: len(rates)]),
            diverged=bool(losses) and not math.isfinite(losses[-1]),
            num_step_backs=report.num_step_backs,
            climbed=warmup.found is not None and warmup.found.lr > 0,
            fallback=warmup.fallback,
        )

    def _short_run(
        self, lr: float, first: float, start: float, batches: Sequence[Any], evaluated: Sequence[Any]
    ) -> ShortRun:
        losses: list[float] = []
        too_high = start + abs(start)  # a decay may heal that within a short run, not in a long one
        for i, batch in enumerate(batches):
            loss = self._backward(batch)
            losses.append(loss.item())
            if not losses[-1] <= too_high:
                return ShortRun(lr=lr, losses=tuple(losses), final=math.inf)
            self._set_rate(run_rate(i, len(batches), lr=lr, first=first))
            self._step()
        return ShortRun(lr=lr, losses=tuple(losses), final=self._evaluate(evaluated))

    def _backward(self, batch: Any) -> Tensor:
        self._optimizer.zero_grad()
        loss = checked_loss(self._loss_fn(self._model, batch), "a batch", finite=False)
        if torch.isfinite(loss):
            loss.backward()
        return loss.detach()

    def _step(self) -> None:
        self._optimizer.step()
        self._num_updates += 1
        if self._on_update is not None:
            self._on_update(self._num_updates, self._max_updates)

    def _evaluate(self, batches: Sequence[Any]) -> float:
        """Return the mean loss, infinite where it is not finite."""
        with forward_only():
            found = [self._forward(partial(self._loss_fn, self._model, batch)) for batch in batches]
        losses = [checked_loss(loss, "a batch", finite=False) for loss in found]
        self._num_forwards += len(batches)
        mean = float(torch.stack(losses).mean())
        return mean if math.isfinite(mean) else math.inf
