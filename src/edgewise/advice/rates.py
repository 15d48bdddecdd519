"""What a trial means: a rate to train with, the largest that trains, the warmup. Pure functions of its numbers.

The constants were chosen on the development pairs of benchmarks/advice.py; docs/inspect-evidence.md says what else was
tried, and how often the rates are right.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.advice.trials import Path, ShortRun, Trial

_FACTOR = 4.0  # between the rates of short runs
_RISE = 0.2  # share of a short run in which the rate rises

_COSTS_LITTLE = 0.03  # share of what the best short run has gained, that a bearable rate may cost
_MOST = 1.5  # times the best rate of short runs: flat losses tell no more
_LONGER = 0.8  # a suggested rate in those of short runs: training is longer, and ends nearer to the noise
_LARGEST = 5.5  # the largest rate in those of short runs: warmup is longer, and runs recover
LARGEST_WITHIN = 6.0  # factor by which the largest rate may be wrong, as measured
_NEGLIGIBLE = 10  # updates of warmup
_AS_GOOD = 2.0  # factor within which a rate is as good as the suggested one


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What to train with; rates are those of the first parameter group, the others keep their ratios."""

    lr: float | None
    """The highest rate of a run with linear warmup and a decay; `None` where the trial showed none."""
    lr_largest: float | None
    """Above which training is expected to fail, within a factor of `LARGEST_WITHIN` in four of five cases."""
    lr_failed: float | None
    """The lowest above `lr_short` at which a short run ended early or lowered no loss; `None`: none of them did."""
    lr_short: float | None
    """At which a short run ends lowest."""
    lr_bearable: float | None
    """The highest at which a short run ends little higher than that."""
    lr_path: float | None
    """At which the path ended."""
    pattern: str
    """How the path went: "at once", "climbs", "was halved", "not reached", or "unknown"."""
    needs_warmup: bool | None
    """Whether linear warmup to `lr` should take more than ten updates; `None`: the path was too short to tell."""
    warmup_steps: int | None
    """The length of linear warmup to `lr` that gives up as much of the rate as the path did on its way there."""
    warmup_is_bound: bool
    """Whether the path did not reach `lr`, so that the length is a lower bound."""
    reason: str
    """Where `lr` is from, or why there is none, in a sentence."""


def run_rate(update: int, num_updates: int, *, lr: float, first: float) -> float:
    """Return the rate of an update of a short run: from `first` up to `lr` by equal factors, then linearly to 0.

    >>> [round(run_rate(update, 10, lr=4.0, first=1.0), 2) for update in range(10)]
    [2.0, 4.0, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    """
    rise = max(1, round(_RISE * num_updates)) if lr > first else 0
    if update < rise:
        return first * (lr / first) ** ((update + 1) / rise)
    return lr * (num_updates - update) / (num_updates - rise)


def next_rate(path: Path, runs: Sequence[ShortRun]) -> float:
    """Return the rate of the next short run.

    The first is to the rate at the path's end, the second to four times that. The next are four times farther on the
    better side, until the best has a neighbour on each side; then it is the middle between the best and the upper one.
    """
    tried = _by_rate(runs)
    if len(tried) < 2:
        return path.rates[-1] * _FACTOR ** len(tried)
    best = _best(tried)
    if best == 0:
        return tried[0].lr / _FACTOR
    if best == len(tried) - 1:
        return tried[-1].lr * _FACTOR
    return math.sqrt(tried[best].lr * tried[best + 1].lr)


def best_rate(runs: Sequence[ShortRun]) -> float:
    """Return the rate at which the parabola in log η through the lowest final loss and its neighbours is lowest.

    At an end of the rates, or beside a loss that is not finite, it is the rate that was tried.

    >>> runs = [ShortRun(lr=lr, losses=(1.0,), final=final) for lr, final in ((1.0, 1.0), (4.0, 0.5), (16.0, 1.0))]
    >>> round(best_rate(runs), 6)
    4.0
    """
    tried = _by_rate(runs)
    i = _best(tried)
    if i in (0, len(tried) - 1) or not math.isfinite(tried[i + 1].final + tried[i - 1].final):
        return tried[i].lr
    left, right = math.log(tried[i].lr / tried[i - 1].lr), math.log(tried[i + 1].lr / tried[i].lr)
    below, above = tried[i - 1].final - tried[i].final, tried[i + 1].final - tried[i].final
    slope, curvature = above * left**2 - below * right**2, above * left + below * right
    return tried[i].lr * math.exp(-0.5 * slope / curvature) if curvature > 0 else tried[i].lr


