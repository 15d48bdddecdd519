"""Sweeps: what is missing is trained, once.

Oracle: an uninterrupted run in this process; files compared by time of change; a parent killed with SIGKILL.
Cannot see: machines other than this one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.arguments import UnknownNameError
from edgewise.lab import sweep
from edgewise.lab.errors import StoreError
from edgewise.lab.recipes import RECIPES, Claim
from edgewise.lab.report import presentation
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from lab_cases import TINY, made, runs_of, save, stored, tiny

TESTS = Path(__file__).parents[1]


def record_engine(monkeypatch, make=made):
    """Replace the engines by one that stores made-up runs and records what it was asked for."""
    calls = []

    def engine(work, store, workers, on_progress):
        trained, ready = [], work.start()
        while ready:
            config = ready.pop(0)
            save(store, make(config))
            trained.append(config)
            ready += work.after(config)
        calls.append((trained, workers))
        on_progress({config.run_id: config.num_steps for config in trained})

    monkeypatch.setattr(sweep, "engine_of", lambda name, slurm: engine)
    return calls


def test_a_plan_is_each_figure_s_runs():
    assert sweep.plan(["fig4", "fig1"], "demo") == {
        "fig4": RECIPES["fig4"].ladders("demo"),
        "fig1": [(config,) for config in RECIPES["fig1"].configs("demo")],
    }


@pytest.mark.parametrize(
    ("figures", "scale", "message"),
    [
        (["fig44"], "demo", "unknown figure 'fig44'; known: edge-warmup, fig1, fig10"),
        (["fig1"], "demos", "unknown scale 'demos'; known: demo, desk, embedded, paper. Did you mean 'demo'"),
    ],
)
def test_a_plan_knows_its_names(figures, scale, message):
    with pytest.raises(UnknownNameError, match=message):
        sweep.plan(figures, scale)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"engine": "lokal"},
            UnknownNameError,
            "unknown engine 'lokal'; known: local, ray, ",
        ),
        ({"workers": 0}, ValueError, "workers must be 1 or greater, got 0"),
        ({"workers": -1}, ValueError, "workers must be 1 or greater, got -1"),
        ({"workers": True}, TypeError, "workers must be a whole number, got True"),
        ({"workers": 2.0}, TypeError, r"workers must be a whole number, got 2\.0"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_written(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        sweep.run({"fig1": [(TINY,)]}, "demo", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_only_what_is_missing_is_trained_and_each_run_once(tmp_path, monkeypatch):
    calls = record_engine(monkeypatch)
    a, b, c = (tiny(seed=seed) for seed in range(3))
    planned = {"fig1": [(a,), (b,)], "fig2": [(b,), (c,)]}  # b is shared
    store = stored(tmp_path, {"fig1": [made(a), made(b)], "fig2": [made(b), made(c)]})
    for config in (b, c):
        folder = tmp_path / "runs" / config.run_id
        folder.rename(tmp_path / f"aside-{config.seed}")
    progress = []
    done = sweep.run(planned, "demo", tmp_path, workers=3, on_progress=progress.append)
    assert calls == [([b, c], 3)]
    assert progress[0].steps == {a.run_id: 6, b.run_id: 0, c.run_id: 0}
    assert progress[-1].steps == {a.run_id: 6, b.run_id: 6, c.run_id: 6}
    assert [state.finished for state in (progress[0], progress[-1])] == [
        {a.run_id},
        {a.run_id, b.run_id, c.run_id},
    ]
    assert done.figures == store.figures
    assert [run.config for run in runs_of(done, done.figures[1])] == [b, c]


def test_a_finished_sweep_is_left_as_it_is(tmp_path, monkeypatch):
    calls = record_engine(monkeypatch)
    stored(tmp_path, {"fig1": [made(TINY, seconds=123.0)]})

    def files():
        found = (p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".sweep.lock")
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in found}

    before = files()
    progress = []
    store = sweep.run({"fig1": [(TINY,)]}, "demo", tmp_path, on_progress=progress.append)
    assert calls == [([], os.cpu_count())]
    assert progress[0].steps == {TINY.run_id: TINY.num_steps}
    assert files() == before
    assert store.runs.load(TINY.run_id).outcome["seconds"] == 123.0


def test_all_cores_work_if_not_told_otherwise(tmp_path, monkeypatch):
    calls = record_engine(monkeypatch)
    sweep.run({"fig1": [(TINY,)]}, "demo", tmp_path)
    assert calls[0][1] == os.cpu_count()


def test_other_results_are_refused(tmp_path, monkeypatch):
    calls = record_engine(monkeypatch)
    stored(tmp_path, {"fig1": [made(TINY)]})
    with pytest.raises(StoreError, match="holds other results"):
        sweep.run({"fig1": [(tiny(seed=1),)]}, "demo", tmp_path)
    assert calls == []


# a short run and a long one: killed while that is under way
KILLED = """
import json, multiprocessing, sys
from pathlib import Path
from edgewise.lab import sweep
from edgewise.lab.report import presentation
from lab_cases import tiny

