"""What a folder needs before a sweep goes on in it: leftovers are removed, and what is damaged is moved aside."""

import os

from edgewise.lab.errors import DamagedError
from edgewise.lab.results import index, progress
from edgewise.lab.results.files import Folder
from edgewise.lab.results.run_folder import RUNS
from edgewise.lab.results.runs import StoredRuns

_DAMAGED = "damaged"


def remove_leftovers(folder: Folder) -> None:
    """Remove what killed writers left."""
    for name in folder.names():
        if name.startswith((f".{index.NAME}-", f".{progress.NAME}-")):
            folder.remove(name)
    for name in folder.names(RUNS):
        if name.startswith(".partial-"):
            folder.remove(RUNS, name)


def move_index(runs: StoredRuns) -> list[str]:
    """Move a damaged index out of the way, and return a sentence where the new one takes the place of another."""
    path = runs.folder.path / index.NAME
    if os.path.lexists(path):
        moved = runs.folder.move_aside(index.NAME, into=_DAMAGED)
        return [f"{path} was damaged. It lies in {moved} now, and is written anew."]
    return [f"{path} was missing, and is written anew."] if runs.ids() else []


def move_damaged_runs(runs: StoredRuns) -> list[str]:
    """Move damaged runs out of the way, so that they are trained again, and return a sentence for each.

    Raises:
        StoreError: a run cannot be read, which does not say that it is damaged.
    """
    mended = []
    for run_id in runs.ids():
        fault = runs.fault(run_id)
        if isinstance(fault, DamagedError):
            moved = runs.folder.move_aside(RUNS, run_id, into=_DAMAGED)
            mended.append(f"{fault} It lies in {moved} now, and is trained again.")
        elif fault is not None:
            raise fault
    return mended
