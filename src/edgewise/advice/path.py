"""What the trial says: the rate to train with, the largest that trains, and whether that takes a warmup."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewise.advice.findings import Finding, Level, unmeasured
from edgewise.advice.rates import LARGEST_WITHIN, Suggestion, suggest
from edgewise.advice.subject import Subject
from edgewise.advice.trial import run_trial
from edgewise.advice.trials import Trial
from edgewise.errors import EdgewiseError
from edgewise.optimizers import GIAdam, GIAdamW

# docs/inspect-evidence.md has the tests that these are read off.
_NEAR = (
    2.0  # a rate within this factor of the suggested one is as good; in two of three tests the best one is
)
_SHARE_OF_GI_ADAM = (
    1 / 5
)  # of what its trials show, which was too high by that in each of its three tests, at least
_TESTED = 200  # updates of each trial that docs/inspect-evidence.md is about
_PATTERNS = {
    "at once": "Among its first updates, the trial bore the suggested rate.",
    "climbs": "The trial's first updates bore less than the suggested rate, to which it climbed.",
    "not reached": "The trial climbed, and had not reached the suggested rate when it ended.",
    "was halved": "The trial's rate rose until the loss did, and was halved.",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial, and what is read from it."""

    trial: Trial | None  # None: none could be made
    suggestion: Suggestion | None
    reason: str  # why not

    @property
    def lr(self) -> float:
        """The rate to train with, NaN where none is known."""
        return _number(None if self.suggestion is None else self.suggestion.lr)

    @property
    def lr_largest(self) -> float:
        """The largest rate that trains, NaN where none is known."""
        return _number(None if self.suggestion is None else self.suggestion.lr_largest)

    @property
    def warmup_steps(self) -> int | None:
        """The length of a linear warmup, 0 where none is needed; `None` where it is not known."""
        if self.suggestion is None or self.suggestion.needs_warmup is None:
            return None
        return self.suggestion.warmup_steps if self.suggestion.needs_warmup else 0

    @property
    def cost(self) -> float:
        """What the trial cost, in updates of three forwards."""
        return self.trial.cost if self.trial else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the path, the short runs, and how it ended."""
        trial = self.trial
        if trial is None:
            return {"path": None, "runs": [], "reason": self.reason}
        return {
            "ceiling": trial.ceiling,
            "start": trial.start,
            "path": {
                "lr": list(trial.path.rates),
                "loss": list(trial.path.losses),
                "diverged": trial.path.diverged,
            },
            "runs": [{"lr": run.lr, "loss": list(run.losses), "final": run.final} for run in trial.runs],
            "num_updates": trial.num_updates,
            "num_forwards": trial.num_forwards,
            "num_passes": trial.num_passes,
            "reason": self.reason,
        }


def outcome_of(subject: Subject, max_updates: int, on_update: Callable[[int, int], object]) -> Outcome:
    """Make a trial under isolation, and read it."""
    try:
        trial = run_trial(
            subject.model,
            subject.optimizer,
            subject.loss_fn,
            subject.batches,
            max_updates=max_updates,
            on_update=on_update,
        )
    except EdgewiseError as error:
        return Outcome(trial=None, suggestion=None, reason=str(error))
    suggestion = suggest(trial, share=_SHARE_OF_GI_ADAM if _is_gi_adam(subject) else 1.0)
    return Outcome(trial=trial, suggestion=suggestion, reason=suggestion.reason)


def path_findings(subject: Subject, outcome: Outcome) -> list[Finding]:
    """Return the lines on rates and warmup."""
    suggestion, trial = outcome.suggestion, outcome.trial
    if suggestion is None or trial is None or suggestion.lr is None:
        reason = f"The trial told nothing: {outcome.reason or 'no rate that was tried lowered the loss'}"
        return [
            unmeasured("rate", "suggested rate", reason),
            unmeasured("warmup", "length of a linear warmup", reason),
        ]
    return [
        _suggested(subject, suggestion, trial, suggestion.lr),
        _largest(subject, suggestion, trial),
        _warmup(suggestion, trial),
    ]


def _suggested(subject: Subject, suggestion: Suggestion, trial: Trial, lr: float) -> Finding:
    ratio = lr / subject.rate
    near = 1 / _NEAR <= ratio <= _NEAR
    passes = f" The batches ran out, and were read {trial.num_passes} times." if trial.num_passes > 1 else ""
    level: Level = "good" if near else "notice"
    sure = f"within a factor of {_NEAR:g} of the best in two of three of our tests{_of_length(trial)}"
    how = "with a decay" if suggestion.needs_warmup is False else "after a warmup and with a decay"
    advice = "Leave yours: it is as good." if near else f"Train with {lr:.2g}, {how}."
    if _is_gi_adam(subject):
        sure = "a fifth of what its trials show, for GI-Adam: that was 5 to 11 times too high in three of three tests"
    return Finding(
        question="rate",
        name="suggested rate",
        value=lr,
        shown=f"{lr:.2g}, {ratio:.3g} times yours; {sure}",
        meaning=f"By trials worth {trial.cost:.0f} updates: {suggestion.reason}.{passes}",
        advice=advice,
        level=level,
        evidence={
            "lr": lr,
            "lr_path": suggestion.lr_path,
            "lr_short": suggestion.lr_short,
            "lr_bearable": suggestion.lr_bearable,
            "runs": [[run.lr, run.final] for run in trial.runs],
            "start": trial.start,
            "cost": trial.cost,
            "num_passes": trial.num_passes,
        },
    )


def _largest(subject: Subject, suggestion: Suggestion, trial: Trial) -> Finding:
    name, largest, failed = "largest rate that trains", suggestion.lr_largest, suggestion.lr_failed
    if largest is None:
        return unmeasured("rate", name, "The trial told none")
    rate, highest = subject.rate, max(run.lr for run in trial.runs)
    seen = (
        f"no short run failed, up to {highest:.2g}"
        if failed is None
        else f"a short run to {failed:.2g} failed"
    )
    fails = rate > largest * LARGEST_WITHIN or (failed is not None and rate >= failed)
    level: Level = "bad" if fails else "notice" if rate > largest else "good"
    sure = f"within a factor of {LARGEST_WITHIN:g} in four of five of our tests{_of_length(trial)}"
    return Finding(
        question="rate",
        name=name,
        value=largest,
        shown=f"about {largest:.2g}, {sure}",
        meaning=f"{'Yours is above it: training' if rate > largest else 'Above it training'} may fail; {seen}.",
        advice="" if level == "good" else f"Lower the rate, to {suggestion.lr:.2g}.",
        level=level,
        evidence={
            "lr_largest": largest,
            "within": LARGEST_WITHIN,
            "lr_failed": failed,
            "highest_tried": highest,
        },
    )


def _warmup(suggestion: Suggestion, trial: Trial) -> Finding:
    name, steps = "length of a linear warmup", suggestion.warmup_steps
    if steps is None:
        return unmeasured("warmup", name, "The trial's path shows none")
    if suggestion.needs_warmup is None:
        number = len(trial.path.rates)
        reason = (
            f"The path ended far below the suggested rate, after {number} updates: max_updates is too small"
        )
        return unmeasured("warmup", name, reason, at_least=steps, num_updates=number)
    meaning = _PATTERNS.get(suggestion.pattern, "")
    length = f"{'at least ' if suggestion.warmup_is_bound else ''}{steps} update{'' if steps == 1 else 's'}"
    advice = "Begin at the suggested rate: it needs no warmup."
    if suggestion.needs_warmup:
        meaning = f"{meaning} A linear warmup of this length gives up as many updates.".strip()
        advice = (
            f"Warm up over {length}, linearly, in any trainer; or use ew.EdgeWarmup, which finds the length."
        )
    return Finding(
        question="warmup",
        name=name,
        value=steps,
        shown=length,
        meaning=meaning,
        advice=advice,
        level="notice" if suggestion.needs_warmup else "good",
        evidence={
            "warmup_steps": steps,
            "is_bound": suggestion.warmup_is_bound,
            "pattern": suggestion.pattern,
            "num_updates": len(trial.path.rates),
        },
    )


def _of_length(trial: Trial) -> str:
    """Return how long the trials were that were tested, where this one was shorter."""
    return f" of {_TESTED} updates" if trial.max_updates < _TESTED else ""


def _is_gi_adam(subject: Subject) -> bool:
    return isinstance(subject.optimizer, GIAdam | GIAdamW)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
