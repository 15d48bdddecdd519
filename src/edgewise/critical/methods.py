"""The methods of search: where a function of one number, the learning rate, first rises. No torch, no model.

Both searches see the change of the loss ΔL(η) = L(θ + ηu) − L(θ) and nothing else; u is the optimizer's update at
rate 1. A change that is not finite counts as a rise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from edgewise.status import Status

_VISIBLE = 16  # times the loss's resolution: the smallest change that is taken for one
_CLEAR = 64  # times the resolution: a change whose mean slope can be told
_FARTHEST = 2.0**24  # times the first rate: where a search for a rise gives up
_FIRST_JUMP, _MOST_JUMP = 2.0, 32.0  # factors between rates: where nothing says how far to go, and at most
_ASIDE = 0.1  # of the bracket's width: how far from the expected root to look, where rounding would decide
_MOST_LOG = 100.0  # of the factor to an expected root
_PLAUSIBLE = 1 / 4  # of the claimed slope: where the trace shows less, the gradient is doubted
_IMPLAUSIBLE = 1 / 8  # of the claimed slope: where a measurement shows less, the gradient is another loss's
_NEAR_ZERO = 64  # how many times smaller than the critical rate the slope is measured at
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
        most_rise: the largest change allowed at the bracket's upper end η, > 0; may be infinite.
        most_excess: the same in units of −slope·η, in which it is η/η_c − 1 on a quadratic; the larger of both counts.
        max_forwards: budget of evaluations.
        exponent: q > 0 of the power law expected, φ = slope·(1 − (η/η_c)^q); 1 on a quadratic.
    """

    slope: float
    resolution: float = 0.0
    limit: float = math.inf
    rtol: float = 1 / 16
    most_rise: float = math.inf
    most_excess: float = 0.0
    max_forwards: int = 60
    exponent: float = 1.0

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

    def heights(self) -> list[tuple[float, float]]:
        """Return (η, log(1 − φ(η)/slope)) where finite: negative below the root of φ, zero there, positive above.

        Of a power law, φ = slope·(1 − (η/η_c)^q), the height is q·log(η/η_c). Where the loss falls faster than the
        slope says, there is no such logarithm: then the heights are −φ/slope, the same near the root.
        """
        means = [(lr, mean / self.line.slope) for lr, mean in self.mean_slopes()]
        if any(mean >= 1 for _, mean in means):
            return [(lr, -mean) for lr, mean in means]
        return [(lr, math.log1p(-mean)) for lr, mean in means]

    def exponent(self, one: tuple[float, float], other: tuple[float, float]) -> float:
        """Return q of the power law through two points of `heights`; NaN where rounding hides it."""
        (a, at_a), (b, at_b) = sorted((one, other))
        noise = self.line.smallest * (1 / a + 1 / b)
        return (at_b - at_a) / math.log(b / a) if at_b - at_a > noise else math.nan

    def final_exponent(self) -> float:
        """Return q of the power law through the ends of the bracket, between 1/4 and 4; 1 where it cannot be told."""
        ends = [point for point in self.heights() if point[0] in (self.low, self.high)]
        exponent = self.exponent(*ends) if len(ends) == 2 else math.nan
        return 1.0 if math.isnan(exponent) else min(max(exponent, 0.25), 4.0)

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
        if self.high == math.inf and (self.low >= _FARTHEST * min(self.seen) or self._levels_off()):
            return Status.NO_CATAPULT
        if len(self.seen) >= self.line.max_forwards:
            return Status.BUDGET_EXHAUSTED
        return None

    def _levels_off(self) -> bool:
        """Whether the last three rates, the largest twice the smallest, gave the same loss: rates no longer matter."""
        last = sorted(self.seen.items())[-3:]
        if len(last) < 3 or last[-1][0] < 2 * last[0][0]:
            return False
        changes = [change for _, change in last]
        return max(changes) - min(changes) <= 4 * self.line.resolution

    def fits(self, width: float) -> bool:
        """Whether the bracket is as narrow as asked."""
        return self.low > 0 and self.high <= (1 + width) * self.low

    def too_high(self, width: float) -> bool:
        """Whether the loss rises too much at the upper end, and a narrower bracket may mend it."""
        most = max(self.line.most_rise, self.line.most_excess * -self.line.slope * self.high)
        return not self.rise <= most and width > _FINEST


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
            lr = min(2 * low, line.limit)
        else:
            lr = math.sqrt(low * high)


