"""Results on disk: one folder a sweep, one folder a run, written under a temporary name and then renamed.

    DIR/sweep.json               which figures, at which scale, made of which runs, and which of them need no training
    DIR/runs/<run id>/config.json, rows.parquet, outcome.json
    DIR/failures/<run id>.txt    the traceback of a run that raised
    DIR/progress.json            how far the running ones were a moment ago

A run folder exists only complete: a killed run leaves a `.partial-…` folder, which is ignored and cleared.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgewise.errors import StoreError
from edgewise.lab.configs import RunConfig, from_dict, to_dict

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class FigureRuns:
    """Which runs a figure is made of."""

    figure: str  # recipe id
    scale: str
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run as stored."""

    config: RunConfig
    columns: dict[str, np.ndarray[Any, Any]]  # name → (steps,), NaN where not measured
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

    def __init__(
        self,
        path: Path,
        figures: tuple[FigureRuns, ...],
        provenance: dict[str, str],
        beyond: Collection[str] = (),
        recipe_file: Path | None = None,
    ) -> None:
        self.path = path
        self.figures = figures
        self.provenance = provenance
        self.beyond = frozenset(beyond)
        self.recipe_file = recipe_file
        self._loaded: dict[str, Run] = {}

    @classmethod
    def create(cls, path: Path, figures: Sequence[FigureRuns], recipe_file: Path | None = None) -> "Store":
        """Make the folder, or continue in it if it was made for the same runs.

        Args:
            path: the folder.
            figures: what it is to hold.
            recipe_file: where the figure's recipe is, if it is none of the paper's.

        Raises:
            StoreError: the folder holds something else, or cannot be written to.
        """
        figures = tuple(figures)
        if (path / "sweep.json").exists():
            existing = cls.open(path)
            if set(map(_content, existing.figures)) != set(map(_content, figures)):
                raise StoreError(
                    f"{path} holds other results ({_summary(existing.figures)}; wanted {_summary(figures)}): "
                    "choose another folder with --out, or delete this one."
                )
            existing._clear_leftovers()
            existing.recipe_file = recipe_file
            return existing
        if path.exists() and (not path.is_dir() or any(not p.name.startswith(".") for p in path.iterdir())):
            raise StoreError(
                f"{path} exists and holds no edgewise results: choose another folder with --out."
            )
        store = cls(path, figures, _provenance(), recipe_file=recipe_file)
        try:
            path.mkdir(parents=True, exist_ok=True)
            store._write_index()  # before anything else, so that a folder killed here is empty or ours
        except OSError as error:
            raise StoreError(f"cannot write results to {path}: {error}.") from error
        return store

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Open an existing folder.

        Raises:
            StoreError: no results there, or results of another schema.
        """
        try:
            content = json.loads((path / "sweep.json").read_text())
            schema = content["schema"]
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"{path} holds no results (no sweep.json): make some with edgewise demo or edgewise figure."
            ) from None
        except (ValueError, TypeError, KeyError):
            raise StoreError(
                f"{path / 'sweep.json'} was not written by edgewise: choose another folder."
            ) from None
        if schema != SCHEMA:
            raise StoreError(
                f"{path} was written with schema {schema}, this edgewise reads schema {SCHEMA}: "
                "use the version that wrote it, or run again into a new folder."
            )
        figures = tuple(FigureRuns(**f | {"run_ids": tuple(f["run_ids"])}) for f in content["figures"])
        recipe_file = content.get("recipe_file")
        return cls(
            path,
            figures,
            content["provenance"],
            content.get("beyond", ()),
            Path(recipe_file) if recipe_file else None,
        )

    def has(self, run_id: str) -> bool:
        """Whether the run is finished and stored."""
        return self._folder(run_id).exists()

    def save(self, config: RunConfig, rows: Sequence[dict[str, float]], outcome: dict[str, Any]) -> None:
        """Store a finished run; the first of several writers wins, their results being equal.

        Raises:
            StoreError: it cannot be written; what was stored before is intact.
        """
        partial = self.path / "runs" / f".partial-{config.run_id}-{uuid.uuid4().hex[:8]}"
        try:
            partial.mkdir(parents=True)
            _write(partial / "config.json", json.dumps(to_dict(config), indent=1))
            _write(partial / "outcome.json", json.dumps(outcome, indent=1))
            names = {name: None for row in rows for name in row}
            table = {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in names}
            pq.write_table(pa.table(table), partial / "rows.parquet")
            partial.rename(self._folder(config.run_id))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not self.has(config.run_id):
                raise StoreError(
                    f"cannot write run {config.run_id} to {self.path}: {error}. Finished runs are kept: make room "
                    "or mend the permissions, and run the same command again."
                ) from error

    def fail(self, run_id: str, traceback: str) -> None:
        """Record that a run raised, if there is room for that."""
        with contextlib.suppress(OSError):
            (self.path / "failures").mkdir(exist_ok=True)
            _write(self.path / "failures" / f"{run_id}.txt", traceback)

    def failed(self) -> set[str]:
        """Return the ids of the runs that raised when last tried."""
        return {file.stem for file in (self.path / "failures").glob("*.txt")}

    def finished(self) -> set[str]:
        """Return the ids of all finished runs."""
        return {folder.name for folder in (self.path / "runs").glob("[!.]*")}

    def last_line(self, run_id: str) -> str:
        """Return the last line of what a run raised when last tried."""
        try:
            text = self.traceback_file(run_id).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "its traceback cannot be read"
        lines = [line for line in text.splitlines() if line.strip()]
        # A note names the run and its settings; it is the reader who knows them already.
        return next((line for line in reversed(lines) if not line.startswith("in run ")), "")

    def traceback_file(self, run_id: str) -> Path:
        """Return where the traceback of a run is that raised."""
        return self.path / "failures" / f"{run_id}.txt"

    def write_file(self, name: str, content: str | bytes) -> None:
        """Write a file of the folder, below it at most one folder deep; it is never seen half-written.

        Raises:
            StoreError: it cannot be written, or would be written elsewhere, through a link.
        """
        path = self.path / name
        try:
            if path.parent.is_symlink() and path.parent != self.path:
                raise StoreError(f"{path.parent} is a link, and edgewise writes through none: remove it.")
            path.parent.mkdir(exist_ok=True)
            _write(path, content)
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error}. Finished runs are kept: make room or mend the permissions, and run "
                "the same command again."
            ) from error

    def note_progress(self, steps: dict[str, int]) -> None:
        """Record how many steps the runs under way have behind them, if there is room for that."""
        with contextlib.suppress(OSError):
            _write(self.path / "progress.json", json.dumps({"time": time.time(), "steps": steps}))

    def progress(self) -> tuple[float, dict[str, int]]:
        """Return when progress was last recorded (seconds since 1970, −∞ if never), and what it was."""
        try:
            content = json.loads((self.path / "progress.json").read_text())
        except FileNotFoundError:
            return -math.inf, {}
        return content["time"], content["steps"]

    def outcome(self, run_id: str) -> dict[str, Any]:
        """Return how a stored run ended."""
        outcome: dict[str, Any] = json.loads((self._folder(run_id) / "outcome.json").read_text())
        return outcome

    def load(self, run_id: str) -> Run:
        """Return a stored run.

        Raises:
            StoreError: it is not there, or of an edgewise that knows other settings.
        """
        if run_id not in self._loaded:  # claims, plots and page each look at every run
            self._loaded[run_id] = self._read(run_id)
        return self._loaded[run_id]

    def _read(self, run_id: str) -> Run:
        folder = self._folder(run_id)
        if not folder.exists():
            raise StoreError(
                f"run {run_id} is missing from {self.path}: run the same command again to finish it."
            )
        table = pq.ParquetFile(folder / "rows.parquet").read(use_threads=False)
        columns = {name: table[name].to_numpy().astype(float) for name in table.column_names}
        try:
            config = from_dict(json.loads((folder / "config.json").read_text()))
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"run {run_id} in {self.path} has a config that this edgewise does not know ({error}): read it with "
                "the version that wrote it."
            ) from error
        return Run(
            config=config,
            columns=columns,
            outcome=self.outcome(run_id),
        )

    def runs_of(self, figure: FigureRuns) -> list[Run]:
        """Return a figure's runs, in the recipe's order, without those beyond the failure boundary.

        Raises:
            StoreError: another one is missing.
        """
        return [self.load(run_id) for run_id in figure.run_ids if run_id not in self.beyond]

    def leave_out(self, beyond: Collection[str]) -> None:
        """Record, if there is room, that these runs lie beyond the failure boundary: the figures do without them."""
        if set(beyond) != self.beyond:
            self.beyond = frozenset(beyond)
            with contextlib.suppress(OSError):
                self._write_index()

    def _write_index(self) -> None:
        figures = [dataclasses.asdict(figure) for figure in self.figures]
        content = {
            "schema": SCHEMA,
            "figures": figures,
            "beyond": sorted(self.beyond),
            "recipe_file": str(self.recipe_file) if self.recipe_file else None,
            "provenance": self.provenance,
        }
        _write(self.path / "sweep.json", json.dumps(content, indent=1))

    def _folder(self, run_id: str) -> Path:
        return self.path / "runs" / run_id

    def _clear_leftovers(self) -> None:
        """Remove what killed writers left, and the failures, which are to be tried again."""
        for partial in (self.path / "runs").glob(".partial-*"):
            shutil.rmtree(partial, ignore_errors=True)
        for failure in (self.path / "failures").glob("*.txt"):
            failure.unlink(missing_ok=True)


def _write(path: Path, content: str | bytes) -> None:
    """Write a file that is never seen half-written."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    os.replace(temporary, path)


def _provenance() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in ("edgewise", "torch", "numpy")}
    return versions | {
        "source": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state() -> str:
    """Return the commit of the checkout that runs, and whether it was changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def _content(figure: FigureRuns) -> tuple[str, str, frozenset[str]]:
    return figure.figure, figure.scale, frozenset(figure.run_ids)


def _summary(figures: tuple[FigureRuns, ...]) -> str:
    return ", ".join(f"{f.figure} at scale {f.scale} with {len(f.run_ids)} runs" for f in figures)
