"""A line of advice: its number with the evidence, what that means, and what to do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from edgewise.arguments import described

Level: TypeAlias = Literal["good", "notice", "bad", "unknown"]

# Each question that an inspection answers, in the order they are read.
QUESTIONS: dict[str, str] = {
    "rate": "How large a rate does it bear, and which would it end up at?",
    "warmup": "Does it need warmup, and how long?",
    "stability": "Is the rate stable at this point?",
    "gi_adam": "Would GI-Adam help?",
    "odd": "What is odd?",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number that was measured, in words.

    >>> line = Finding(question="odd", name="groups at rate 0", value=0, shown="0 of 2", meaning="All train.")
    >>> print(line)
    groups at rate 0: 0 of 2. All train.
    """

    question: str  # a key of QUESTIONS
    name: str  # what was measured
    value: float | None  # None: it could not be
    shown: str  # the number and its evidence
    meaning: str  # a sentence
    advice: str = ""  # a sentence; empty where there is nothing to do, or nothing was measured
    level: Level = "good"
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.level != "unknown"

    def __str__(self) -> str:
        """Return the number, what it means and what to do, in one line."""
        return " ".join(part for part in (f"{self.name}: {self.shown}.", self.meaning, self.advice) if part)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {
            "question": self.question,
            "name": self.name,
            "value": plain(self.value),
            "shown": self.shown,
            "meaning": self.meaning,
            "advice": self.advice,
            "level": self.level,
            "ok": self.ok,
            "evidence": plain(self.evidence),
        }


def unmeasured(question: str, name: str, reason: str, **evidence: Any) -> Finding:
    """Return the line of what could not be measured, which advises nothing."""
    return Finding(
        question=question,
        name=name,
        value=None,
        shown="not measured",
        meaning=reason if reason.endswith(".") else f"{reason}.",
        level="unknown",
        evidence=evidence,
    )


def plain(value: Any) -> Any:
    """Return numbers, texts, lists and dicts as JSON takes them; what is not finite is `None`.

    >>> plain({"bracket": (1, float("inf"))})
    {'bracket': [1, None]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    raise TypeError(f"evidence must be of numbers, texts, lists and dicts, got {described(value)}.")