def secant_search(change: Callable[[float], float], line: Line, first: float) -> tuple[Trace, Status]:
    """Follow φ(η) = ΔL(η)/η to its root: two evaluations if `first` is within rtol of it.

    On a quadratic φ is affine, and φ(0) is the slope: one evaluation gives the root, and two more, a factor 1 + rtol
    apart, bracket it. Elsewhere φ is taken for a power law, φ = slope·(1 − (η/η_c)^q), a line on log scales, whose
    secant is followed. Where it misleads, the bracket is bisected on the log scale.

    >>> trace, status = secant_search(lambda lr: lr * (lr - 1), Line(slope=-1.0), first=0.1)
    >>> status.name, len(trace.seen), trace.low <= 1 <= trace.high
    ('FOUND', 3, True)
    """
    trace = Trace(change, line)
    steps, width, doubted = _Steps(trace), line.rtol, False
    lr = line.visible(first)
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
        lr = max(line.smallest, min(steps.next(width), line.limit))


def check_gradient(trace: Trace) -> Status | None:
    """Return what is wrong with a gradient whose slope the loss does not show, or `None`.

    Where φ, carried back to 0 from what was evaluated, gives less than a quarter of the slope, it is measured near 0,
    by one more evaluation. Showing more than the slope is no fault: then the gradient was clipped.
    """
    shown = _shown_slope(trace)
    if trace.low > 0 and shown < _PLAUSIBLE and len(trace.seen) < trace.line.max_forwards:
        trace.rises(trace.line.visible(trace.low / _NEAR_ZERO))
        shown = _shown_slope(trace)
    if not shown < _IMPLAUSIBLE:
        return None
    halvings = -math.log2(shown) if shown > 0 else 0.0
    is_scale = halvings >= _LOSS_SCALE and abs(halvings - round(halvings)) < 0.1
    return Status.SCALED_GRADIENT if is_scale else Status.OTHER_GRADIENT


def _shown_slope(trace: Trace) -> float:
    """Return φ(0), by the line through the two smallest rates seen, over the slope; NaN if it cannot be told."""
    line = trace.line
    means = [point for point in trace.mean_slopes() if point[0] >= _CLEAR * line.smallest]
    if len(means) < 2:
        return math.nan
    (a, at_a), (b, at_b) = means[:2]
    noise = line.resolution * (1 / a + 1 / b) * b / (b - a)
    shown = (at_a * b - at_b * a) / (b - a)
    return shown / line.slope if abs(shown) > 4 * noise else math.nan


class _Steps:
    """Where to look next."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._jump = _FIRST_JUMP  # where nothing says how far to go
        self._reach = 1.0  # how many times, in logs, the way out must be what closes the bracket
        self._widths: list[float] = []  # log(high/low) after each evaluation inside the bracket

    def next(self, width: float) -> float:
        """Return a rate that closes the bracket if the root is where it is expected, or else comes nearer to it."""
        low, high = self._trace.low, self._trace.high
        closing = 1 + width * (1 - 1e-9)  # rounding may not leave the bracket open
        root = self._root() * closing**_ASIDE
        if high == math.inf:
            return low * self._outward(root / low, closing)
        if low == 0:
            return high / self._outward(high / root, closing)
        self._widths.append(math.log(high / low))
        if math.isnan(root) or self._stalls() or high / low <= closing**2:
            return math.sqrt(low * high)
        return min(max(root, low * closing), high / closing)

    def _outward(self, factor: float, closing: float) -> float:
        """Return by what factor to go on: to the root, but farther each time that the way was too short."""
        if math.isnan(factor):
            factor, self._jump = self._jump, min(self._jump**2, _MOST_JUMP)
        shortest = closing**self._reach
        if factor <= shortest:
            self._reach *= 2
        return min(max(factor, shortest), _MOST_JUMP)

    def _stalls(self) -> bool:
        """Whether two evaluations have not halved the bracket."""
        return len(self._widths) >= 3 and self._widths[-1] > 0.5 * self._widths[-3]

    def _root(self) -> float:
        """Return where the power law through what was seen nearest to the root has it; NaN if outside the bracket."""
        trace = self._trace
        points = sorted(trace.heights(), key=lambda point: abs(point[1]))
        ends = [point for point in points if point[0] in (trace.low, trace.high)]
        nearest = ends if len(ends) == 2 else points[:2]
        if not nearest:
            return math.nan
        exponent = trace.line.exponent if len(nearest) == 1 else trace.exponent(*nearest)
        lr, height = nearest[0]
        if not exponent > 0 or height / exponent < -_MOST_LOG:
            return math.nan
        root = lr * math.exp(-height / exponent)
        return root if root > 0 and trace.low <= root < trace.high else math.nan
