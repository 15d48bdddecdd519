"""One measurement along a run, and what the latest of them say the sharpness is doing."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from edgewise.status import Status, flat_metrics

Regime: TypeAlias = Literal[
    "unknown", "progressive sharpening", "sharpness reduction", "constant", "edge of stability"
]

WINDOW = 8  # rows that a regime is read from
FEWEST_ROWS = 4  # below, it is unknown
REGIME_CODES: dict[Regime, int] = {  # the same in all releases
    "unknown": 0,
    "sharpness reduction": 1,
    "constant": 2,
    "progressive sharpening": 3,
    "edge of stability": 4,
}
AT_EDGE = (0.8, 1.3)  # the median of lr × sharpness over its limit
TREND = 0.02  # least relative change over the window …
STANDARD_ERRORS = 3.0  # … and in units of its own error, that is no accident


@dataclass(frozen=True, kw_only=True)
class MonitorRow:
    """One measurement along a run; `as_dict()` gives plain numbers and strings, `metrics()` numbers for trackers."""

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
    top_parameters: dict[str, float] = field(
        default_factory=dict, hash=False
    )  # name → share of the top eigenvector, largest first; those that the monitor was asked for

    def as_dict(self) -> dict[str, Any]:
        """Return the columns by name, the status by its name; `top_parameters`, a dict, where there are any."""
        columns = dataclasses.asdict(self) | {"status": self.status.name}
        if not self.top_parameters:
            del columns["top_parameters"]
        return columns

    def metrics(self, prefix: str = "edgewise/") -> dict[str, float | int]:
        """Return the numbers by flat names, such as "edgewise/sharpness", for a tracker of any kind.

        They are `prefix` + the names of the columns; status and regime are codes (`Status.code`, and the table of the
        reference), counts are ints. What is NaN, as it was not measured or is not known, is left out. Of
        `top_parameters` each share is `prefix` + "share/" + the parameter's name.

        Args:
            prefix: of each name.

        Raises:
            TypeError: `prefix` is no str.

        Examples:
            >>> unknown = dict.fromkeys(("preconditioned_sharpness", "lr_sharpness", "limit", "fraction"), math.nan)
            >>> row = MonitorRow(step=10, lr=0.1, sharpness=9.0, regime="constant", status=Status.NO_PRECONDITIONER,
            ...     num_hvps=2, seconds=0.5, overhead=0.02, top_parameters={"0.weight": 0.75}, **unknown)
            >>> metrics = row.metrics()
            >>> metrics["edgewise/sharpness"], metrics["edgewise/regime"], metrics["edgewise/share/0.weight"]
            (9.0, 2, 0.75)
            >>> "edgewise/limit" in metrics
            False
        """
        codes = {"status": self.status.code, "regime": REGIME_CODES[self.regime]}
        shares = {f"share/{name}": share for name, share in self.top_parameters.items()}
        return flat_metrics(dataclasses.asdict(self) | codes | shares, prefix)

    @property
    def ok(self) -> bool:
        """Whether the numbers may be used as they stand: what was measured has converged, and there is a limit."""
        return self.status is Status.CONVERGED

    def __str__(self) -> str:
        """Return the step, the regime, λ as the regime sees it, its fraction, the status and the cost, in one line."""
        fraction = "" if math.isnan(self.fraction) else f", fraction {self.fraction:.2g}"
        products = f"{self.num_hvps} product{'' if self.num_hvps == 1 else 's'}"
        return f"step {self.step}: {self.regime}, λ {_followed(self):.3g}{fraction} ({self.status.name}, {products})"


def row_of(saved: dict[str, Any]) -> MonitorRow:
    """Return what `as_dict` was called on."""
    known = {column.name for column in dataclasses.fields(MonitorRow)}
    words = {"regime": get_args(Regime), "status": Status.__members__}
    if not isinstance(saved, Mapping) or set(saved) | {"top_parameters"} != known:
        raise ValueError(
            f"a row in the saved state has the entries {', '.join(sorted(known))}; got {saved!r:.200}."
        )
    for name, value in saved.items():
        if name == "top_parameters":
            fits = isinstance(value, Mapping) and all(isinstance(share, float) for share in value.values())
        else:
            fits = value in words[name] if name in words else isinstance(value, int | float)
        if not fits:
            raise ValueError(f"{name} of a row in the saved state cannot be {value!r}.")
    return MonitorRow(**{**saved, "status": Status[saved["status"]]})


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

    Examples:
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
