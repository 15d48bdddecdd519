"""What a trial means: a rate to train with, the largest that trains, the warmup. Pure functions of its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgewise.advice.trials import Path, ShortRun, Trial

_WARMUP = 0.1  # share of a short run
_FACTOR = 4.0


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What to train with; rates are those of the first parameter group, the others keep their ratios."""

    lr: float | None
    """The highest rate of a run with linear warmup and a decay; `None` where the trial showed none."""
    lr_largest: float | None
    """Above which training is expected to fail; `None` where no rate that was tried failed."""
    lr_path: float | None
    """At which the path ended."""
    pattern: str
    """How the path got there: "at once", "climbs", "was halved", or "unknown"."""
    needs_warmup: bool | None
    """Whether the first updates bear less than `lr`."""
    warmup_steps: int | None
    """The length of linear warmup that gives up as much of the rate as the path did on its way to `lr`; 0: none."""
    warmup_is_bound: bool
    """Whether the path had not reached `lr` when it ended, so that the length is a lower bound."""
    reason: str
    """Why `lr`, in a sentence."""


def recipe(update: int, num_updates: int) -> float:
    """Return the factor on the rate: linear warmup over a tenth of the updates, linear decay to 0.

        f(t) = min((t + 1)/(n/10), (n − t)/(n − n/10), 1)

    >>> [round(recipe(update, 10), 2) for update in range(10)]
    [1.0, 1.0, 0.89, 0.78, 0.67, 0.56, 0.44, 0.33, 0.22, 0.11]
    """
    warmup = _WARMUP * num_updates
    return min((update + 1) / warmup, (num_updates - update) / (num_updates - warmup), 1.0)


def next_rate(path: Path, runs: Sequence[ShortRun], start: float) -> float | None:
    """Return the rate of the next short run, or `None` where no other is needed."""
    if not path.rates:
        return None
    return path.rates[-1] * _FACTOR ** (len(runs) - 1)


def suggest(trial: Trial) -> Suggestion:
    """Return what the trial means."""
    trained = [run for run in trial.runs if run.final < trial.start]
    lr_path = trial.path.rates[-1] if trial.path.rates else None
    if not trained or lr_path is None:
        return Suggestion(
            lr=None,
            lr_largest=None,
            lr_path=lr_path,
            pattern="unknown",
            needs_warmup=None,
            warmup_steps=None,
            warmup_is_bound=False,
            reason=trial.path.fallback or "no rate that was tried lowered the loss",
        )
    best = min(trained, key=lambda run: run.final)
    lr = math.sqrt(best.lr * lr_path)
    failed = [run.lr for run in trial.runs if run.lr > best.lr and not run.final < trial.start]
    below = max(run.lr for run in trained if not failed or run.lr < min(failed))
    steps, is_bound = warmup_length(trial.path.rates, lr)
    return Suggestion(
        lr=lr,
        lr_largest=math.sqrt(below * min(failed)) if failed else None,
        lr_path=lr_path,
        pattern=_pattern(trial.path, lr),
        needs_warmup=steps > 1,
        warmup_steps=steps,
        warmup_is_bound=is_bound,
        reason="",
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
    before = rates[:reached]
    return round(2 * sum(1 - rate / lr for rate in before)), reached is None


def _pattern(path: Path, lr: float) -> str:
    if path.num_step_backs or path.diverged:
        return "was halved"
    return "at once" if path.rates[0] >= lr else "climbs"