def bearable_rate(runs: Sequence[ShortRun], most: float) -> float:
    """Return the highest rate up to which runs end at a loss of at most `most`, straight in log η between those tried.

    Towards a loss that is not finite it is half of the way; where no run ends higher, the highest rate tried.

    >>> runs = [ShortRun(lr=lr, losses=(1.0,), final=final) for lr, final in ((1.0, 0.5), (16.0, 0.9))]
    >>> round(bearable_rate(runs, 0.7), 6), bearable_rate(runs, 1.0)
    (4.0, 16.0)
    """
    tried = _by_rate(runs)
    from_best = tried[_best(tried) :]
    for low, high in itertools.pairwise(from_best):
        if high.final > most:
            share = (most - low.final) / (high.final - low.final) if math.isfinite(high.final) else 0.5
            return low.lr * (high.lr / low.lr) ** share
    return from_best[-1].lr


def suggest(trial: Trial, *, share: float = 1.0) -> Suggestion:
    r"""Return what the trial means.

        η = 0.8 c · min(√(η_path · η_3 %), 1.5 η_best),  η_largest = 5.5 c · min(η_3 %, 1.5 η_best)

    η_path is the rate at the path's end. Of the short runs, η_best is the rate at which they end lowest, and η_3 % the
    highest at which they end higher by at most 3 % of what the best has gained since the start.

    Args:
        trial: from `run_trial`.
        share: c in (0, 1], where trials of an optimizer are known to show rates that are too high.

    Returns:
        `Suggestion`; its rates are `None` where the path found no scale, or no short run lowered the loss.
    """
    runs = [run for run in trial.runs if run.final < trial.start]
    if not runs or not trial.path.rates:
        return _nothing(trial)
    best = best_rate(trial.runs)
    lowest = min(run.final for run in runs)
    bearable = bearable_rate(trial.runs, lowest + _COSTS_LITTLE * (trial.start - lowest))
    lr_path = trial.path.rates[-1]
    lr = share * _LONGER * min(math.sqrt(lr_path * bearable), _MOST * best)
    steps, is_bound = warmup_length(trial.path.rates, lr)
    return Suggestion(
        lr=lr,
        lr_largest=share * _LARGEST * min(bearable, _MOST * best),
        lr_failed=min((r.lr for r in trial.runs if r.lr > best and not r.final < trial.start), default=None),
        lr_short=best,
        lr_bearable=bearable,
        lr_path=lr_path,
        pattern=_pattern(trial.path, lr),
        needs_warmup=_needs_warmup(trial.path.rates, lr, steps, is_bound),
        warmup_steps=steps,
        warmup_is_bound=is_bound,
        reason=(
            f"EdgeWarmup came to {lr_path:.3g}; of short runs with a decay the best would be one to {best:.3g}, and "
            f"those up to {bearable:.3g} end little higher"
        ),
    )


def warmup_length(rates: Sequence[float], lr: float) -> tuple[int, bool]:
    """Return the length of the linear warmup to `lr` that gives up as much as these rates, and whether it is a bound.

        T = 2 Σ (1 − η_t/η) over the updates t before the first with η_t ≥ η

    Linear warmup over T updates gives up T/2 updates at the full rate. Where no rate reaches `lr`, all count, and
    the length is a lower bound.

    >>> warmup_length([0.1, 0.2, 0.3, 0.4], 0.4)
    (3, False)
    >>> warmup_length([0.4], 0.2), warmup_length([0.1], 0.2)
    ((0, False), (1, True))
    """
    reached = next((i for i, rate in enumerate(rates) if rate >= lr), None)
    return round(2 * sum(1 - rate / lr for rate in rates[:reached])), reached is None


def _needs_warmup(rates: Sequence[float], lr: float, steps: int, is_bound: bool) -> bool | None:
    """Whether more than a few updates are given up; a short path far below `lr` cannot tell.

    >>> _needs_warmup([0.1] * 4, 1.0, 7, True), _needs_warmup([0.9] * 40, 1.0, 8, True)
    (None, False)
    """
    if steps > _NEGLIGIBLE:
        return True
    return None if is_bound and rates[-1] < lr / _AS_GOOD else False


def _nothing(trial: Trial) -> Suggestion:
    reason = "no short run lowered the loss"
    if trial.path.diverged:
        reason = "the loss was not finite although the rate was found by the first updates"
    elif trial.path.fallback is not None:
        reason = trial.path.fallback
    elif not trial.path.rates:
        reason = "the updates show no scale for the rate"
    return Suggestion(
        lr=None,
        lr_largest=None,
        lr_failed=None,
        lr_short=None,
        lr_bearable=None,
        lr_path=trial.path.rates[-1] if trial.path.rates else None,
        pattern="unknown",
        needs_warmup=None,
        warmup_steps=None,
        warmup_is_bound=False,
        reason=reason,
    )


def _pattern(path: Path, lr: float) -> str:
    reached = next((i for i, rate in enumerate(path.rates) if rate >= lr), None)
    if path.num_step_backs:
        return "was halved"
    if reached is None:
        return "not reached"
    return "at once" if reached <= _NEGLIGIBLE else "climbs"


def _by_rate(runs: Sequence[ShortRun]) -> list[ShortRun]:
    return sorted(runs, key=lambda run: run.lr)


def _best(tried: Sequence[ShortRun]) -> int:
    return min(range(len(tried)), key=lambda i: tried[i].final)
