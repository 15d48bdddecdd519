"""Results on disk.

Oracle: what was saved; processes killed in the middle of a save. Cannot see: power failures, and what damage does;
test_damage.py sees the latter.
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewise.lab.errors import StoreError
from edgewise.lab.results import index as index_module
from edgewise.lab.results import run_folder
from edgewise.lab.results.files import checksums, sealed, unsealed
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from lab_cases import TINY, diverged, made, runs_of, save, tiny

TESTS = Path(__file__).parents[2]


def figures(*configs, figure="fig1", scale="demo"):
    return [FigureRuns(figure=figure, scale=scale, run_ids=tuple(config.run_id for config in configs))]


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "results", figures(TINY))


def entries(store):
    return sorted(p.name for p in (store.path / "runs").iterdir())


def test_a_run_comes_back_as_it_was(store):
    sharpness = [1.5, math.nan, 0.1 + 0.2, math.nan, math.inf, 1e-300]
    run = made(TINY, {"sharpness": sharpness}, test_loss=1 / 3, num_classes=10)
    save(store, run)
    again = Store.open(store.path).runs.load(TINY.run_id)
    assert again.config == TINY
    assert again.outcome == run.outcome
    assert again.columns.keys() == {"step", "lr", "train_loss", "sharpness"}
    for name, values in run.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)
        assert again.columns[name].dtype == np.float64


def test_what_was_not_measured_is_left_out_of_a_curve(store):
    save(store, made(TINY, {"sharpness": [1.5, math.nan, 2.5, math.nan, math.inf, math.nan]}))
    run = store.runs.load(TINY.run_id)
    steps, values = run.measured("sharpness")
    assert steps.tolist() == [0, 2, 4]
    assert values.tolist() == [1.5, 2.5, math.inf]
    steps, values = run.measured("never")
    assert len(steps) == len(values) == 0


def test_a_diverged_run_can_be_stored(store):
    save(store, diverged(made(TINY)))
    run = store.runs.load(TINY.run_id)
    assert run.outcome["diverged"]
    assert math.isnan(run.outcome["test_loss"])
    assert run.columns["train_loss"].tolist() == [1, 1e3, 1e6, 1e9, math.inf]
    assert run.outcome["num_steps"] == 4


def test_a_new_folder_holds_its_plan_and_where_it_was_made(tmp_path):
    path = tmp_path / "a" / "b"
    made_now = Store.create(path, figures(TINY))
    again = Store.open(path)
    assert again.figures == made_now.figures == tuple(figures(TINY))
    assert again.provenance == made_now.provenance
    assert {"edgewise", "torch", "numpy", "python", "cores", "started"} <= again.provenance.keys()
    assert not again.runs.has(TINY.run_id)


def test_an_existing_empty_folder_is_used(tmp_path):
    assert not Store.create(tmp_path, figures(TINY)).runs.has(TINY.run_id)


KILLED_AT_THE_START = """
import os, signal, sys
from pathlib import Path
from edgewise.lab.results import store
from lab_cases import TINY

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

match sys.argv[2]:
    case "before the index": store.index.write = die
    case "in the index": os.replace = die
