"""Saved states, read entry by entry and checked, before anything is written."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from torch import Tensor

from edgewise.critical import BestStepResult, CriticalLRResult
from edgewise.signals.signal import Signal
from edgewise.status import Status

FORMAT = 2  # of states; those before had none, and fewer entries
Result = TypeVar("Result", BestStepResult, CriticalLRResult)
AnySignal = TypeVar("AnySignal", bound=Signal)


class Saved:
    """A saved state whose entries are read with a check: a `ValueError` names what is wrong.

    Args:
        state: what was saved.
        owner: what it is the state of, for messages.
        parameters: of the optimizer, which saved tensors have to fit.
    """

    def __init__(self, state: object, owner: str, parameters: Sequence[Tensor] = ()) -> None:
        if not isinstance(state, Mapping):
            raise ValueError(f"{owner} must be a dict as state_dict() returns, got {type(state).__name__}.")
        self._state, self._owner, self._parameters = state, owner, parameters

    def __getitem__(self, name: str) -> Any:
        return self._state[name]

    def get(self, name: str) -> Any:
        """Return an entry as it is; `None` if it is missing."""
        return self._state.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._state

    def check_keys(
        self, known: Iterable[str], *, optional: Iterable[str] = (), but_private: bool = False
    ) -> None:
        """Raise unless the entries are the known ones; the optional ones may be missing in a state without format.

        `but_private` entries, with a leading underscore, are torch's own concern.
        """
        if self.get("format") not in (None, FORMAT):
            raise ValueError(f"{self._owner} has format {self['format']!r}, this edgewise reads {FORMAT}.")
        wanted, given = (
            {n for n in map(str, names) if not (but_private and n[0] == "_")}
            for names in (known, self._state)
        )
        missing = wanted - given - set(() if "format" in self._state else optional)
        foreign = given - wanted
        if missing or foreign:
            lacks = [f"lacks {', '.join(sorted(missing))}"] if missing else []
            has = [f"has unknown entries {', '.join(sorted(foreign))}"] if foreign else []
            raise ValueError(f"{self._owner} {' and '.join(lacks + has)}: it is not one of this class.")

    def number(self, name: str, *, positive: bool = False, finite: bool = True) -> float:
        """Return a number."""
        value = self[name]
        if not _is_number(value) or (finite and not math.isfinite(value)) or (positive and not value > 0):
            kind = "a positive" if positive else "a finite" if finite else "a"
            raise self._wrong(name, f"{kind} number")
        return float(value)

    def count(self, name: str, *, least: int = 0) -> int:
        """Return a whole number."""
        value = self[name]
        if not _is_whole(value) or value < least:
            raise self._wrong(name, f"a whole number, {least} or greater")
        return int(value)

    def count_or_none(self, name: str) -> int | None:
        """Return a whole number or `None`."""
        return None if self[name] is None else self.count(name)

    def flag(self, name: str) -> bool:
        """Return True or False."""
        if not isinstance(self[name], bool):
            raise self._wrong(name, "True or False")
        return self[name]

    def text_or_none(self, name: str) -> str | None:
        """Return words or `None`."""
        if not isinstance(self[name], str | None):
            raise self._wrong(name, "a str or None")
        return self[name]

    def numbers(self, name: str, num: int) -> list[float]:
        """Return a list of as many positive numbers."""
        values = self[name]
        if (
            not _is_sequence(values)
            or len(values) != num
            or not all(_is_number(v) and 0 < v < math.inf for v in values)
        ):
            raise self._wrong(name, f"{num} positive numbers, one a parameter group")
        return [float(value) for value in values]

    def check_rates(self, name: str, num: int) -> None:
        """Raise unless this is a list of as many rates, numbers or tensors."""
        rates = self[name]
        entries = rates if _is_sequence(rates) else [None]
        values: list[Any] = [r.item() if isinstance(r, Tensor) and r.numel() == 1 else r for r in entries]
        if len(values) != num or not all(_is_number(v) and math.isfinite(v) for v in values):
            raise self._wrong(name, f"{num} rates, one a parameter group")

    def indices(self, name: str) -> list[int]:
        """Return a list of the numbers of parameters, from 0."""
        values = self[name]
        if not _is_sequence(values) or not all(
            _is_whole(v) and 0 <= v < len(self._parameters) for v in values
        ):
            raise self._wrong(name, f"a list of whole numbers from 0 to {len(self._parameters) - 1}")
        return [int(value) for value in values]

    def step(self, name: str) -> tuple[int, float]:
        """Return an update and the factor it has."""
        step = _as_step(self[name])
        if step is None:
            raise self._wrong(name, "an update and its factor")
        return step

    def steps(self, name: str) -> list[tuple[int, float]]:
        """Return a table of updates, ascending from 0, and their factors."""
        table = self[name]
        entries = [_as_step(entry) for entry in table] if _is_sequence(table) else []
        steps = [step for step in entries if step is not None and 0 < step[1] <= 1]
        updates = [update for update, _ in steps]
        if len(steps) < len(entries) or updates[:1] != [0] or updates != sorted(set(updates)):
            raise self._wrong(name, "pairs of an update, ascending from 0, and a factor in (0, 1]")
        return steps

    def result(self, name: str, kind: type[Result]) -> Result | None:
        """Return what `as_plain` was given."""
        saved = self[name]
        if saved is None:
            return None
        known = {field.name for field in fields(kind)}
        if not isinstance(saved, Mapping) or set(saved) != known or saved["status"] not in Status.__members__:
            raise self._wrong(name, f"None or the entries of a {kind.__name__}")
        if not all(_is_measured(value) for key, value in saved.items() if key != "status"):
            raise self._wrong(name, "numbers")
        return kind(**dict(saved) | {"status": Status[saved["status"]]})

    def signal(self, name: str, fresh: AnySignal) -> AnySignal:
        """Return a signal with its saved state, whose entries are of the kinds that those of a fresh one are."""
        inner = Saved(self[name], f"{name} in {self._owner}", self._parameters)
        own = fresh.state_dict()
        inner.check_keys(own)
        fresh.load_state_dict({key: inner._like(key, value) for key, value in own.items()})
        return fresh

    def tensors(self, name: str, *, whole: bool) -> list[Tensor]:
        """Return copies of one tensor a parameter, or of none, on their devices; `whole` ones have their shapes."""
        saved, parameters = self[name], self._parameters
        if not _is_sequence(saved) or not all(isinstance(tensor, Tensor) for tensor in saved):
            raise self._wrong(name, "a list of tensors")
        pairs = list(zip(saved, parameters, strict=False))
        if saved and (len(saved) != len(parameters) or (whole and any(a.shape != b.shape for a, b in pairs))):
            raise ValueError(
                f"{name} in {self._owner} is of {len(saved)} other parameters than the optimizer's "
                f"{len(parameters)}: give it the same parameters, in the same groups, to resume."
            )
        return [tensor.clone().to(parameter.device) for tensor, parameter in pairs]

    def _like(self, name: str, own: Any) -> Any:
        if isinstance(own, list):
            return self.tensors(name, whole=False)
        if not _is_alike(self[name], own):
            raise self._wrong(name, f"like {own!r}")
        return self[name]

    def _wrong(self, name: str, allowed: str) -> ValueError:
        return ValueError(f"{name} in {self._owner} must be {allowed}, got {self[name]!r:.200}.")


def as_plain(found: BestStepResult | CriticalLRResult | None) -> dict[str, Any] | None:
    """Return a result as plain numbers and strings."""
    return None if found is None else asdict(found) | {"status": found.status.name}


def _as_step(entry: Any) -> tuple[int, float] | None:
    if not (_is_sequence(entry) and len(entry) == 2 and _is_whole(entry[0]) and _is_number(entry[1])):
        return None
    return int(entry[0]), float(entry[1])


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
    return isinstance(value, list | tuple)


def _is_measured(value: object) -> bool:
    """Whether this is what a result holds: a number, a pair of them, or nothing."""
    return (
        value is None or _is_number(value) or (_is_sequence(value) and all(map(_is_number, value)))  # type: ignore[call-overload]
    )


def _is_alike(value: object, own: object) -> bool:
    """Whether a value is of the kind of another: a flag, a whole number, a number, or one that is not known yet."""
    if isinstance(own, bool):
        return isinstance(value, bool)
    if isinstance(own, int):
        return _is_whole(value)
    return _is_number(value) or (own is None and value is None)
