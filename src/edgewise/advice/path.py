"""What the trial says: the rate to train with, the largest that trains, and whether that takes a warmup."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewise.advice.findings import Finding, Level, unmeasured
from edgewise.advice.rates import Suggestion, suggest
from edgewise.advice.subject import Subject
from edgewise.advice.trial import run_trial
from edgewise.advice.trials import Trial
from edgewise.errors import EdgewiseError

_NEAR = 2.0  # a rate within this factor of the suggested one is as good
_PATTERNS = {
    "at once": "The trial bore the suggested rate from its first updates on.",
    "climbs": "The trial's first updates bore less, and its rate climbed.",
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
        """The length of a linear warmup; `None` where it is not known."""
        return self.suggestion.warmup_steps if self.suggestion and self.suggestion.lr else None

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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="EdgeWarmup ")  # what it has to say is in the trial
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
    suggestion = suggest(trial)
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
    tried = ", ".join(
        f"{run.final:.3g} at {run.lr:.2g}" for run in sorted(trial.runs, key=lambda run: run.lr)
    )
    level: Level = "good" if near else "notice"
    passes = f" The batches ran out, and were read {trial.num_passes} times." if trial.num_passes > 1 else ""
    return Finding(
        question="rate",
        name="suggested rate",
        value=lr,
        shown=f"{lr:.2g}, {ratio:.2g} times yours; {trial.cost:.0f} updates",
        meaning=f"Short runs from here took a loss of {trial.start:.3g} to {tried}.{passes}",
        advice="Leave yours: it is as good."
        if near
        else f"Train with {lr:.2g}, after a warmup and with a decay.",
        level=level,
        evidence={
            "lr": lr,
            "lr_path": suggestion.lr_path,
            "runs": [[run.lr, run.final] for run in trial.runs],
            "start": trial.start,
            "cost": trial.cost,
            "num_passes": trial.num_passes,
            "reason": suggestion.reason,
        },
    )


def _largest(subject: Subject, suggestion: Suggestion, trial: Trial) -> Finding:
    name, highest = "largest rate that trains", max(run.lr for run in trial.runs)
    if suggestion.lr_largest is None:
        return unmeasured(
            "rate",
            name,
            f"Every rate that was tried trains, up to {highest:.2g}: the largest lies above",
            highest=highest,
        )
    largest, ratio = suggestion.lr_largest, suggestion.lr_largest / subject.rate
    above = ratio < 1
    where = "Yours is beyond it, where" if above else "Above it,"
    return Finding(
        question="rate",
        name=name,
        value=largest,
        shown=f"{largest:.2g}, {ratio:.2g} times yours",
        meaning=f"{where} training is expected to fail.",
        advice="Lower the rate." if above else "",
        level="bad" if above else "good",
        evidence={"lr_largest": largest, "runs": [[run.lr, run.final] for run in trial.runs]},
    )


def _warmup(suggestion: Suggestion, trial: Trial) -> Finding:
    name, steps = "length of a linear warmup", suggestion.warmup_steps
    if steps is None:
        return unmeasured("warmup", name, "The trial's path shows none")
    bound = suggestion.warmup_is_bound
    meaning = _PATTERNS.get(suggestion.pattern, "")
    if suggestion.needs_warmup:
        meaning = (
            f"{meaning} A linear warmup of this length gives up as many updates as the trial did.".strip()
        )
    evidence = {
        "warmup_steps": steps,
        "is_bound": bound,
        "pattern": suggestion.pattern,
        "num_updates": len(trial.path.rates),
    }
    needed = bool(suggestion.needs_warmup)
    length = f"{'at least ' if bound else ''}{steps} update{'' if steps == 1 else 's'}"
    advice = f"Warm up linearly over {length}, in any trainer; or use ew.EdgeWarmup, which finds the length as it goes."
    return Finding(
        question="warmup",
        name=name,
        value=steps,
        shown=length if needed else "0 updates",
        meaning=meaning,
        advice=advice if needed else "Begin at the suggested rate: no warmup is needed for it.",
        level="notice" if needed else "good",
        evidence=evidence,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