store.Store.create(Path(sys.argv[1]), [store.FigureRuns(figure="fig1", scale="demo", run_ids=(TINY.run_id,))])
"""


@pytest.mark.parametrize(("moment", "left"), [("before the index", 0), ("in the index", 1)])
def test_a_folder_left_by_a_kill_before_the_index_is_used(tmp_path, moment, left):
    path = tmp_path / "results"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_START, path, moment],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [p.name.startswith(".sweep.json-") for p in path.iterdir()] == [True] * left
    again = Store.create(path, figures(TINY))
    save(again, made(TINY))
    assert Store.open(path).runs.load(TINY.run_id).config == TINY


def test_the_index_is_there_before_any_run(tmp_path):
    store = Store.create(tmp_path / "results", figures(TINY))
    assert [p.name for p in store.path.iterdir()] == ["sweep.json"]
    assert Store.create(store.path, figures(TINY)).figures == tuple(
        figures(TINY)
    )  # as after a kill right here
    save(store, made(TINY))
    assert sorted(p.name for p in store.path.iterdir()) == ["runs", "sweep.json"]


def test_runs_without_an_index_are_not_ours(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(StoreError, match="exists and holds no edgewise results"):
        Store.create(tmp_path, figures(TINY))
    assert [p.name for p in tmp_path.rglob("*")] == ["runs"]


def test_the_same_plan_continues_and_keeps_what_is_there(store):
    save(store, made(TINY))
    again = Store.create(store.path, figures(TINY))
    assert again.runs.has(TINY.run_id)
    assert again.provenance == store.provenance


@pytest.mark.parametrize(
    "wanted", [figures(tiny(seed=1)), figures(TINY, scale="embedded"), figures(TINY, figure="fig2")]
)
def test_other_results_are_not_mixed_in(store, wanted):
    with pytest.raises(
        StoreError, match=r"holds other results .fig1 at scale demo with 1 runs; wanted .*--out"
    ):
        Store.create(store.path, wanted)
    assert Store.open(store.path).figures == tuple(figures(TINY))


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        StoreError, match="exists and holds no edgewise results: choose another folder with --out"
    ):
        Store.create(tmp_path, figures(TINY))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="exists and holds no edgewise results"):
        Store.create(tmp_path / "file", figures(TINY))
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot write results to .*file/results"):
        Store.create(tmp_path / "file" / "results", figures(TINY))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write results to"):
        Store.create(tmp_path / "results", figures(TINY))


@pytest.mark.parametrize("where", ["", "missing", "file"])
def test_no_results_to_open(tmp_path, where):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"holds no results .no sweep\.json.: make some with edgewise demo"):
        Store.open(tmp_path / where)


def test_results_of_another_schema(store):
    index = store.path / "sweep.json"
    content, _ = unsealed(index.read_bytes())
    index.write_text(sealed(content | {"schema": 7}))
    for use in (lambda: Store.open(store.path), lambda: Store.create(store.path, figures(TINY))):
        with pytest.raises(
            StoreError, match="written with schema 7, this edgewise reads schema 1: use the version"
        ):
            use()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"schem": 1}'])
def test_a_foreign_sweep_json(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(StoreError, match=r"sweep\.json was not written by edgewise"):
        Store.open(tmp_path)


def test_a_missing_run_is_named(store):
    with pytest.raises(StoreError, match=f"run {TINY.run_id} is missing from .*run the same command again"):
        store.runs.load(TINY.run_id)
    with pytest.raises(StoreError, match="is missing"):
        runs_of(store, store.figures[0])


def test_the_runs_of_a_figure_come_in_its_order(tmp_path):
    configs = [tiny(seed=seed) for seed in (3, 1, 2)]
    store = Store.create(tmp_path, figures(*configs))
    for config in reversed(configs):
        save(store, made(config))
    assert [run.config.seed for run in runs_of(store, store.figures[0])] == [3, 1, 2]


def test_the_first_of_two_writers_wins(store):
    save(store, made(TINY, seconds=1.0))
    save(store, made(TINY, seconds=2.0))
    assert store.runs.load(TINY.run_id).outcome["seconds"] == 1.0
    assert entries(store) == [TINY.run_id]


def test_a_rename_that_fails_for_another_reason_is_an_error(store, monkeypatch):
    def full(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(
        StoreError, match=r"cannot write run .*: disk full\. Finished runs are kept: make room"
    ):
        save(store, made(TINY))
    assert not store.runs.has(TINY.run_id)
    assert entries(store) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from edgewise.lab.results import files, store
from lab_cases import TINY, made, save

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

results = store.Store.open(Path(sys.argv[1]))
match sys.argv[2]:
    case "before the first file":
        files._write = die
    case "in the outcome":
        files._write = lambda file, content, write=files._write: (
            die() if file.name.endswith("outcome.json") else write(file, content)
        )
    case "before the rename":
        Path.rename = die
save(results, made(TINY))
"""


