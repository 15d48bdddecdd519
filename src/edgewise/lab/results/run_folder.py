"""A run on disk: a folder of three files, and their checksums.

The checksums guard each other's lines and themselves: they must be, byte for byte, those of the three files in a folder
of this name. So no flipped bit in any of the four goes unnoticed, nor a run in another one's place.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgewise.lab.configs import RunConfig, to_dict
from edgewise.lab.errors import DamagedError, StoreError
from edgewise.lab.results.files import Folder, checksums, json_object

RUNS = "runs"
CHECKSUMS = "SHA256SUMS"
_FILES = ("config.json", "outcome.json", "rows.parquet")
Columns = dict[str, np.ndarray[Any, Any]]  # name → (steps,), NaN where not measured

_RUN_ID = re.compile(r"[0-9a-f]{12}")


def is_run_id(name: Any) -> bool:
    """Whether this is the id of a run, which names its folder."""
    return isinstance(name, str) and _RUN_ID.fullmatch(name) is not None


def save(
    folder: Folder, config: RunConfig, rows: Sequence[dict[str, float]], outcome: dict[str, Any]
) -> None:
    """Store a finished run below the results folder; the first of several writers wins, their results being equal.

    Raises:
        StoreError: it cannot be written; what was stored before is intact.
    """
    contents: dict[str, str | bytes] = {
        "config.json": json.dumps(to_dict(config), indent=1),
        "outcome.json": json.dumps(outcome, indent=1),
        "rows.parquet": _parquet(rows),
    }
    contents[CHECKSUMS] = checksums(contents, below=config.run_id)
    try:
        folder.write_folder(contents, RUNS, config.run_id)
    except OSError as error:
        if not _is_whole(folder, config.run_id):
            raise StoreError(
                f"cannot write run {config.run_id} to {folder.path}: {error}. Finished runs are kept: make room "
                "or mend the permissions, and run the same command again."
            ) from error


def has_checksums(folder: Folder, run_id: str) -> bool:
    """Whether there are any; the runs of earlier versions have none."""
    return os.path.lexists(folder.inside(RUNS, run_id, CHECKSUMS))


def check(folder: Folder, run_id: str, *, checked: bool) -> None:
    """See that a run is as it was stored.

    Args:
        folder: the results folder.
        run_id: which run, which is there.
        checked: whether it has checksums; without, all that can be seen is whether its files can be read.

    Raises:
        DamagedError: a file is missing or damaged; it is named.
        StoreError: a symlink, or a file that may not be read.
    """
    if checked:
        _contents(folder, run_id, checked)
    else:
        parsed(folder, run_id, checked=checked)


def parsed(folder: Folder, run_id: str, *, checked: bool) -> tuple[dict[str, Any], Columns, dict[str, Any]]:
    """Return a run's config, columns and outcome; arguments and errors are those of `check`."""
    contents = _contents(folder, run_id, checked)
    objects = [_object(folder, run_id, name, contents[name]) for name in ("config.json", "outcome.json")]
    try:
        table = pq.ParquetFile(io.BytesIO(contents["rows.parquet"])).read(use_threads=False)
        columns = {name: table[name].to_numpy().astype(float) for name in table.column_names}
    except (OSError, ValueError, TypeError) as error:  # of pyarrow, too
        raise DamagedError(f"{folder.path / RUNS / run_id}: rows.parquet is no table of numbers.") from error
    return objects[0], columns, objects[1]


def outcome(folder: Folder, run_id: str, *, checked: bool) -> dict[str, Any]:
    """Return how a run ended; arguments and errors are those of `check`."""
    name = "outcome.json"
    return _object(folder, run_id, name, _contents(folder, run_id, checked)[name])


def _contents(folder: Folder, run_id: str, checked: bool) -> dict[str, bytes]:
    """Return file name → what is in it, of the three files."""
    contents = {name: folder.read(RUNS, run_id, name) for name in _FILES}
    if not checked:
        return contents
    stored = folder.read(RUNS, run_id, CHECKSUMS)
    expected = checksums(contents, below=run_id).encode()
    if stored != expected:
        lines = stored.splitlines()
        wrong = [n for n, line in zip(_FILES, expected.splitlines(), strict=True) if line not in lines]
        named = " and ".join(wrong or [CHECKSUMS])
        raise DamagedError(f"{folder.path / RUNS / run_id}: {named} changed since it was stored.")
    return contents


def _object(folder: Folder, run_id: str, name: str, text: bytes) -> dict[str, Any]:
    try:
        return json_object(text)
    except ValueError as error:
        raise DamagedError(f"{folder.path / RUNS / run_id}: {name} is no JSON ({error}).") from error


def _is_whole(folder: Folder, run_id: str) -> bool:
    try:
        check(folder, run_id, checked=True)
    except StoreError:
        return False
    return True


def _parquet(rows: Sequence[dict[str, float]]) -> bytes:
    """Return the rows as a table, with nothing where a row has no such number."""
    names = {name: None for row in rows for name in row}
    table = {name: pa.array([row.get(name) for row in rows], pa.float64()) for name in names}
    file = io.BytesIO()
    pq.write_table(pa.table(table), file)
    return file.getvalue()
