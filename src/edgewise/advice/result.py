"""What an inspection returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgewise.advice.findings import QUESTIONS, Finding, plain

FORMAT = 1  # of `as_dict`


@dataclass(frozen=True, kw_only=True)
class InspectionResult:
    """What rate a model bears, whether it needs warmup, and what is odd; rates are those of the first parameter group.

    Printed, a result reads "suggested rate 0.004, trains up to about 0.02; warmup over 40 updates (198 updates, 21 s)".
    """

    lr: float  # as it was given
    lr_suggested: float  # to train with, after the warmup; NaN where the trial tells none
    lr_largest: float  # that trains, as an order of magnitude; NaN where the trial does not tell
    warmup_steps: (
        int | None
    )  # of a linear warmup that does what the trial did; 0: none is needed; None: not known
    findings: tuple[Finding, ...] = field(repr=False)  # a line for each number, in the order of the questions
    trial: Mapping[str, Any] = field(repr=False)  # its path: "lr" and "loss" of each update, and how it ended
    subject: Mapping[str, Any] = field(repr=False)  # what was inspected, in words
    num_updates: int  # of the trial
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the suggested rate may be used as it stands."""
        return math.isfinite(self.lr_suggested)

    def __str__(self) -> str:
        """Return the rates, the warmup and the cost, in one line."""
        cost = f"{self.num_updates} updates, {self.seconds:.0f} s"
        if not self.ok:
            return f"no rate to suggest ({cost})"
        largest = f", trains up to about {self.lr_largest:.2g}" if math.isfinite(self.lr_largest) else ""
        if self.warmup_steps is None:
            warmup = ""
        else:
            is_bound = any(line.evidence.get("is_bound") for line in self.findings)
            length = f"{'at least ' if is_bound else ''}{self.warmup_steps} updates"
            warmup = f"; warmup over {length}" if self.warmup_steps else "; no warmup needed"
        return f"suggested rate {self.lr_suggested:.2g}{largest}{warmup} ({cost})"

    def summary(self) -> str:
        """Return all of it in words: each question, and a line for each number."""
        lines = [str(self)]
        for key, question in QUESTIONS.items():
            lines += ["", question, *(f"  {line}" for line in self.findings if line.question == key)]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it; numbers that are not finite are `None`.

        Examples:
            >>> result = InspectionResult(lr=0.1, lr_suggested=float("nan"), lr_largest=float("nan"), warmup_steps=None,
            ...     findings=(), trial={}, subject={"model": "Linear"}, num_updates=150, seconds=2.0)
            >>> result.as_dict()["lr_suggested"], result.ok, str(result)
            (None, False, 'no rate to suggest (150 updates, 2 s)')
        """
        return {
            "format": FORMAT,
            "ok": self.ok,
            "text": str(self),
            "lr": self.lr,
            "lr_suggested": plain(self.lr_suggested),
            "lr_largest": plain(self.lr_largest),
            "warmup_steps": self.warmup_steps,
            "num_updates": self.num_updates,
            "seconds": self.seconds,
            "subject": plain(self.subject),
            "questions": dict(QUESTIONS),
            "findings": [line.as_dict() for line in self.findings],
            "trial": plain(self.trial),
        }
