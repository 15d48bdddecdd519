"""One sweep at a time in a results folder. Reading it needs no lock."""

import contextlib
import json
import os
import platform
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from filelock import FileLock, Timeout

from edgewise.lab.errors import StoreError
from edgewise.lab.results.files import Folder

_LOCK, _HOLDER = (
    ".sweep.lock",
    ".sweep.holder",
)  # what is locked, and by whom; nothing is written into the first


@contextlib.contextmanager
def locked(folder: Folder) -> Iterator[str]:
    """Keep other sweeps out of the folder, which is made if need be, until left or until this process dies.

    Yields what the lock says of its holder, by which `holds` knows the folder again.

    Raises:
        StoreError: another sweep is at work there, or the folder cannot be written to.
    """
    lock = FileLock(folder.inside(_LOCK), timeout=0)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"another sweep is at work in {folder.path}, {_holder(folder)}: wait for it or stop it, or choose another "
            "folder with --out."
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write results to {folder.path}: {error}.") from error
    since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    holder = {"pid": os.getpid(), "host": platform.node(), "since": since, "sweep": uuid.uuid4().hex}
    try:
        yield _said(folder, json.dumps(holder))
    finally:
        with contextlib.suppress(StoreError):
            folder.remove(_HOLDER)
        lock.release()


def holds(folder: Folder, holder: str) -> bool:
    """Whether this is the folder that `locked` gave this holder for, and is still its."""
    try:
        return bool(holder) and folder.read(_HOLDER) == holder.encode()
    except StoreError:
        return False


def _said(folder: Folder, holder: str) -> str:
    try:
        folder.write(holder, _HOLDER, lasting=False)
    except OSError as error:
        raise StoreError(f"cannot write results to {folder.path}: {error}.") from error
    return holder


def _holder(folder: Folder) -> str:
    try:
        said = json.loads(folder.read(_HOLDER))
        return f"process {int(said['pid'])} on {str(said['host'])!r} since {str(said['since'])!r}"
    except (StoreError, ValueError, TypeError, KeyError, RecursionError):
        return "which does not say where it runs"