configs = tuple(tiny(seed=seed, num_steps=steps, batch_size=8) for seed, steps in enumerate((5, 6000)))

def show(state):
    workers = [process.pid for process in multiprocessing.active_children()]
    print(json.dumps([[state.steps[c.run_id] for c in configs], workers]), flush=True)

sweep.run({"fig1": [(config,) for config in configs]}, "demo", Path(sys.argv[1]), workers=2, on_progress=show)
"""


def alive(pid):
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_a_killed_sweep_leaves_no_orphans_and_is_resumed_bit_for_bit(tmp_path):
    out = tmp_path / "out"
    configs = [tiny(seed=seed, num_steps=steps, batch_size=8) for seed, steps in enumerate((5, 6000))]
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, out],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        for line in parent.stdout:
            steps, workers = json.loads(line)
            if steps[0] == 5 and steps[1] > 0:
                break
        parent.send_signal(signal.SIGKILL)
    assert parent.returncode == -signal.SIGKILL
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, f"workers {workers} live on without their parent"
        time.sleep(0.05)

    store = Store.open(out)
    assert [store.runs.has(config.run_id) for config in configs] == [True, False]
    kept = out / "runs" / configs[0].run_id / "outcome.json"
    before = kept.stat().st_mtime_ns
    store = sweep.run({"fig1": [(config,) for config in configs]}, "demo", out, workers=1)
    assert kept.stat().st_mtime_ns == before
    for config in configs:
        expected = train(config)
        columns = store.runs.load(config.run_id).columns
        for name in ("step", "lr", "train_loss"):
            assert columns[name].tolist() == [row[name] for row in expected.rows]
    assert {p.name for p in (out / "runs").iterdir()} == {config.run_id for config in configs}


def test_what_lies_beyond_the_failure_boundary_is_left_out_and_stays_out(tmp_path, monkeypatch):
    ladder = tuple(tiny(optimizer={"lr": lr}) for lr in (0.1, 0.2, 0.4, 0.8))
    end = lambda c: made(c, test_accuracy=0.1 if c.optimizer.lr >= 0.2 else 0.9)
    calls = record_engine(monkeypatch, end)
    progress = []
    for _ in range(2):
        store = sweep.run({"fig4": [ladder]}, "demo", tmp_path, on_progress=progress.append)
        assert store.beyond == {config.run_id for config in ladder[2:]}
        assert Store.open(tmp_path).beyond == store.beyond
        assert [run.config for run in runs_of(store, store.figures[0])] == [*ladder[:2]]
        assert progress[-1].steps == {config.run_id: config.num_steps for config in ladder}
        assert progress[-1].beyond == store.beyond
    assert [trained for trained, _ in calls] == [[*ladder[:2]], []]


def test_what_lies_beyond_is_recorded_also_where_another_run_raised(tmp_path, monkeypatch):
    ladder = tuple(tiny(optimizer={"lr": lr}) for lr in (0.1, 0.2, 0.4))

    def engine(work, store, workers, on_progress):
        for config in ladder[:2]:
            save(store, made(config, test_accuracy=0.1 if config.optimizer.lr == 0.2 else 0.9))
        work.start()
        raise ArithmeticError

    monkeypatch.setattr(sweep, "engine_of", lambda name, slurm: engine)
    with pytest.raises(ArithmeticError):
        sweep.run({"fig4": [ladder]}, "demo", tmp_path)
    assert Store.open(tmp_path).beyond == {ladder[2].run_id}


def test_how_figures_are_shown_is_stored_before_anything_is_trained(tmp_path, monkeypatch):
    def engine(work, store, workers, on_progress):
        (shown,) = presentation.read(Store.open(tmp_path))
        assert [run.config for run in shown.absent] == [TINY]
        assert shown.title == RECIPES["fig1"].title
        raise ArithmeticError

    monkeypatch.setattr(sweep, "engine_of", lambda name, slurm: engine)
    with pytest.raises(ArithmeticError):
        sweep.run({"fig1": [(TINY,)]}, "demo", tmp_path)
    (shown,) = presentation.read(Store.open(tmp_path))
    assert shown.note == "not judged: 1 of 1 runs missing."


def test_claims_are_judged_when_the_sweep_ends(tmp_path, monkeypatch):
    monkeypatch.setitem(
        RECIPES,
        "fig4",
        replace(
            RECIPES["fig4"],
            claims=lambda runs: [Claim(text="a", expected="1", measured=str(len(runs)), holds=True)],
        ),
    )
    record_engine(monkeypatch, lambda c: made(c, test_accuracy=0.1 if c.optimizer.lr >= 0.2 else 0.9))
    ladder = tuple(tiny(optimizer={"lr": lr}) for lr in (0.1, 0.2, 0.4, 0.8))
    sweep.run({"fig4": [ladder]}, "demo", tmp_path)
    (shown,) = presentation.read(Store.open(tmp_path))
    assert (shown.claims[0].measured, shown.note) == ("2", "")  # those beyond the boundary are not missing


def test_claims_that_are_not_to_be_judged_are_not_and_it_is_said(tmp_path, monkeypatch):
    record_engine(monkeypatch)
    sweep.run({"fig1": [(TINY,)]}, "demo", tmp_path, not_judged="they are too short")
    (shown,) = presentation.read(Store.open(tmp_path))
    assert (shown.claims, shown.note) == ((), "not judged: they are too short")
    assert len(shown.finished) == 1


def test_what_a_folder_has_of_a_plan_is_known_without_writing_into_it(tmp_path, monkeypatch):
    record_engine(monkeypatch)
    planned = {"fig1": [(TINY,), (tiny(seed=1),)]}
    assert sweep.finished(planned, "demo", tmp_path / "new") == set()
    assert not (tmp_path / "new").exists()
    store = sweep.run(planned, "demo", tmp_path / "out")
    (store.path / "runs" / TINY.run_id / "rows.parquet").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert sweep.finished(planned, "demo", tmp_path / "out") == {tiny(seed=1).run_id}
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(StoreError, match="holds other results"):
        sweep.finished({"fig1": [(TINY,)]}, "demo", tmp_path / "out")


def test_a_folder_of_an_earlier_edgewise_is_mended_by_the_same_command(tmp_path, monkeypatch):
    calls = record_engine(monkeypatch)
    stored(tmp_path, {"fig1": [made(TINY)]})
    for name in (presentation.PRESENTATION, presentation.FINDINGS):
        (tmp_path / name).unlink()
    sweep.run({"fig1": [(TINY,)]}, "demo", tmp_path)
    assert calls[0][0] == []
    assert len(presentation.read(Store.open(tmp_path))[0].finished) == 1


def test_a_run_that_is_missing_for_no_reason_is_an_error(tmp_path, monkeypatch):
    record_engine(monkeypatch)
    sweep.run({"fig4": [(TINY,)]}, "demo", tmp_path)
    (tmp_path / "runs" / TINY.run_id).rename(tmp_path / "aside")
    store = Store.open(tmp_path)
    with pytest.raises(StoreError, match="is missing"):
        runs_of(store, store.figures[0])
