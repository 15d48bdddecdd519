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
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.lab.errors import StoreError
from edgewise.lab.results import index, mending
from edgewise.lab.results.failures import Failures
from edgewise.lab.results.files import Folder
from edgewise.lab.results.index import FigureRuns, Index
from edgewise.lab.results.provenance import provenance
from edgewise.lab.results.runs import StoredRuns


class Store:
    """A results folder: what it is to hold, its finished `runs`, and the `failures` of others."""

    def __init__(self, path: Path, contents: Index) -> None:
        self.path = path
        self.folder = Folder(path)
        self.runs = StoredRuns(self.folder, contents.unchecked)
        self.failures = Failures(self.folder)
        self.holder = ""  # from `edgewise.lab.results.lock.locked`, while a sweep is at work here
        self._index = contents
        self._mended: list[str] = []

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
                store._mended = mending.move_index(store.runs)
            if store._mended:
                lost = "written anew, the first one was lost: runs may be older than the above"
                store.provenance["index"] = lost
            mending.remove_leftovers(store.folder)
            store.failures.clear()
            store._mended += mending.move_damaged_runs(store.runs)
            if contents.unchecked is None:
                store._change_index(unchecked=frozenset(store.runs.without_checksums()))
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

    def shown(self, figure: FigureRuns) -> list[str]:
        """Return the ids of a figure's runs, in the recipe's order, without those beyond the failure boundary."""
        return [run_id for run_id in figure.run_ids if run_id not in self.beyond]

    def notices(self) -> list[str]:
        """Return what a user should know of the folder, a sentence each: damage, and what damage would not show."""
        found = [*self._mended]
        found += [
            f"{what} It is left out; the same sweep trains it again." for what in self.runs.damaged().values()
        ]
        if without := len(self.runs.without_checksums()):
            found.append(
                f"{self.path}: {without} of {len(self.runs.ids())} runs were stored before runs had checksums; "
                "changed numbers in them would not be noticed."
            )
        return found

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
        self.runs.unchecked = self._index.unchecked
