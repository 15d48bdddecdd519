"""One search for the critical learning rate: what is asked, and a method of `methods` applied along an update."""

import math
from dataclasses import dataclass
from typing import Literal

from edgewise.arguments import known_name, nonnegative_number, positive_count, positive_number, positive_share
from edgewise.critical.landscape import BatchesLoss, ClosureLoss
from edgewise.critical.methods import Line, Trace, check_gradient, paper_search, secant_search
from edgewise.critical.results import BRACKETED, CriticalLRResult
from edgewise.optimizers.update import HIGHEST, Update
from edgewise.status import Status

Method = Literal["secant", "paper"]
_SEARCHES = {"secant": secant_search, "paper": paper_search}
FEWEST_FORWARDS = 4  # that a search can end with: the loss, the loss again, and the two ends of a bracket


@dataclass(frozen=True, kw_only=True)
class Searching:
    """What is asked of a search, checked as it is made: numbers are floats afterwards.

    `critical_lr` documents all but two, which see differences of the loss alone. The larger of them counts.

    Raises:
        TypeError: a value is of another kind.
        ValueError: a value is out of range.

    >>> Searching(guess=0.1, max_lr=1).first(current=3.0) < 0.1
    True
    """

    guess: float | CriticalLRResult | None = None
    max_lr: float | None = None
    rtol: float = 1 / 16
    tolerance: float | None = None
    max_forwards: int = 60
    method: Method = "secant"
    most_rise: float | None = None  # the tolerance in units of the loss, in place of |L(θ)|
    most_excess: float = 0.0  # the tolerance in units of |g·u|η

    def __post_init__(self) -> None:
        known_name("method", self.method, _SEARCHES)
        checked: dict[str, object] = {
            "rtol": positive_share(
                "rtol", self.rtol, "it is the bracket's upper end over the lower one, less 1"
            ),
            "max_forwards": positive_count("max_forwards", self.max_forwards),
            "most_excess": nonnegative_number("most_excess", self.most_excess),
        }
        if self.max_lr is not None:
            checked["max_lr"] = positive_number("max_lr", self.max_lr)
        if self.tolerance is not None:
            checked["tolerance"] = positive_number("tolerance", self.tolerance)
        if self.most_rise is not None:
            checked["most_rise"] = nonnegative_number("most_rise", self.most_rise)
        if self.guess is not None and not isinstance(self.guess, CriticalLRResult):
            checked["guess"] = positive_number("guess", self.guess)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def limit(self) -> float:
        """The largest rate to try."""
        return math.inf if self.max_lr is None else self.max_lr

    @property
    def exponent(self) -> float:
        """The power q that the loss is expected to follow: 1 on a quadratic."""
        return self.guess.exponent if isinstance(self.guess, CriticalLRResult) else 1.0

    @property
    def is_trusted(self) -> bool:
        """Whether an earlier result has seen that the loss repeats."""
        return isinstance(self.guess, CriticalLRResult) and self.guess.lr > 0

    def first(self, current: float) -> float:
        """Return the rate to begin with: the `current` one where no other is expected."""
        expected = self.guess.lr if isinstance(self.guess, CriticalLRResult) else self.guess
        if expected is None or not expected > 0:  # an earlier search found nothing
            return min(current, self.limit)
        # An earlier rate is the upper end of a bracket: the root is expected in the middle.
        return min(expected / math.sqrt(1 + self.rtol), self.limit)

    def allowed_rise(self, base: float) -> float:
        """Return by how much a loss of `base` may rise at the bracket's upper end."""
        if self.most_rise is not None:
            return self.most_rise
        return math.inf if self.tolerance is None else self.tolerance * abs(base)


def search_along(
    asked: Searching,
    loss: ClosureLoss | BatchesLoss,
    update: Update,
    slope: float,
    *,
    current: float,
    doubtful: bool,
) -> CriticalLRResult:
    """Search along the update, whose `slope` the gradient claims, for one whose rate is `current`.

    A `doubtful` gradient may be another loss's.
    """
    if not -math.inf < slope < 0:  # NaN and infinities from a gradient that is not finite included
        return _result(asked, loss, None, slope, current, Status.NOT_A_DESCENT_DIRECTION)
    if not asked.is_trusted:
        loss.check_repeats()
    line = Line(
        slope=slope,
        resolution=loss.resolution,
        limit=min(asked.limit, HIGHEST),
        rtol=asked.rtol,
        most_rise=asked.allowed_rise(loss.base),
        most_excess=asked.most_excess,
        max_forwards=max(1, asked.max_forwards - loss.num_forwards),
        exponent=asked.exponent,
    )
    search = _SEARCHES[asked.method]
    trace, status = search(lambda lr: loss.change(update.at(lr), lr), line, asked.first(current))
    if doubtful and trace.high < math.inf:  # else a loss that levels off far away hides the slope
        status = check_gradient(trace) or status
    return _result(asked, loss, trace, slope, current, status)


def _result(
    asked: Searching,
    loss: ClosureLoss | BatchesLoss,
    trace: Trace | None,
    slope: float,
    current: float,
    status: Status,
) -> CriticalLRResult:
    low, high, rise = (0.0, math.inf, math.nan) if trace is None else (trace.low, trace.high, trace.rise)
    lr = high if status in BRACKETED else low
    noise_floor = loss.resolution / (-slope * lr) if slope < 0 and lr > 0 else math.inf
    if status in (Status.FOUND, Status.ABOVE_MAX_LR) and noise_floor > asked.rtol:
        status = Status.BELOW_RESOLUTION
    return CriticalLRResult(
        lr=lr,
        bracket=(low, high),
        scale=lr / current,
        status=status,
        num_forwards=loss.num_forwards,
        loss=loss.base,
        rise=rise,
        slope=slope,
        noise_floor=noise_floor,
        exponent=1.0 if trace is None else trace.final_exponent(),
    )
