"""The finished runs of a results folder: which there are, whether they are sound, and what is in them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.lab.configs import RunConfig, from_dict
from edgewise.lab.errors import DamagedError, StoreError
from edgewise.lab.results import run_folder
from edgewise.lab.results.files import Folder
from edgewise.lab.results.run_folder import RUNS, Columns, is_run_id

_RUN_OVERHEAD = 32_768  # bytes of a stored run, beside its numbers


def stored_bytes(config: RunConfig) -> int:
    """Return about what a stored run takes: losses, rates, measurements and how well each of these is known."""
    measurements = -(-config.num_steps // config.measure_every) * len(config.measure)
    return _RUN_OVERHEAD + 8 * (2 * config.num_steps + 4 * measurements)


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


class StoredRuns:
    """The runs below DIR/runs; each is checked once, and read once.

    Args:
        folder: the results folder.
        unchecked: ids of the runs that may lack checksums; if None, any may.
    """

    def __init__(self, folder: Folder, unchecked: frozenset[str] | None) -> None:
        self.folder = folder
        self.unchecked = unchecked
        self._sound: set[str] = set()
        self._loaded: dict[str, Run] = {}

    def ids(self) -> list[str]:
        """Return the ids of all runs that are there, damaged or not."""
        return [name for name in self.folder.names(RUNS) if is_run_id(name)]

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
                f"cannot write results to {self.folder.path}: {error}. Nothing was trained: make room or mend the "
                "permissions, or choose another folder with --out."
            ) from error
        needed = _RUN_OVERHEAD + 8 * steps  # the losses, which do not compress
        if free < needed:
            raise StoreError(
                f"{self.folder.path} has room for {free:,} bytes, and a run of {steps:,} steps takes some {needed:,}. "
                "Nothing was trained: make room, or choose another folder with --out."
            )

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
        return {run_id for run_id in self.ids() if self.fault(run_id) is None}

    def damaged(self) -> dict[str, str]:
        """Return run id → what is wrong, of the stored runs that cannot be used."""
        faults = {run_id: self.fault(run_id) for run_id in self.ids()}
        return {run_id: str(fault) for run_id, fault in faults.items() if fault is not None}

    def without_checksums(self) -> list[str]:
        """Return the ids of the runs that may lack checksums, and do."""
        candidates = self.ids() if self.unchecked is None else self.unchecked
        return [run_id for run_id in candidates if self._is_there(run_id) and self._is_unchecked(run_id)]

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

    def _is_there(self, run_id: str) -> bool:
        return is_run_id(run_id) and os.path.lexists(self.folder.path / RUNS / run_id)

    def _is_unchecked(self, run_id: str) -> bool:
        may = self.unchecked is None or run_id in self.unchecked
        return may and not run_folder.has_checksums(self.folder, run_id)

    def _check_is_there(self, run_id: str) -> None:
        if not self._is_there(run_id):
            raise StoreError(
                f"run {run_id} is missing from {self.folder.path}: run the same command again to finish it."
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
                f"run {run_id} in {self.folder.path} has a config that this edgewise does not know ({error}): "
                "read it with the version that wrote it."
            ) from error
