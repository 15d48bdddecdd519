"""Where a function of the learning rate first rises: scalar searches that count what they evaluate. No torch.

Both searches see the change of the loss ΔL(η) = L(θ + ηu) − L(θ) and nothing else; u is the optimizer's update at
rate 1. A change that is not finite counts as a rise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from edgewise.errors import Status

_VISIBLE = 16  # times the loss's resolution: the smallest change that is taken for one
_FARTHEST = 2.0**24  # times the first rate: where a search for a rise gives up
_FIRST_JUMP, _MOST_JUMP = 2.0, 32.0  # factors between rates where no secant says how far to go
_PLAUSIBLE = 1 / 4  # of the claimed slope: where the trace shows less, the gradient is doubted
_IMPLAUSIBLE = 1 / 8  # of the claimed slope: where a measurement shows less, the gradient is another loss's
_LOSS_SCALE = 6  # log₂ of the smallest loss scale that is recognised
_FINEST = 2.0**-10  # relative width at which a rise that is still too large is taken as it is


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is known of ΔL before it is evaluated, and what is asked.

    Attributes:
        slope: dL/dη at 0, as the gradient claims; < 0.
        resolution: of the loss, ≥ 0: smaller changes are rounding.
        limit: the largest rate to try, > 0; may be infinite.
        rtol: the bracket's relative width, > 0.
        most_rise: the largest change allowed at the bracket's upper end, > 0; may be infinite.
        max_forwards: budget of evaluations.
    """

    slope: float
    resolution: float = 0.0
    limit: float = math.inf
    rtol: float = 1 / 16
    most_rise: float = math.inf
    max_forwards: int = 60

    def visible(self, lr: float) -> float:
        """Return the rate, raised to where the loss can show the step, but not above the limit."""
        return min(max(lr, _VISIBLE * self.resolution / -self.slope), self.limit)

    @property
    def smallest(self) -> float:
        """Below this rate the expected fall of the loss is less than its precision: there is nothing to see."""
        return self.resolution / -self.slope


@dataclass
class Trace:
    """The changes of the loss seen so far, rate → ΔL, and the smallest bracket of a rise among them."""

    change: Callable[[float], float]
    line: Line
    seen: dict[float, float] = field(default_factory=dict)

    def rises(self, lr: float) -> bool:
        """Evaluate at a rate; whether the loss rises there."""
        change = self.change(lr)
        self.seen[lr] = change if math.isfinite(change) else math.inf
        return self.seen[lr] > 0

    @property
    def high(self) -> float:
        """The smallest rate seen to raise the loss; infinite for none."""
        return min((lr for lr, change in self.seen.items() if change > 0), default=math.inf)

    @property
    def low(self) -> float:
        """The largest rate below `high` seen not to raise the loss; 0 for none."""
        return max((lr for lr, change in self.seen.items() if change <= 0 and lr < self.high), default=0.0)

    @property
    def rise(self) -> float:
        """ΔL at `high`; NaN if there is none."""
        return self.seen.get(self.high, math.nan)

    @property
    def crosses_twice(self) -> bool:
        """Whether a rate above `high` does not raise the loss."""
        return any(change <= 0 and lr > self.high for lr, change in self.seen.items())

    def mean_slopes(self) -> list[tuple[float, float]]:
        """Return (η, φ(η) = ΔL(η)/η) where finite, in ascending order."""
        return [(lr, change / lr) for lr, change in sorted(self.seen.items()) if math.isfinite(change)]

    def dip(self) -> float | None:
        """Return a rate not yet tried between two where φ falls again: the loss may have risen in between.

        Where the loss crosses its value once, and is no more curved than a quadratic, φ rises all the way.
        """
        below = [point for point in self.mean_slopes() if point[0] <= self.low]
        for (lr, mean), (next_lr, next_mean) in pairwise(below):
            noise = _VISIBLE * self.line.resolution * (1 / lr + 1 / next_lr)
            if mean > next_mean + noise and next_lr > (1 + self.line.rtol) * lr:
                return math.sqrt(lr * next_lr)
        return None

    def ended(self) -> Status | None:
        """Return how the search ended where there is no bracket to narrow, or `None`: go on."""
        if self.low >= self.line.limit:
            return Status.ABOVE_MAX_LR
        if self.low == 0 and self.high / 2 < self.line.smallest:
            return Status.BELOW_RESOLUTION
        if len(self.seen) >= self.line.max_forwards:
            return Status.BUDGET_EXHAUSTED
        return None

    def fits(self, width: float) -> bool:
        """Whether the bracket is as narrow as asked."""
        return self.low > 0 and self.high <= (1 + width) * self.low

    def too_high(self, width: float) -> bool:
        """Whether the loss rises too much at the upper end, and a narrower bracket may mend it."""
        return not self.rise <= self.line.most_rise and width > _FINEST


def paper_search(change: Callable[[float], float], line: Line, first: float) -> tuple[Trace, Status]:
    """Double or halve from `first` until the loss rises between two rates, then bisect on the log scale.

    Kalra & Barkeshli 2024, section 5, where the halving is ours.

    >>> trace, status = paper_search(lambda lr: lr * (lr - 1), Line(slope=-1.0), first=0.1)
    >>> status.name, len(trace.seen), trace.low <= 1 <= trace.high
    ('FOUND', 9, True)
    """
    trace, width, lr = Trace(change, line), line.rtol, line.visible(first)
    while True:
        trace.rises(lr)
        low, high = trace.low, trace.high
        if trace.fits(width):
            if not trace.too_high(width):
                return trace, Status.FOUND
            width /= 2
        if status := trace.ended():
            return trace, status
        if low == 0:
            lr = high / 2
        elif high == math.inf:
            if low >= _FARTHEST * first:
                return trace, Status.NO_CATAPULT
            lr = min(2 * low, line.limit)
        else:
            lr = math.sqrt(low * high)


