"""Files below one folder: no symlink is followed, no name leads out, and what is written is whole and on the disk.

A results folder may come from anybody. The folder itself may be a symlink, that was the user's choice; anything below
it that is one is refused, for reading as for writing, moving and removing.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgewise.lab.errors import DamagedError, StoreError

_SEAL = "sha256"  # the key under which a sealed JSON file has its own checksum
_PROBE = 4096  # bytes
_BROKEN = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
}  # what reading says of a file that is not whole


class Folder:
    """A folder; what is in it is named part by part: `read("runs", "c0ffee", "rows.parquet")`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def inside(self, *names: str) -> Path:
        """Return the path of what is called so.

        Raises:
            StoreError: a name is none, or something on the way is a symlink.
        """
        path = self.path
        for name in names:
            if not is_plain(name):
                raise StoreError(f"{name!r} is no name of a file in {self.path}: it would lead out of it.")
            path = path / name
            if _is_symlink(path):
                raise StoreError(
                    f"{path} is a symlink, and results are read and written inside their folder alone: put what it "
                    "points to in its place, or remove it."
                )
        return path

    def names(self, *names: str) -> list[str]:
        """Return what is in a folder, sorted; nothing where there is no folder.

        Raises:
            StoreError: a symlink, or it may not be read.
        """
        path = self.inside(*names)
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}.") from error

    def read(self, *names: str) -> bytes:
        """Return what is in a file.

        Raises:
            DamagedError: it is missing, no regular file, or the disk cannot read it.
            StoreError: a symlink, or it may not be read.
        """
        path = self.inside(*names)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for
                raise DamagedError(f"{path} is no regular file.")
            return path.read_bytes()
        except FileNotFoundError as error:
            raise DamagedError(f"{path} is missing.") from error
        except OSError as error:
            kind = DamagedError if error.errno in _BROKEN else StoreError
            raise kind(f"cannot read {path}: {error.strerror or error}.") from error

    def write(self, contents: str | bytes, *names: str, lasting: bool = True) -> None:
        """Write a file, which is never seen half-written.

        Args:
            contents: of the file; text is written as UTF-8.
            names: where; its folder is there.
            lasting: whether it is to be on the disk when this returns.

        Raises:
            OSError: it cannot be written; what was there before still is.
            StoreError: a symlink.
        """
        path = self.inside(*names)
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("xb") as file:  # a new one: nothing that is there is written through
                _write(file, contents)
                if lasting:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if lasting:
            _sync(path.parent)

    def write_folder(self, contents: Mapping[str, str | bytes], *names: str) -> None:
        """Write a folder of files, which appears whole and is on the disk when this returns.

        Raises:
            OSError: it cannot be written, or is there already.
            StoreError: a symlink.
        """
        path = self.inside(*names)
        self.make(*names[:-1])
        partial = path.with_name(f".partial-{path.name}-{uuid.uuid4().hex[:8]}")
        try:
            partial.mkdir()
            _write_all(partial, contents)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(path.parent)

    def make(self, *names: str) -> None:
        """Make a folder, if it is not there.

        Raises:
            OSError: it cannot be made.
            StoreError: a symlink.
        """
        path = self.inside(*names)
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            _sync(path.parent)

    def move_aside(self, *names: str, into: str) -> Path:
        """Move something to a new name in another folder of this one, and return where it is now.

        Raises:
            OSError: it cannot be moved.
            StoreError: a symlink.
        """
        path = self.inside(*names)
        self.make(into)
        target = self.inside(into, f"{path.name}-{uuid.uuid4().hex[:8]}")
        os.rename(path, target)
        _sync(target.parent)
        _sync(path.parent)
        return target

    def remove(self, *names: str) -> None:
        """Remove a file, or a folder with what is in it, if it can be.

        Raises:
            StoreError: a symlink; one inside the folder is removed, and what it points to stays.
        """
        path = self.inside(*names)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()

    def try_writing(self, *names: str) -> None:
        """See that a small file can be written in a folder.

        Raises:
            OSError: it cannot.
            StoreError: a symlink.
        """
        self.write(b"\0" * _PROBE, *names, ".probe")
        self.remove(*names, ".probe")

    def free_bytes(self) -> int:
        """Return how much more fits onto the disk."""
        return shutil.disk_usage(self.path).free


def is_plain(name: str) -> bool:
    """Whether this names something in a folder, and nothing outside of it."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def checksums(contents: Mapping[str, str | bytes], below: str) -> str:
    """Return the checksums of files in the form that `sha256sum --check` reads, with the folder they are in."""
    digests = {name: hashlib.sha256(_bytes(content)).hexdigest() for name, content in contents.items()}
    return "".join(f"{digest}  {below}/{name}\n" for name, digest in digests.items())


def sealed(content: Mapping[str, Any]) -> str:
    """Return JSON with its own checksum, so that no flipped bit goes unnoticed."""
    text = json.dumps(content, indent=1)
    return json.dumps({_SEAL: hashlib.sha256(text.encode()).hexdigest()} | dict(content), indent=1)


def unsealed(text: bytes) -> tuple[dict[str, Any], bool]:
    """Return what is in a JSON file, and whether it is sealed.

    Raises:
        ValueError: it holds no object, or not the one that was sealed.
    """
    content = json_object(text)
    if _SEAL not in content:
        return content, False
    del content[_SEAL]
    if sealed(content).encode() != text:
        raise ValueError("it changed since it was written")
    return content, True


def json_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        ValueError: it holds none.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content


def _is_symlink(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}.") from error


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _write(file: io.BufferedWriter, content: str | bytes) -> None:
    file.write(_bytes(content))
    file.flush()


def _write_all(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write new files and wait for all at once, which takes the disk as long as one."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("xb")) for name in contents]
        for file, content in zip(files, contents.values(), strict=True):
            _write(file, content)
        pool = stack.enter_context(ThreadPoolExecutor(len(files) + 1))
        waits = [pool.submit(os.fsync, file.fileno()) for file in files] + [pool.submit(_sync, folder)]
        for wait in waits:
            wait.result()


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)
