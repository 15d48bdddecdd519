"""Follow sharpness and the distance to the edge of stability along a run, within a stated share of its time."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from edgewise.arguments import (
    TRAINING_ORDER,
    a_batch,
    a_function,
    a_loss_function,
    a_model,
    an_optimizer,
    known_name,
    name_patterns,
    nonnegative_count,
    positive_count,
    positive_number,
    positive_share,
)
from edgewise.curvature.follow import MEASURES, Follower, Measure
from edgewise.curvature.hessian import ROUTES, Route
from edgewise.curvature.results import SharpnessResult
from edgewise.loss.batches import Batches
from edgewise.loss.checks import LossFunction, calling
from edgewise.loss.update_loss import UpdateLoss
from edgewise.monitor.overhead import Overhead
from edgewise.monitor.regime import WINDOW, MonitorRow, regime, row_of
from edgewise.monitor.subject import check_same, check_shared, is_identity, measures_of
from edgewise.optimizers.stability import StabilityLimitResult, stability_limit
from edgewise.parameters import select_parameters
from edgewise.ranks import ranks_of
from edgewise.status import Status

_DEFAULT_OVERHEAD = 0.02
_FORMAT = 2  # of states; those before had none


class Monitor:
    """Follow sharpness, preconditioned sharpness and their distance to the edge, without changing the run.

        fraction = η·λ / limit,  λ of P^{-1/2}HP^{-1/2},  limit of `stability_limit`

    Call `observe` between `loss.backward()` and `optimizer.step()`: P is that of the coming update. It measures when
    it is due and returns a row, else `None`. Under `max_overhead` it adds up its own seconds, and measures only while
    (spent + the expected cost) ≤ max_overhead × the seconds since the first `observe`. The first measurement, at
    step 0, is always made: a cold start costs tens of gradients, and the second comes when its share has fallen
    below the limit; `overhead` in the row says what it is. Later measurements start from the one before. One that turns
    out hard stops at about twice what is left of the share (at 20 Hessian-vector products at least), as a provisional
    number. Under `DistributedDataParallel` or FSDP2, all ranks call `observe`, and measure when all of their clocks
    allow it; each has the same row but for its seconds.

    Args:
        model: any module; measured in the train or eval mode it is in. Unchanged afterwards, bit for bit.
        optimizer: of this model. Where its P is not known, sharpness alone is measured, and every row's status says so.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        every: measure at steps 0, every, 2·every, … ≥ 1; with `max_overhead`, at those of them that it allows.
        max_overhead: share of the run's time, between 0 and 1; 0.02 if `every` is not given either.
        batches: fixed batches to measure on, a list or another re-iterable; otherwise the batch given to `observe`.
        measure: which of "sharpness" and "preconditioned_sharpness". Where P = 1 they are the same, measured once.
        log: called with each row, such as `rows.append`.
        rtol: stop when ‖Av − λv‖ ≤ rtol·|λ| for each pair, A the matrix whose eigenvalues are measured; from 16 ε of
            the dtype to 1.
        hvp: how to take products: "reverse" (over a kept graph), "forward" (over reverse) or "difference" (of
            gradients, with an error bar). "auto" takes the first of these that the loss allows; "checked" does as
            well, and compares the first product with that of differences.
        params: name patterns of the parameters to differentiate by, for the Hessian of one block; names are those
            inside `DistributedDataParallel`.
        seed: of the start vector, ≥ 0; under FSDP2 rank r draws its part with seed + r.
        top_parameters: how many parameters' shares of the top eigenvector each row has, ≥ 0: the largest ones of
            `SharpnessResult.by_parameter`, of the preconditioned sharpness where it is measured.

    Raises:
        TypeError: an argument has the wrong type, or `batches` can be read only once.
        ValueError: an argument is out of range, or model and optimizer have no parameter in common.
        PreconditionerError: only the preconditioned sharpness is asked for, and P is not known.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batch = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> loss_fn = lambda model, x: model(x).square().mean()  # H = diag(9, 1)
        >>> monitor = Monitor(model, optimizer, loss_fn, every=10)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     loss_fn(model, batch).backward()
        ...     if row := monitor.observe(batch):
        ...         print(row.step, round(row.sharpness, 2), round(row.fraction, 3))  # 0.1 × 9 / 2
        ...     optimizer.step()
        0 9.0 0.45
        10 9.0 0.45

    Reference: arXiv 2406.09405, sections 2 and 3.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        *,
        every: int | None = None,
        max_overhead: float | None = None,
        batches: Iterable[Any] | None = None,
        measure: Sequence[Measure] = MEASURES,
        log: Callable[[MonitorRow], object] | None = None,
        rtol: float = 1e-2,
        hvp: Route = "auto",
        params: str | Iterable[str] | None = None,
        seed: int = 0,
        top_parameters: int = 0,
    ) -> None:
        a_model(model, TRAINING_ORDER)
        optimizer = an_optimizer("optimizer", optimizer, TRAINING_ORDER, has_rates=True)
        a_loss_function(loss_fn, TRAINING_ORDER)
        if log is not None:
            a_function("log", log, "the row, such as rows.append", count=1)
        known_name("hvp", hvp, ROUTES)
        if every is None and max_overhead is None:
            max_overhead = _DEFAULT_OVERHEAD
        self._params = name_patterns("params", params)
        self._device = check_shared(model, optimizer, self._params)
        self._ranks = ranks_of(model)
        if batches is not None:
            Batches(batches, self._ranks)  # raises what it has to say now
        self._every = 1 if every is None else positive_count("every", every)
        self._max_overhead = None if max_overhead is None else _share("max_overhead", max_overhead)
        self._model, self._optimizer, self._log = model, optimizer, log
        self._batches = batches
        self._follower = Follower(
            model,
            optimizer,
            loss_fn,
            rtol=positive_share("rtol", rtol, "it is the residual over the value, such as 1e-2"),
            hvp=hvp,
            params=self._params,
            seed=nonnegative_count("seed", seed),
        )
        self._measure = measures_of(model, optimizer, measure, stability_limit(optimizer), self._params)
        self._num_shares = nonnegative_count("top_parameters", top_parameters)
        self._rows: deque[MonitorRow] = deque(maxlen=WINDOW)
        self._step = 0
        self._ask_at = 0  # step before which ranks need not ask each other
        self._overhead = Overhead()
        self._clock: Callable[[], float] = time.perf_counter

    def observe(self, batch: Any = None) -> MonitorRow | None:
        """Measure if it is due; call it once a step, between `loss.backward()` and `optimizer.step()`.

        Args:
            batch: what to measure on, or an `UpdateLoss`, to which the micro-batches of the update have been added;
                not used where the monitor has batches of its own.

        Returns:
            The row, or `None` at a step without measurement.

        Raises:
            ValueError: neither a batch nor batches to measure on, or an `UpdateLoss` that is empty or of another model.
            LossError: the loss is not a finite scalar with a graph to the selected parameters, does not repeat, differs
                between passes or calls backward() itself. After any error, training is as if nothing had happened.
            SecondDerivativeError: no route gives products, or not precisely enough.
        """
        if batch is None and self._batches is None:
            raise ValueError(
                "observe() got no batch, and the monitor has none of its own: call observe(batch), or construct "
                "it with batches=[...]."
            )
        if isinstance(batch, UpdateLoss):
            batch.observed()
            check_same(self._model, batch.model)
        a_batch(batch)
        step, now = self._step, self._clock()
        self._step += 1
        self._overhead.start(now)
        if step % self._every or not self._affordable(step, now):
            return None
        row = self._row(step, batch)
        self._rows.append(row)
        if self._log is not None:
            with calling("log"):
                self._log(row)
        return row

    def _affordable(self, step: int, now: float) -> bool:
        """Whether the share of time allows a measurement, on all ranks."""
        if self._max_overhead is None or step < self._ask_at:
            return self._max_overhead is None
        seconds = self._overhead.seconds_to_wait(self._max_overhead, now, cold=self._follower.is_cold)
        if self._ranks.num == 1:
            return seconds <= 0
        # To ask the others takes time as well: they agree on when to ask again, at half of the longest wait.
        wait = max(self._ranks.gather(self._overhead.steps_in(seconds, now, step)))
        self._ask_at = step + (wait + 1) // 2
        return wait == 0

    def _row(self, step: int, batch: Any) -> MonitorRow:
        cold = self._follower.is_cold
        began = self._synchronized()
        max_hvps = self._overhead.products(self._max_overhead, began, len(self._measure))
        if self._max_overhead is not None:
            max_hvps = min(self._ranks.gather(max_hvps))  # clocks differ
        try:
            limit = stability_limit(self._optimizer)  # of the rates as they are now
            results = self._results(batch, max_hvps)
        finally:
            ended = self._synchronized()
            self._overhead.spend(ended - began, cold=cold)
        num_hvps = sum(result.num_hvps for result in {id(r): r for r in results.values()}.values())
        self._overhead.per_product = (ended - began) / max(1, num_hvps)
        lr = float(self._optimizer.param_groups[0]["lr"])
        values = {name: result.value for name, result in results.items()}
        edge = lr * values.get("preconditioned_sharpness", math.nan)
        row = MonitorRow(
            step=step,
            lr=lr,
            sharpness=values.get("sharpness", math.nan),
            preconditioned_sharpness=values.get("preconditioned_sharpness", math.nan),
            lr_sharpness=edge,
            limit=limit.value,
            fraction=edge / limit.value if limit.value else math.inf,
            regime="unknown",
            status=_status(results.values(), limit),
            num_hvps=num_hvps,
            seconds=ended - began,
            overhead=self._overhead.share(ended),
            top_parameters=_largest_shares(results, self._num_shares),
        )
        return dataclasses.replace(row, regime=regime([*self._rows, row]))

    def _results(self, batch: Any, max_hvps: int) -> dict[str, SharpnessResult]:
        """Return a result for each name that is measured; the same one for both where P = 1."""
        loss_fn, batches = None, [batch] if self._batches is None else self._batches
        if self._batches is None and isinstance(batch, UpdateLoss):
            loss_fn, batches = batch.measured()
        measure = partial(self._follower.measure, batches=batches, loss_fn=loss_fn, max_hvps=max_hvps)
        if is_identity(self._optimizer, select_parameters(self._model, self._params).values()):
            return dict.fromkeys(MEASURES, measure("sharpness"))
        return {name: measure(name) for name in self._measure}

    def _synchronized(self) -> float:
        """Return the time when all that was asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; the vectors are not among them: after a resume, one start is cold."""
        rows = [row.as_dict() for row in self._rows]
        return {
            "format": _FORMAT,
            "step": self._step,
            "rows": rows,
            "budget": self._overhead.state_dict(self._clock()),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved monitor stood: its step, its latest rows and the time it had spent.

        Raises:
            ValueError: entries are missing, foreign or of another kind. Then nothing has changed.
        """
        if not isinstance(state_dict, Mapping) or set(state_dict) | {"format"} != set(self.state_dict()):
            raise ValueError(
                "the saved state of a Monitor has the entries format, step, rows and budget, got "
                f"{list(state_dict) if isinstance(state_dict, Mapping) else state_dict!r}."
            )
        step, rows = state_dict["step"], state_dict["rows"]
        if state_dict.get("format", _FORMAT) != _FORMAT:
            raise ValueError(
                f"the saved state has format {state_dict['format']!r}, this edgewise reads {_FORMAT}."
            )
        if not isinstance(step, int) or isinstance(step, bool) or step < 0 or not isinstance(rows, list):
            raise ValueError(
                f"the saved state must have a step, 0 or greater, and a list of rows; got {step!r} and {rows!r:.200}."
            )
        rows = [row_of(row) for row in rows]
        self._overhead.load_state_dict(state_dict["budget"])
        self._step, self._ask_at = step, 0
        self._rows.clear()
        self._rows.extend(rows)
        self._follower.forget()


def _largest_shares(results: Mapping[str, SharpnessResult], num: int) -> dict[str, float]:
    """Return the largest shares of the eigenvector that the regime is read from; none where it is not finite."""
    result = results.get("preconditioned_sharpness") or results["sharpness"]
    if num == 0 or not math.isfinite(result.value):
        return {}
    return dict(list(result.by_parameter().items())[:num])


def _status(results: Iterable[SharpnessResult], limit: StabilityLimitResult) -> Status:
    for result in results:
        if not result.converged:
            return result.status
    return Status.CONVERGED if limit.status is Status.EXACT else limit.status


def _share(name: str, value: float) -> float:
    if positive_number(name, value) >= 1:
        raise ValueError(f"{name} must be a share of the run's time, below 1, got {value!r}: 0.02 is 2%.")
    return float(value)
