"""Follow sharpness and the distance to the edge of stability along a run, within a stated share of its time."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from edgewise.batches import Batches
from edgewise.curvature import SharpnessResult, preconditioned_sharpness, sharpness
from edgewise.curvature.hessian import ROUTES, Route
from edgewise.errors import Status, known_name, nonnegative_count, positive_count, positive_number
from edgewise.objective import LossFunction
from edgewise.parameters import select_parameters
from edgewise.preconditioner import check_covered, diagonal, rate_ratios
from edgewise.stability import StabilityLimitResult, stability_limit

Measure: TypeAlias = Literal["sharpness", "preconditioned_sharpness"]
Regime: TypeAlias = Literal[
    "unknown", "progressive sharpening", "sharpness reduction", "constant", "edge of stability"
]

MEASURES: tuple[Measure, ...] = ("sharpness", "preconditioned_sharpness")
WINDOW = 8  # rows that a regime is read from
FEWEST_ROWS = 4  # below, it is unknown
AT_EDGE = (0.8, 1.3)  # the median of lr × sharpness over its limit
TREND = 0.02  # least relative change over the window …
STANDARD_ERRORS = 3.0  # … and in units of its own error, that is no accident

_DEFAULT_OVERHEAD = 0.02
_RECENT = 5  # warm measurements whose median predicts the next one's cost
_MOST_HVPS, _FEWEST_HVPS = 200, 20  # budget of one measurement: without a share of time, and at least


@dataclass(frozen=True, kw_only=True)
class MonitorRow:
    """One measurement along a run; `as_dict()` gives plain numbers and strings, for trackers and files."""

    step: int  # of the coming update, from 0
    lr: float  # of the first parameter group
    sharpness: float  # NaN if not measured
    preconditioned_sharpness: float  # NaN if not measured, or no P is known
    lr_sharpness: float  # lr × preconditioned_sharpness, which the limit belongs to; NaN without it
    limit: float  # the stability limit of lr_sharpness; NaN if there is none
    fraction: float  # lr_sharpness / limit: 1 at the edge
    regime: Regime  # see `regime`
    status: Status  # CONVERGED, else why a sharpness is provisional, else why there is no limit
    num_hvps: int  # Hessian-vector products this row paid for
    seconds: float  # this row took
    overhead: float  # share of the time since the first `observe` that went into measuring, this row included

    def as_dict(self) -> dict[str, int | float | str]:
        """Return the columns by name, the status by its name."""
        return dataclasses.asdict(self) | {"status": self.status.name}


class Monitor:
    """Follow sharpness, preconditioned sharpness and their distance to the edge, without changing the run.

        fraction = η·λ / limit,  λ of P^{-1/2}HP^{-1/2},  limit of `stability_limit`

    Call `observe` between `loss.backward()` and `optimizer.step()`: P is that of the coming update. It measures when
    it is due and returns a row, else `None`. Under `max_overhead` it adds up its own seconds, and measures only while
    (spent + the expected cost) ≤ max_overhead × the seconds since the first `observe`. The first measurement, at
    step 0, is always made: a cold start costs tens of gradients, and the second comes when its share has fallen
    below the limit; `overhead` in the row says what it is. Later measurements start from the one before. One that turns
    out hard stops at about twice what is left of the share (at 20 Hessian-vector products at least), as a provisional
    number. Several processes time themselves differently: there, set `every` and no `max_overhead`.

    Args:
        model: any module.
        optimizer: of this model. Where its P is not known, sharpness alone is measured, and every row's status says so.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        every: measure at steps 0, every, 2·every, … ≥ 1; with `max_overhead`, at those of them that it allows.
        max_overhead: share of the run's time, between 0 and 1; 0.02 if `every` is not given either.
        batches: fixed batches to measure on, a list or another re-iterable; otherwise the batch given to `observe`.
        measure: which of "sharpness" and "preconditioned_sharpness". Where P = 1 they are the same, measured once.
        log: called with each row, such as `rows.append`.
        rtol: as for `sharpness`.
        hvp: as for `sharpness`.
        params: as for `sharpness`.
        seed: as for `sharpness`.

    Raises:
        TypeError: an argument has the wrong type, or `batches` can be read only once.
        ValueError: an argument is out of range, or model and optimizer have no parameter in common.
        PreconditionerError: only the preconditioned sharpness is asked for, and P is not known.

    Example:
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
    ) -> None:
        known_name("hvp", hvp, ROUTES)
        for name, function in (("loss_fn", loss_fn), ("log", log)):
            if not callable(function) and (name, function) != ("log", None):
                raise TypeError(f"{name} must be callable, got {function!r}: pass a function.")
        if every is None and max_overhead is None:
            max_overhead = _DEFAULT_OVERHEAD
        if batches is not None:
            Batches(batches)  # raises what it has to say now
        self._every = 1 if every is None else positive_count("every", every)
        self._max_overhead = None if max_overhead is None else _share("max_overhead", max_overhead)
        self._model, self._optimizer, self._loss_fn, self._log = model, optimizer, loss_fn, log
        self._batches = batches
        self._params = params if params is None or isinstance(params, str) else list(params)
        self._options: dict[str, Any] = {
            "rtol": positive_number("rtol", rtol),
            "hvp": hvp,
            "params": self._params,
            "seed": nonnegative_count("seed", seed),
        }
        self._device = _check_shared(model, optimizer, self._params)
        self._limit = stability_limit(optimizer)
        self._measure = _measures(model, optimizer, measure, self._limit, self._params)
        self._previous: dict[str, tuple[list[str], SharpnessResult]] = {}
        self._rows: deque[MonitorRow] = deque(maxlen=WINDOW)
        self._step = 0
        self._budget = _Budget()
        self._clock: Callable[[], float] = time.perf_counter

    def observe(self, batch: Any = None) -> MonitorRow | None:
        """Measure if it is due; call it once a step, between `loss.backward()` and `optimizer.step()`.

        Args:
            batch: what to measure on; not used where the monitor has batches of its own.

        Returns:
            The row, or `None` at a step without measurement.

        Raises:
            ValueError: neither a batch nor batches to measure on.
            LossError: as for `sharpness`. After this or any other error, training is as if nothing had happened.
            SecondDerivativeError: as for `sharpness`.
        """
        if batch is None and self._batches is None:
            raise ValueError(
                "observe() got no batch, and the monitor has none of its own: call observe(batch), or construct "
                "it with batches=[...]."
            )
        step, now = self._step, self._clock()
        self._step += 1
        self._budget.start(now)
        if step % self._every or not self._budget.allows(self._max_overhead, now, cold=not self._previous):
            return None
        row = self._row(step, [batch] if self._batches is None else self._batches)
        self._rows.append(row)
        if self._log is not None:
            self._log(row)
        return row

    def _row(self, step: int, batches: Iterable[Any]) -> MonitorRow:
        cold = not self._previous
        began = self._synchronized()
        self._options["max_hvps"] = self._budget.products(self._max_overhead, began, len(self._measure))
        try:
            self._limit = stability_limit(self._optimizer)  # the rates may have changed
            results = self._results(batches)
        finally:
            ended = self._synchronized()
            self._budget.spend(ended - began, cold=cold)
        num_hvps = sum(result.num_hvps for result in {id(r): r for r in results.values()}.values())
        self._budget.per_product = (ended - began) / max(1, num_hvps)
        lr = float(self._optimizer.param_groups[0]["lr"])
        values = {name: result.value for name, result in results.items()}
        edge = lr * values.get("preconditioned_sharpness", math.nan)
        row = MonitorRow(
            step=step,
            lr=lr,
            sharpness=values.get("sharpness", math.nan),
            preconditioned_sharpness=values.get("preconditioned_sharpness", math.nan),
            lr_sharpness=edge,
            limit=self._limit.value,
            fraction=edge / self._limit.value if self._limit.value else math.inf,
            regime="unknown",
            status=_status(results.values(), self._limit),
            num_hvps=num_hvps,
            seconds=ended - began,
            overhead=self._budget.share(ended),
        )
        return dataclasses.replace(row, regime=regime([*self._rows, row]))

    def _results(self, batches: Iterable[Any]) -> dict[str, SharpnessResult]:
        """Return a result for each name that is measured; the same one for both where P = 1."""
        if _is_identity(self._optimizer, select_parameters(self._model, self._params).values()):
            return dict.fromkeys(MEASURES, self._result("sharpness", batches))
        return {name: self._result(name, batches) for name in self._measure}

    def _result(self, name: str, batches: Iterable[Any]) -> SharpnessResult:
        names = list(select_parameters(self._model, self._params))
        earlier, start = self._previous.get(name, (names, None))
        options = self._options | {"start": start if earlier == names else None}  # not after unfreezing
        if name == "sharpness":
            result = sharpness(self._model, self._loss_fn, batches, **options)
        else:
            result = preconditioned_sharpness(self._model, self._loss_fn, batches, self._optimizer, **options)
        if math.isfinite(result.value):
            self._previous[name] = (names, result)
        return result

    def _synchronized(self) -> float:
        """Return the time when all that was asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings; the vectors are not among them: after a resume, one start is cold."""
        rows = [row.as_dict() for row in self._rows]
        return {"step": self._step, "rows": rows, "budget": self._budget.state_dict(self._clock())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved monitor stood: its step, its latest rows and the time it had spent."""
        self._step = state_dict["step"]
        self._rows.clear()
        self._rows.extend(
            MonitorRow(**{**row, "status": Status[row["status"]]}) for row in state_dict["rows"]
        )
        self._budget.load_state_dict(state_dict["budget"])
        self._previous.clear()


def regime(history: Sequence[MonitorRow]) -> Regime:
    """Say what the sharpness is doing, from the latest rows.

    Of the last 8 rows, with the preconditioned sharpness where it is measured, else the sharpness:

    - fewer than 4 that are finite and positive: "unknown";
    - the median of `fraction` lies in [0.8, 1.3]: "edge of stability";
    - log sharpness is fitted by a line in the step; the change along it over the window is at least 2% and at least 3
      of its standard errors: "progressive sharpening" upwards, "sharpness reduction" downwards;
    - else "constant", which includes a change that the noise hides.

    Args:
        history: rows of one run, in order.

    Example:
        >>> regime([])
        'unknown'
    """
    rows = [row for row in history[-WINDOW:] if 0 < _followed(row) < math.inf]
    if len(rows) < FEWEST_ROWS:
        return "unknown"
    fractions = [row.fraction for row in rows if not math.isnan(row.fraction)]
    if fractions and AT_EDGE[0] <= median(fractions) <= AT_EDGE[1]:
        return "edge of stability"
    change, error = _trend([row.step for row in rows], [math.log(_followed(row)) for row in rows])
    if abs(change) < max(math.log1p(TREND), STANDARD_ERRORS * error):
        return "constant"
    return "progressive sharpening" if change > 0 else "sharpness reduction"


def _followed(row: MonitorRow) -> float:
    measured = row.preconditioned_sharpness
    return row.sharpness if math.isnan(measured) else measured


def _trend(steps: list[int], logs: list[float]) -> tuple[float, float]:
    """Return the change of the least-squares line from first to last step, and its standard error."""
    x = np.array(steps, dtype=np.float64)
    x = (x - x.mean()) / np.ptp(x)
    y = np.array(logs) - np.mean(logs)
    change = float(x @ y / (x @ x))
    variance = float(np.square(y - change * x).sum() / (len(x) - 2))
    return change, math.sqrt(variance / float(x @ x))


class _Budget:
    """What measuring has cost, and what it may."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._elapsed = 0.0  # before a resume
        self._spent = 0.0
        self.per_product = 0.0  # seconds, of the latest measurement
        self._cold: float | None = None  # latest cost of a cold start
        self._warm: deque[float] = deque(maxlen=_RECENT)

    def start(self, now: float) -> None:
        """Begin to count, once."""
        if self._started is None:
            self._started = now - self._elapsed

    def allows(self, share: float | None, now: float, *, cold: bool) -> bool:
        """Whether one more measurement stays within the share."""
        if share is None or self._cold is None or self._started is None:
            return True
        expected = median(self._warm) if self._warm and not cold else self._cold
        return self._spent + expected <= share * (now - self._started)

    def products(self, share: float | None, now: float, measurements: int) -> int:
        """Return how many products each measurement may take: twice what is left of the share, for a hard one."""
        if share is None or self._cold is None or self._started is None or self.per_product == 0:
            return _MOST_HVPS
        left = (share * (now - self._started) - self._spent) / (self.per_product * measurements)
        return int(min(_MOST_HVPS, max(_FEWEST_HVPS, 2 * left)))

    def spend(self, seconds: float, *, cold: bool) -> None:
        """Add what a measurement took."""
        self._spent += seconds
        if cold:
            self._cold = seconds
        else:
            self._warm.append(seconds)

    def share(self, now: float) -> float:
        """Return the share of the time so far."""
        elapsed = 0.0 if self._started is None else now - self._started
        return self._spent / elapsed if elapsed > 0 else 0.0

    def state_dict(self, now: float) -> dict[str, Any]:
        """Return plain numbers."""
        elapsed = self._elapsed if self._started is None else now - self._started
        return {
            "elapsed": elapsed,
            "spent": self._spent,
            "per_product": self.per_product,
            "cold": self._cold,
            "warm": list(self._warm),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the count; the time between does not count."""
        self._started, self._elapsed = None, state["elapsed"]
        self._spent, self._cold, self.per_product = state["spent"], state["cold"], state["per_product"]
        self._warm = deque(state["warm"], maxlen=_RECENT)


def _status(results: Iterable[SharpnessResult], limit: StabilityLimitResult) -> Status:
    for result in results:
        if not result.converged:
            return result.status
    return Status.CONVERGED if limit.status is Status.LINEAR else limit.status


def _is_identity(optimizer: Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether P = 1: plain gradient steps of all the parameters, with one rate for all groups."""
    if diagonal.dispatch(type(optimizer)) is not diagonal.dispatch(SGD):
        return False
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return all(id(p) in moved for p in parameters) and set(rate_ratios(optimizer)) == {1.0}


def _share(name: str, value: float) -> float:
    if positive_number(name, value) >= 1:
        raise ValueError(f"{name} must be a share of the run's time, below 1, got {value!r}: 0.02 is 2%.")
    return float(value)


def _check_shared(model: nn.Module, optimizer: Optimizer, params: str | list[str] | None) -> torch.device:
    """Return the device of the selected parameters, or raise if the optimizer moves none of them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    selected = list(select_parameters(model, params).values())
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in moved for p in selected):
        raise ValueError(
            f"none of the model's {len(selected)} selected parameters is in the optimizer: pass the optimizer of "
            "this model, or other params=."
        )
    return selected[0].device


def _measures(
    model: nn.Module,
    optimizer: Optimizer,
    measure: Sequence[Measure],
    limit: StabilityLimitResult,
    params: str | list[str] | None,
) -> tuple[Measure, ...]:
    """Return what can be measured of what is asked for, or raise if that is nothing."""
    if isinstance(measure, str) or not measure:
        raise TypeError(
            f"measure must be a sequence of one or both of {', '.join(MEASURES)}, got {measure!r}: "
            'write ("sharpness",) for one.'
        )
    for name in measure:
        known_name("measure", name, MEASURES)
    if "preconditioned_sharpness" in measure and (
        limit.status is not Status.NO_PRECONDITIONER or "sharpness" not in measure
    ):
        check_covered(optimizer, list(select_parameters(model, params).values()))
        return tuple(name for name in MEASURES if name in measure)
    return ("sharpness",)