@pytest.mark.parametrize("moment", ["before the first file", "in the outcome", "before the rename"])
def test_a_killed_save_leaves_no_run_and_is_cleared_and_done_again(store, moment):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, store.path, moment],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert [name.startswith(f".partial-{TINY.run_id}-") for name in entries(store)] == [True]
    opened = Store.open(store.path)
    assert not opened.runs.has(TINY.run_id)
    with pytest.raises(StoreError, match="is missing"):
        opened.runs.load(TINY.run_id)
    again = Store.create(store.path, figures(TINY))
    assert entries(again) == []
    save(again, made(TINY))
    assert entries(again) == [TINY.run_id]
    assert again.runs.load(TINY.run_id).outcome["test_loss"] == 0.2


def test_a_run_folder_appears_complete(store, monkeypatch):
    """At the moment of the rename all files are there, whole."""
    seen = {}
    real = Path.rename

    def rename(self, target):
        seen[target.name] = sorted(p.name for p in self.iterdir())
        assert json.loads((self / "outcome.json").read_text())
        assert run_folder.pq.read_table(self / "rows.parquet").num_rows == TINY.num_steps
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    save(store, made(TINY))
    assert seen == {TINY.run_id: ["SHA256SUMS", "config.json", "outcome.json", "rows.parquet"]}


def test_the_index_is_replaced_whole(store, monkeypatch):
    before = (store.path / "sweep.json").read_text()

    def fail(*args):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        index_module.write(store.folder, store._index)
    assert (store.path / "sweep.json").read_text() == before


FULL = """
import resource, sys
from pathlib import Path
from edgewise.lab.errors import StoreError
from edgewise.lab import sweep
from lab_cases import tiny

runs = [(tiny(seed=seed, num_steps=steps),) for seed, steps in enumerate((3, 1000))]
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # as if the disk were full after so many bytes
try:
    sweep.run({"fig1": runs}, "demo", Path(sys.argv[1]), workers=1)
except StoreError as error:
    print(error)
"""


def test_a_full_disk_is_a_clear_error_and_leaves_earlier_results_intact(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        check=True,
        capture_output=True,
        text=True,
    )
    short, long = (tiny(seed=seed, num_steps=steps) for seed, steps in enumerate((3, 1000)))
    assert f"cannot write run {long.run_id} to {tmp_path / 'out'}: " in ran.stdout
    assert "File too large" in ran.stdout
    store = Store.open(tmp_path / "out")
    assert store.runs.finished() == {short.run_id}
    assert len(store.runs.load(short.run_id).columns["train_loss"]) == 3
    assert entries(store) == [short.run_id]


def test_unknown_columns_and_outcomes_are_kept(store):
    save(store, made(TINY, {"temperature": 3.0}, mood="fine"))
    run = store.runs.load(TINY.run_id)
    assert run.measured("temperature")[1].tolist() == [3.0] * 6
    assert run.outcome["mood"] == "fine"


def test_a_config_of_another_version_says_so(store):
    save(store, made(TINY))
    folder = store.path / "runs" / TINY.run_id
    config = json.loads((folder / "config.json").read_text()) | {"sampler": "new"}
    (folder / "config.json").write_text(json.dumps(config))
    contents = {
        name: (folder / name).read_bytes() for name in ("config.json", "outcome.json", "rows.parquet")
    }
    (folder / "SHA256SUMS").write_text(checksums(contents, below=TINY.run_id))
    with pytest.raises(
        StoreError, match=r"has a config that this edgewise does not know .*sampler.*: read it with"
    ):
        store.runs.load(TINY.run_id)
