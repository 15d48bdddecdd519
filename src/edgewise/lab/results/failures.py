"""What runs raised when last tried: a traceback each."""

import contextlib
from pathlib import Path

from edgewise.lab.errors import StoreError
from edgewise.lab.results.files import Folder
from edgewise.lab.results.run_folder import is_run_id

_FAILURES = "failures"


class Failures:
    """The tracebacks below DIR/failures."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def add(self, run_id: str, traceback: str) -> None:
        """Record that a run raised, if there is room for that."""
        with contextlib.suppress(OSError):
            self._folder.make(_FAILURES)
            self._folder.write(traceback, _FAILURES, f"{run_id}.txt")

    def ids(self) -> set[str]:
        """Return the ids of the runs that raised when last tried."""
        found = (name.removesuffix(".txt") for name in self._folder.names(_FAILURES) if name.endswith(".txt"))
        return {run_id for run_id in found if is_run_id(run_id)}

    def last_line(self, run_id: str) -> str:
        """Return the last line of what a run raised."""
        try:
            text = self._folder.read(_FAILURES, f"{run_id}.txt").decode(errors="replace")
        except StoreError:
            return "its traceback cannot be read"
        lines = [line for line in text.splitlines() if line.strip()]
        # A note names the run and its settings; it is the reader who knows them already.
        return next((line for line in reversed(lines) if not line.startswith("in run ")), "")

    def file(self, run_id: str) -> Path:
        """Return where the traceback of a run is that raised."""
        return self._folder.path / _FAILURES / f"{run_id}.txt"

    def clear(self) -> None:
        """Forget all of them: they are to be tried again."""
        for run_id in self.ids():
            self._folder.remove(_FAILURES, f"{run_id}.txt")
