"""Files below one folder.

Oracle: the folder beside it, which must stay as it is; `sha256sum --check`. Cannot see: a power failure, only that the
disk is waited for; links that somebody makes in the middle of an operation.
"""

import errno
import os
import shutil
import subprocess

import pytest

from edgewise.lab.errors import DamagedError, StoreError
from edgewise.lab.results.files import Folder, checksums, json_object, sealed, unsealed

OPERATIONS = {
    "inside": lambda folder, *names: folder.inside(*names),
    "names": lambda folder, *names: folder.names(*names),
    "read": lambda folder, *names: folder.read(*names),
    "write": lambda folder, *names: folder.write("x", *names),
    "write_folder": lambda folder, *names: folder.write_folder({"file": "x"}, *names),
    "make": lambda folder, *names: folder.make(*names),
    "move_aside": lambda folder, *names: folder.move_aside(*names, into="aside"),
    "move_into": lambda folder, *names: folder.move_aside("whole", into=names[0]),
    "remove": lambda folder, *names: folder.remove(*names),
    "try_writing": lambda folder, *names: folder.try_writing(*names),
}


@pytest.fixture
def elsewhere(tmp_path):
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deeper" / "file").write_text("mine")
    (tmp_path / "elsewhere" / "file").write_text("mine")
    return tmp_path / "elsewhere"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "whole").write_text("whole")
    return Folder(tmp_path / "results")


def tree(path):
    return {p.relative_to(path): p.read_bytes() if p.is_file() else None for p in path.rglob("*")}


@pytest.mark.parametrize("target", ["elsewhere", "elsewhere/file", "nowhere", "results/whole"])
@pytest.mark.parametrize("deep", [False, True], ids=["the last", "on the way"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_symlink_is_followed(tmp_path, folder, elsewhere, operation, deep, target):
    (folder.path / "link").symlink_to(tmp_path / target)
    before = tree(elsewhere), tree(folder.path)
    with pytest.raises(StoreError, match=r"results/link is a symlink.* remove it"):
        OPERATIONS[operation](folder, *(("link", "file") if deep else ("link",)))
    assert (tree(elsewhere), tree(folder.path)) == before
    assert (folder.path / "link").is_symlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../elsewhere", "a/b", "/etc/passwd", "a\\b", "a\0b", "../elsewhere/file"]
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_name_leads_out(tmp_path, folder, elsewhere, operation, name):
    before = tree(tmp_path)
    with pytest.raises(StoreError, match="it would lead out of it"):
        OPERATIONS[operation](folder, name)
    assert tree(tmp_path) == before


def test_the_folder_itself_may_be_a_symlink(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder.path)
    linked = Folder(tmp_path / "link")
    linked.write("x", "file")
    assert linked.read("file") == folder.read("file") == b"x"
    assert linked.names() == ["file", "whole"]


def test_a_folder_is_removed_without_what_its_links_point_to(folder, elsewhere):
    folder.make("old")
    (folder.path / "old" / "link").symlink_to(elsewhere)
    before = tree(elsewhere)
    folder.remove("old")
    assert tree(elsewhere) == before
    assert folder.names() == ["whole"]


def test_what_is_missing_or_no_file_is_damaged_and_what_may_not_be_read_is_not(folder, monkeypatch):
    with pytest.raises(DamagedError, match=r"results/gone is missing\."):
        folder.read("gone")
    with pytest.raises(DamagedError, match="whole/file"):
        folder.read("whole", "file")
    folder.make("folder")
    with pytest.raises(DamagedError, match=r"results/folder is no regular file\."):
        folder.read("folder")
    os.mkfifo(folder.path / "pipe")
    with pytest.raises(DamagedError, match=r"results/pipe is no regular file\."):
        folder.read("pipe")
    for number, damaged in ((errno.EIO, True), (errno.EACCES, False), (errno.EMFILE, False)):

        def fail(self, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("pathlib.Path.read_bytes", fail)
        with pytest.raises(StoreError, match=f"cannot read .*whole: {os.strerror(number)}") as caught:
            folder.read("whole")
        assert isinstance(caught.value, DamagedError) == damaged


def record_syncs(monkeypatch):
    """What is waited for, in order: the names as they are at that moment."""
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks at descriptors through /proc")
def test_the_disk_is_waited_for_contents_first_and_names_after(folder, monkeypatch):
    synced = record_syncs(monkeypatch)
    folder.write("x", "file")
    assert [name.split("-")[0] for name in synced] == [".file", "results"]
    synced.clear()
    folder.write_folder({"a": "x", "b": b"y"}, "runs", "c0ffee")
    first, *together, last = [name.rsplit("-", 1)[0] for name in synced]
    assert (first, sorted(together), last) == ("results", [".partial-c0ffee", "a", "b"], "runs")
    synced.clear()
    folder.move_aside("file", into="aside")
    assert set(synced) == {"aside", "results"}
    synced.clear()
    folder.write("x", "progress", lasting=False)
    assert synced == []


@pytest.mark.parametrize("moment", range(5))
def test_a_full_disk_leaves_what_was_there_and_no_leftovers(folder, monkeypatch, moment):
    folder.write("before", "file")
    folder.write_folder({"a": "x"}, "runs", "before")
    before = tree(folder.path)
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if moment == 0:
        with pytest.raises(OSError, match="No space left"):
            folder.write("after", "file")
        assert tree(folder.path) == before
    calls.clear()
    with pytest.raises(OSError, match="No space left"):
        folder.write_folder({"a": "x", "b": "y", "c": "z"}, "runs", "after")
    if moment < 4:
        assert tree(folder.path) == before
    else:  # all but the last wait: it is there, and whole
        assert folder.names("runs", "after") == ["a", "b", "c"]


def test_a_file_system_that_cannot_sync_folders_is_no_error(folder, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    folder.path.joinpath("x").touch()
    monkeypatch.setattr(os, "fsync", fsync)
    folder.make("runs")
    with pytest.raises(OSError, match="Invalid"):  # a file that cannot be is one
        folder.write("x", "file")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_checksums_are_those_of_sha256sum(folder):
    contents = {"a": b"x" * 1000, "b": b""}
    folder.write_folder(contents | {"SHA256SUMS": checksums(contents, below="c0ffee")}, "runs", "c0ffee")
    command = ["sha256sum", "--check", "c0ffee/SHA256SUMS"]
    said = subprocess.run(command, cwd=folder.path / "runs", capture_output=True, text=True, check=True)
    assert said.stdout == "c0ffee/a: OK\nc0ffee/b: OK\n"


CONTENT = {"schema": 1, "names": ["é", "a\nb"], "nothing": None, "number": 0.1, "inner": {"x": 1}}


def test_every_flipped_bit_of_a_sealed_file_is_noticed():
    text = sealed(CONTENT).encode()
    assert unsealed(text) == (CONTENT, True)
    unnoticed = []
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            content, is_sealed = unsealed(bytes(flipped))
        except ValueError:
            continue
        if is_sealed or not content.keys() - CONTENT.keys():
            unnoticed.append(bit)
    assert unnoticed == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 200_000])
def test_what_is_no_object_is_an_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever the parser says
        json_object(text)


def test_a_cut_file_is_noticed():
    text = sealed(CONTENT).encode()
    for end in range(len(text)):
        with pytest.raises(ValueError):  # noqa: PT011
            unsealed(text[:end])
