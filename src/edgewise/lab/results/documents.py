"""What a results folder says of its figures, in JSON: sealed by a checksum, and taken for data whoever wrote it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from edgewise.lab.errors import DamagedError, StoreError
from edgewise.lab.results.store import Store

SCHEMA = 1


def write(store: Store, name: str, content: Any) -> None:
    """Write plain values into a file of the folder; a file that says the same already is left alone.

    Raises:
        StoreError: it cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, "sha256": _seal(content), "content": content}, separators=(",", ":"))
    _write(store, name, text.encode())


def copy(store: Store, name: str, file: Path) -> None:
    """Copy a file into the folder.

    Raises:
        StoreError: it cannot be written.
    """
    _write(store, name, file.read_bytes())


def read(store: Store, name: str) -> Any:
    """Return what was written, or None if nothing was.

    Raises:
        DamagedError: the file is not as it was written.
        StoreError: it is of another version, a symlink, or may not be read.
    """
    try:
        document = json.loads(store.folder.read(name))
        schema, content = document["schema"], document["content"]
        whole = document["sha256"] == _seal(content)
    except DamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise damaged(store, name) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(store, name) from error
    if schema != SCHEMA:
        raise StoreError(
            f"{store.path / name} has schema {schema!r}, this edgewise reads schema {SCHEMA}: run the same command "
            "again, which writes it anew."
        )
    if not whole:
        raise damaged(store, name)
    return content


def damaged(store: Store, name: str) -> DamagedError:
    """Return the error that says that a file does not hold what was written."""
    return DamagedError(f"{store.path / name} is damaged: run the same command again, which writes it anew.")


def one_line(text: str) -> str:
    r"""Return a text from a file on one line, without what a terminal would obey or no encoding has.

    >>> one_line("a\n\x1b[2Jb")
    'a �[2Jb'
    """
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def _write(store: Store, name: str, content: bytes) -> None:
    path = store.path / name
    if path.is_symlink() or not path.is_file() or path.read_bytes() != content:
        store.write_file(name, content)


def _seal(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