def secant_search(change: Callable[[float], float], line: Line, first: float) -> tuple[Trace, Status]:
    """Follow the secant of φ(η) = ΔL(η)/η to its root: two evaluations if `first` is within rtol of it.

    On a quadratic φ is affine, φ(0) is the slope, and one evaluation gives the root; two, a factor 1 + rtol apart,
    bracket it. Where the secant misleads, the bracket is bisected on the log scale.

    >>> trace, status = secant_search(lambda lr: lr * (lr - 1), Line(slope=-1.0), first=0.1)
    >>> status.name, len(trace.seen), trace.low <= 1 <= trace.high
    ('FOUND', 3, True)
    """
    trace = Trace(change, line)
    steps, width, doubted = _Steps(trace), line.rtol, False
    lr = first = line.visible(first)
    while True:
        trace.rises(lr)
        if trace.fits(width):
            dip = None if doubted or len(trace.seen) >= line.max_forwards else trace.dip()
            if trace.too_high(width):
                width /= 2
            elif dip is None:
                return trace, Status.MULTIPLE_CROSSINGS if trace.crosses_twice else Status.FOUND
            else:
                lr, doubted = dip, True
                continue
        if status := trace.ended():
            return trace, status
        if trace.high == math.inf and (trace.low >= _FARTHEST * first or _levels_off(trace)):
            return trace, Status.NO_CATAPULT
        lr = min(steps.next(width), line.limit)


def check_gradient(trace: Trace) -> Status | None:
    """Return what is wrong with a gradient whose slope the loss does not show, or `None`.

    Where φ, carried back to 0 from what was evaluated, gives less than a quarter of the slope, it is measured near 0,
    by one more evaluation. Showing more than the slope is no fault: then the gradient was clipped.
    """
    shown = _shown_slope(trace)
    if trace.low > 0 and shown < _PLAUSIBLE and len(trace.seen) < trace.line.max_forwards:
        trace.rises(trace.line.visible(trace.low / 8))
        shown = _shown_slope(trace)
    if not shown < _IMPLAUSIBLE:
        return None
    halvings = -math.log2(shown) if shown > 0 else 0.0
    is_scale = halvings >= _LOSS_SCALE and abs(halvings - round(halvings)) < 0.1
    return Status.SCALED_GRADIENT if is_scale else Status.OTHER_GRADIENT


def _shown_slope(trace: Trace) -> float:
    """Return φ(0), by the line through the two smallest rates seen, over the slope; NaN if it cannot be told."""
    line, means = trace.line, trace.mean_slopes()
    if trace.high == math.inf or len(means) < 2:
        return math.nan
    (a, at_a), (b, at_b) = means[:2]
    noise = line.resolution * (1 / a + 1 / b) * b / (b - a)
    shown = (at_a * b - at_b * a) / (b - a)
    return shown / line.slope if abs(shown) > 4 * noise else math.nan


def _levels_off(trace: Trace) -> bool:
    """Whether the loss no longer depends on the rate at all."""
    last = sorted(trace.seen.items())[-3:]
    return len(last) == 3 and last[-1][0] >= 8 * last[0][0] and len({change for _, change in last}) == 1


class _Steps:
    """Where to look next."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._jump = _FIRST_JUMP
        self._widths: list[float] = []  # log(high/low) after each evaluation inside the bracket

    def next(self, width: float) -> float:
        """Return a rate that closes the bracket if the root is where the secant says, or else comes nearer to it."""
        low, high, root = self._trace.low, self._trace.high, self._root()
        closing = 1 + width * (1 - 1e-9)  # rounding may not leave the bracket open
        root *= closing**0.25  # aside of the root itself, where rounding decides
        if high == math.inf:
            return self._outward(low, root / low, closing)
        if low == 0:
            return high / self._outward(1.0, high / root if root > 0 else math.inf, closing)
        self._widths.append(math.log(high / low))
        if self._stalls() or high / low <= closing**2 or not math.isfinite(root):
            return math.sqrt(low * high)
        return min(max(root, low * closing), high / closing)

    def _outward(self, from_: float, factor: float, closing: float) -> float:
        """Go by the factor to the root: at least far enough to close the bracket, at most by a jump."""
        if math.isfinite(factor):
            return from_ * min(max(factor, closing), _MOST_JUMP)
        jump, self._jump = self._jump, min(4 * self._jump, _MOST_JUMP)
        return from_ * jump

    def _stalls(self) -> bool:
        """Whether two evaluations have not halved the bracket."""
        return len(self._widths) >= 3 and self._widths[-1] > 0.5 * self._widths[-3]

    def _root(self) -> float:
        """Return the root of the secant of φ through the two rates nearest to it; NaN where it has none ahead."""
        line, low, high = self._trace.line, self._trace.low, self._trace.high
        means = self._trace.mean_slopes()
        below = [point for point in means if point[0] <= low]
        above = [point for point in means if point[0] >= high]
        if above and low > 0:
            (a, at_a), (b, at_b) = below[-1], above[0]
        elif above:
            # What was evaluated is believed before the slope, which a clipped or scaled gradient distorts.
            (a, at_a), (b, at_b) = above[:2] if len(above) > 1 else [(0.0, line.slope), above[0]]
        elif len(below) > 1:
            (a, at_a), (b, at_b) = below[-2:]
        elif below:
            (a, at_a), (b, at_b) = (0.0, line.slope), below[0]
        else:
            return math.nan
        noise = line.resolution * ((1 / a if a else 0.0) + 1 / b)
        if at_b - at_a <= noise:
            return math.nan
        root = a - at_a * (b - a) / (at_b - at_a)
        return root if low < root < high else math.nan
