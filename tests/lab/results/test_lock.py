"""One sweep at a time in a results folder.

Oracle: other processes, one of them killed. Cannot see: two machines with one file system.
"""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.lab import sweep, terminal
from edgewise.lab.errors import StoreError
from edgewise.lab.results import lock
from edgewise.lab.results.files import Folder
from edgewise.lab.results.lock import holds, locked
from edgewise.lab.results.store import Store
from lab_cases import TINY, made, stored, tiny

TESTS = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}

HOLDING = """
import sys, time
from pathlib import Path
from edgewise.lab.results.files import Folder
from edgewise.lab.results.lock import locked

with locked(Folder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path / "out"], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def train(path, configs=(TINY,)):
    planned = {"fig1": [(config,) for config in configs]}
    return sweep.run(planned, "demo", path, engine="vectorized", workers=1)


def test_a_second_sweep_is_told_who_is_at_work_and_changes_nothing(tmp_path, other):
    out = tmp_path / "out"
    stored(out, {"fig1": [made(TINY), made(tiny(seed=1))]})
    (out / "runs" / ".partial-of-the-first").mkdir()
    (out / "failures").mkdir()
    (out / "failures" / f"{TINY.run_id}.txt").write_text("of the first")
    (out / "runs" / TINY.run_id / "rows.parquet").write_bytes(b"")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(StoreError) as caught:
        train(out, [TINY, tiny(seed=1)])
    message = str(caught.value)
    assert message.startswith(f"another sweep is at work in {out}, process {other.pid} on ")
    assert repr(platform.node()) in message
    assert " since '20" in message
    assert "wait for it or stop it" in message
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_killed_sweep_leaves_the_folder_free(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert train(tmp_path / "out").runs.has(TINY.run_id)


def test_a_sweep_that_ends_leaves_the_folder_free_also_when_it_raised(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(Folder(tmp_path / "out")):
        raise ZeroDivisionError
    assert train(tmp_path / "out").runs.has(TINY.run_id)
    assert train(tmp_path / "out").runs.has(TINY.run_id)
    assert not (tmp_path / "out" / ".sweep.holder").exists()


def test_reading_needs_no_lock(tmp_path, other):
    stored(tmp_path / "out", {"fig1": [made(TINY)]})
    store = Store.open(tmp_path / "out")
    assert store.runs.load(TINY.run_id).config == TINY
    assert store.notices() == []
    terminal.status(store, 0.0)


@pytest.mark.parametrize("said", [None, "", "{", "[]", '{"pid": "x"}', '{"pid": 1}', "[" * 100_000])
def test_a_holder_that_does_not_say_who_it_is_is_one_all_the_same(tmp_path, said):
    folder = Folder(tmp_path / "out")
    with locked(folder):
        (folder.path / ".sweep.holder").unlink()
        if said is not None:
            (folder.path / ".sweep.holder").write_text(said)
        with pytest.raises(
            StoreError, match=r"another sweep is at work in .*, which does not say where it runs"
        ):
            train(folder.path)


def test_a_folder_is_known_again_by_its_holder_alone(tmp_path):
    mine, other = Folder(tmp_path / "mine"), Folder(tmp_path / "other")
    with locked(mine) as holder, locked(other) as another:
        assert holds(mine, holder)
        assert not holds(other, holder)
        assert not holds(mine, another)
        assert not holds(mine, "")
        assert not holds(Folder(tmp_path / "nowhere"), holder)
        assert json.loads(holder)["pid"] == os.getpid()
    assert not holds(mine, holder)
    with locked(mine) as again:
        assert again != holder


def test_a_folder_that_cannot_be_locked_is_a_store_error(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(lock.FileLock, "acquire", fail)
    with pytest.raises(StoreError, match=r"cannot write results to .*out: .*Read-only file system"):
        train(tmp_path / "out")


def test_what_the_lock_s_file_shares_with_another_is_not_written(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".sweep.lock").hardlink_to(tmp_path / "mine")
    with locked(Folder(tmp_path / "out")):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


RACING = """
import sys
from pathlib import Path
from edgewise.lab.errors import StoreError
from edgewise.lab import sweep
from lab_cases import tiny

configs = [tiny(seed=seed, num_steps=400) for seed in range(4)]
print("ready", flush=True)
sys.stdin.readline()
try:
    sweep.run({"fig1": [(config,) for config in configs]}, "demo", Path(sys.argv[1]), workers=1)
except StoreError as error:
    print(error)
"""


def test_of_two_sweeps_started_at_once_one_trains_and_the_other_says_so(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, tmp_path / "out"],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert sorted(bool(out) for out, _ in printed) == [False, True]
    assert "another sweep is at work" in "".join(out for out, _ in printed)
    assert len(Store.open(tmp_path / "out").runs.finished()) == 4
