"""Results on disk: one folder a sweep, one folder a run, written under a temporary name and then renamed.

    DIR/sweep.json               which figures, at which scale, made of which runs, and which of them need no training
    DIR/runs/<run id>/config.json, rows.parquet, outcome.json, SHA256SUMS
    DIR/failures/<run id>.txt    the traceback of a run that raised
    DIR/progress.json            how far the running ones were a moment ago
    DIR/damaged/                 what was found damaged when the sweep went on, out of the way
    DIR/.sweep.lock              held while a sweep is at work

A run folder exists only complete: a killed run leaves a `.partial-…` folder, which is ignored and cleared. A folder may
come from anybody: what is read is checked, and nothing outside of it is touched.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import DamagedError, StoreError
from edgewise.lab.configs import RunConfig, from_dict
from edgewise.lab.results import index, run_folder
from edgewise.lab.results.files import Folder
from edgewise.lab.results.index import FigureRuns, Index
from edgewise.lab.results.provenance import provenance
from edgewise.lab.results.run_folder import RUNS, Columns, is_run_id

__all__ = ["Absent", "FigureRuns", "Run", "Store"]

_FAILURES, _PROGRESS, _DAMAGED = "failures", "progress.json", "damaged"
_RUN_OVERHEAD = 32_768  # bytes of a stored run, beside its numbers


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run as stored."""

    config: RunConfig
    columns: Columns  # name → (steps,), NaN where not measured
    outcome: dict[str, Any]

    def measured(self, column: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the steps at which a column was measured, and its values."""
        values = self.columns.get(column, np.full(len(self.columns["step"]), np.nan))
        kept = ~np.isnan(values)
        return self.columns["step"][kept], values[kept]


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A run of a figure that is not there, or not known well enough to be shown."""

    run_id: str
    config: RunConfig
    failed: bool  # it raised when last tried, or cannot be read; otherwise it waits
    reason: str  # the last line of its traceback, or what it waits for


class Store:
    """A results folder."""

    def __init__(self, path: Path, contents: Index) -> None:
        self.path = path
        self.folder = Folder(path)
        self.holder = ""  # from `edgewise.lab.results.lock.locked`, while a sweep is at work here
        self._index = contents
        self._mended: list[str] = []
        self._sound: set[str] = set()
        self._loaded: dict[str, Run] = {}

    @classmethod
    def check(cls, path: Path, figures: Sequence[FigureRuns]) -> None:
        """See that the folder can be made, or continued, for these runs; nothing is written.

        Raises:
            StoreError: it holds something else.
        """
        index.to_continue(Folder(path), tuple(figures))

    @classmethod
    def create(cls, path: Path, figures: Sequence[FigureRuns], recipe_file: Path | None = None) -> "Store":
        """Make the folder, or continue in it if it was made for the same runs.

        What is damaged there is moved to DIR/damaged, so that it is trained again; `notices` tells of it.

        Args:
            path: the folder.
            figures: what it is to hold.
            recipe_file: where the figure's recipe is, if it is none of the paper's.

        Raises:
            StoreError: the folder holds something else or a symlink, or cannot be read or written to.
        """
        existing = index.to_continue(Folder(path), tuple(figures))
        contents = existing or Index(figures=tuple(figures), provenance=provenance())
        store = cls(path, replace(contents, recipe_file=recipe_file))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if existing is None:
                store._begin_index()
            store._clear_leftovers()
            store._mend()
            if contents.unchecked is None:
                store._change_index(unchecked=frozenset(store._without_checksums()))
        except OSError as error:
            raise StoreError(f"cannot write results to {path}: {error}.") from error
        return store

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open an existing folder.

        Raises:
            DamagedError: its index is damaged.
            StoreError: no results there, or results of another schema.
        """
        return cls(path, index.read(Folder(path)))

    @property
    def figures(self) -> tuple[FigureRuns, ...]:
        """Which runs each figure is made of."""
        return self._index.figures

    @property
    def provenance(self) -> dict[str, str]:
        """Where and with what the folder was made."""
        return self._index.provenance

    @property
    def beyond(self) -> frozenset[str]:
        """Ids of the runs beyond the failure boundary, which the figures do without."""
        return self._index.beyond

    @property
    def recipe_file(self) -> Path | None:
        """Where the figure's recipe is, if it is none of the paper's."""
        return self._index.recipe_file

    def has(self, run_id: str) -> bool:
        """Whether the run is finished, stored and undamaged."""
        return self._is_there(run_id) and self.fault(run_id) is None

    def save(self, config: RunConfig, rows: Sequence[dict[str, float]], outcome: dict[str, Any]) -> None:
        """Store a finished run; the first of several writers wins, their results being equal.

        Raises:
            StoreError: it cannot be written; what was stored before is intact.
        """
        run_folder.save(self.folder, config, rows, outcome)

    def check_room(self, steps: int) -> None:
        """See, before anything is trained, that a run of so many steps can be written.

        Raises:
            StoreError: the folder cannot be written to, or has no room for it.
        """
        try:
            self.folder.make(RUNS)
            for where in ((), (RUNS,)):
                self.folder.try_writing(*where)
            free = self.folder.free_bytes()
        except OSError as error:
            raise StoreError(
                f"cannot write results to {self.path}: {error}. Nothing was trained: make room or mend the "
                "permissions, or choose another folder with --out."
            ) from error
        needed = _RUN_OVERHEAD + 8 * steps  # the losses, which do not compress
        if free < needed:
            raise StoreError(
                f"{self.path} has room for {free:,} bytes, and a run of {steps:,} steps takes some {needed:,}. Nothing "
                "was trained: make room, or choose another folder with --out."
            )

    def fail(self, run_id: str, traceback: str) -> None:
        """Record that a run raised, if there is room for that."""
        with contextlib.suppress(OSError):
            self.folder.make(_FAILURES)
            self.folder.write(traceback, _FAILURES, f"{run_id}.txt")

    def failed(self) -> set[str]:
        """Return the ids of the runs that raised when last tried."""
        found = (name.removesuffix(".txt") for name in self.folder.names(_FAILURES) if name.endswith(".txt"))
        return {run_id for run_id in found if is_run_id(run_id)}

    def fault(self, run_id: str) -> StoreError | None:
        """Return what is wrong with a stored run, if anything; one that is sound is not read again."""
        if self._is_there(run_id) and run_id not in self._sound:
            try:
                run_folder.check(self.folder, run_id, checked=not self._is_unchecked(run_id))
            except StoreError as error:
                return error
            self._sound.add(run_id)
        return None

    def finished(self) -> set[str]:
        """Return the ids of all finished and undamaged runs."""
        return {run_id for run_id in self._stored() if self.fault(run_id) is None}

    def damaged(self) -> dict[str, str]:
        """Return run id → what is wrong, of the stored runs that cannot be used."""
        faults = {run_id: self.fault(run_id) for run_id in self._stored()}
        return {run_id: str(fault) for run_id, fault in faults.items() if fault is not None}

    def notices(self) -> list[str]:
        """Return what a user should know of the folder, a sentence each: damage, and what damage would not show."""
        found = [*self._mended]
        found += [
            f"{what} It is left out; the same sweep trains it again." for what in self.damaged().values()
        ]
        if without := len(self._without_checksums()):
            found.append(
                f"{self.path}: {without} of {len(self._stored())} runs were stored before runs had checksums; "
                "changed numbers in them would not be noticed."
            )
        return found

    def last_line(self, run_id: str) -> str:
        """Return the last line of what a run raised when last tried."""
        try:
            text = self.folder.read(_FAILURES, f"{run_id}.txt").decode(errors="replace")
        except StoreError:
            return "its traceback cannot be read"
        lines = [line for line in text.splitlines() if line.strip()]
        # A note names the run and its settings; it is the reader who knows them already.
        return next((line for line in reversed(lines) if not line.startswith("in run ")), "")

    def traceback_file(self, run_id: str) -> Path:
        """Return where the traceback of a run is that raised."""
        return self.path / _FAILURES / f"{run_id}.txt"

    def note_progress(self, steps: dict[str, int]) -> None:
        """Record how many steps the runs under way have behind them, if there is room for that."""
        with contextlib.suppress(OSError, StoreError):
            noted = json.dumps({"time": time.time(), "steps": steps})
            self.folder.write(noted, _PROGRESS, lasting=False)

    def progress(self) -> tuple[float, dict[str, int]]:
        """Return when progress was last recorded (seconds since 1970, −∞ if never), and what it was."""
        try:
            content = json.loads(self.folder.read(_PROGRESS))
            noted, steps = float(content["time"]), content["steps"].items()
        except (StoreError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            return -math.inf, {}
        if not math.isfinite(noted):
            return -math.inf, {}
        return noted, {run_id: n for run_id, n in steps if is_run_id(run_id) and isinstance(n, int)}

    def outcome(self, run_id: str) -> dict[str, Any]:
        """Return how a stored run ended.

        Raises:
            StoreError: it is not there, or damaged.
        """
        self._check_is_there(run_id)
        return run_folder.outcome(self.folder, run_id, checked=not self._is_unchecked(run_id))

    def load(self, run_id: str) -> Run:
        """Return a stored run.

        Raises:
            StoreError: it is not there, damaged, or of an edgewise that knows other settings.
        """
        if run_id not in self._loaded:  # claims, plots and page each look at every run
            self._loaded[run_id] = self._read(run_id)
        return self._loaded[run_id]

    def shown(self, figure: FigureRuns) -> list[str]:
        """Return the ids of a figure's runs, in the recipe's order, without those beyond the failure boundary."""
        return [run_id for run_id in figure.run_ids if run_id not in self.beyond]

    def leave_out(self, beyond: Collection[str]) -> None:
        """Record, if there is room, that these runs lie beyond the failure boundary: the figures do without them."""
        if set(beyond) != self.beyond:
            with contextlib.suppress(OSError):
                self._change_index(beyond=frozenset(beyond))

    def write_file(self, name: str, content: str | bytes) -> None:
        """Write a file of the folder, below it at most one folder deep; it is never seen half-written.

        Raises:
            StoreError: it cannot be written, or would be written elsewhere, through a symlink.
        """
        *folders, _ = names = name.split("/")
        try:
            if folders:
                self.folder.make(*folders)
            self.folder.write(content, *names)
        except OSError as error:
            raise StoreError(
                f"cannot write {self.path / name}: {error}. Finished runs are kept: make room or mend the permissions, "
                "and run the same command again."
            ) from error

    def _change_index(self, **changes: Any) -> None:
        self._index = replace(self._index, **changes)
        index.write(self.folder, self._index)

    def _is_there(self, run_id: str) -> bool:
        return is_run_id(run_id) and os.path.lexists(self.path / RUNS / run_id)

    def _stored(self) -> list[str]:
        """Return the ids of all runs that are there, damaged or not."""
        return [name for name in self.folder.names(RUNS) if is_run_id(name)]

    def _without_checksums(self) -> list[str]:
        """Return the ids of the runs that may lack checksums, and do."""
        candidates = self._stored() if self._index.unchecked is None else self._index.unchecked
        return [run_id for run_id in candidates if self._is_there(run_id) and self._is_unchecked(run_id)]

    def _is_unchecked(self, run_id: str) -> bool:
        may = self._index.unchecked is None or run_id in self._index.unchecked
        return may and not run_folder.has_checksums(self.folder, run_id)

    def _check_is_there(self, run_id: str) -> None:
        if not self._is_there(run_id):
            raise StoreError(
                f"run {run_id} is missing from {self.path}: run the same command again to finish it."
            )

    def _read(self, run_id: str) -> Run:
        self._check_is_there(run_id)
        try:
            checked = not self._is_unchecked(run_id)
            config, columns, outcome = run_folder.parsed(self.folder, run_id, checked=checked)
        except DamagedError as error:
            raise DamagedError(f"{error} Run the same command again to train it anew.") from error
        try:
            return Run(config=from_dict(config), columns=columns, outcome=outcome)
        except (TypeError, ValueError, KeyError) as error:
            raise StoreError(
                f"run {run_id} in {self.path} has a config that this edgewise does not know ({error}): read it with "
                "the version that wrote it."
            ) from error

    def _mend(self) -> None:
        """Move damaged runs out of the way, so that they are trained again."""
        for run_id in self._stored():
            fault = self.fault(run_id)
            if isinstance(fault, DamagedError):
                moved = self.folder.move_aside(RUNS, run_id, into=_DAMAGED)
                self._mended.append(f"{fault} It lies in {moved} now, and is trained again.")
            elif fault is not None:
                raise fault

    def _begin_index(self) -> None:
        """Move a damaged index out of the way, and say where the new one takes the place of another."""
        if os.path.lexists(self.path / index.NAME):
            moved = self.folder.move_aside(index.NAME, into=_DAMAGED)
            self._mended.append(
                f"{self.path / index.NAME} was damaged. It lies in {moved} now, and is written anew."
            )
        elif self._stored():
            self._mended.append(f"{self.path / index.NAME} was missing, and is written anew.")
        if self._mended:
            self.provenance["index"] = (
                "written anew, the first one was lost: runs may be older than the above"
            )

    def _clear_leftovers(self) -> None:
        """Remove what killed writers left, and the failures, which are to be tried again."""
        for name in self.folder.names():
            if name.startswith((f".{index.NAME}-", f".{_PROGRESS}-")):
                self.folder.remove(name)
        for name in self.folder.names(RUNS):
            if name.startswith(".partial-"):
                self.folder.remove(RUNS, name)
        for run_id in self.failed():
            self.folder.remove(_FAILURES, f"{run_id}.txt")
