"""The Slurm engine: submitit's processes on this machine, and programs of Slurm's names that record and run jobs.

Oracle: the same configs trained in this process, compared bit for bit. Cannot see: a real Slurm, and a file system that
is shared by several machines.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from edgewise.arguments import UnknownNameError
from edgewise.errors import EdgewiseError
from edgewise.lab import sweep
from edgewise.lab.engines import engine, slurm, slurm_job, worker
from edgewise.lab.engines.slurm_settings import settings
from edgewise.lab.errors import RecipeError, StoreError, WorkerError
from edgewise.lab.ladders import Climb, Work
from edgewise.lab.recipes import own
from edgewise.lab.results import lock
from edgewise.lab.results.files import Folder
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from lab_cases import tiny

submitit = pytest.importorskip("submitit")

HERE = ("cluster=local", "jobs=2")
DIVERGING = tiny(optimizer={"lr": 1e12}, warmup={"steps": 1}, num_steps=40)
BEYOND = tiny(optimizer={"lr": 1e13}, warmup={"steps": 1}, num_steps=40)


def assert_stored_as_trained(store, config):
    expected, got = train(config), store.runs.load(config.run_id)
    for name, values in got.columns.items():
        assert [repr(float(row.get(name, float("nan")))) for row in expected.rows] == [
            *map(repr, values.tolist())
        ]
    assert {k: repr(v) for k, v in got.outcome.items() if k != "seconds"} == {
        k: repr(v) for k, v in expected.outcome.items() if k != "seconds"
    }


def without_results(path):
    """What lies beside the results: the files of the jobs, if they are there."""
    return [found.name for found in path.iterdir() if found.name.startswith("out.slurm-")]


def test_jobs_give_what_one_process_gives_bit_for_bit_and_climb_as_far(tmp_path):
    configs = [tiny(batch_size=8), tiny(optimizer={"name": "adam"}, measure=("sharpness",), measure_every=2)]
    ladder = (tiny(warmup={"steps": 1}, num_steps=40), DIVERGING, BEYOND)
    planned = {"fig1": [(c,) for c in configs], "fig4": [ladder]}
    seen = []
    store = sweep.run(planned, "demo", tmp_path / "out", engine="slurm", slurm=HERE, on_progress=seen.append)
    trained = [*configs, *ladder[:2]]
    for config in trained:
        assert_stored_as_trained(store, config)
    assert store.runs.finished() == seen[-1].finished == {config.run_id for config in trained}
    assert store.beyond == {BEYOND.run_id}
    assert os.listdir(tmp_path) == ["out"]  # no pickle is left


RECIPE = """
import os, signal
from pathlib import Path
from edgewise.lab import models
from edgewise.lab.configs import *
from edgewise.lab.plugins import register_model

beside = Path(__file__).parent

def die(name, by, times=10**9):
    with (beside / name).open("a+") as tries:
        tries.write(".")
        tries.seek(0)
        if len(tries.read()) <= times:
            tries.flush()
            os.kill(os.getpid(), by)

def network(dataset):
    return models.FCN(num_features=dataset.num_features, num_classes=dataset.num_classes, depth=1, width=8,
                      parameterization="sp")

@register_model("killed")
def killed(config, dataset):
    die("killed", signal.SIGKILL, times=1)
    return network(dataset)

@register_model("terminated")
def terminated(config, dataset):
    die("terminated", signal.SIGTERM, times=1)
    return network(dataset)

@register_model("warned")
def warned(config, dataset):
    die("warned", signal.SIGUSR2)
    return network(dataset)

@register_model("doomed")
def doomed(config, dataset):
    print("too large", file=__import__("sys").stderr, flush=True)
    die("doomed", signal.SIGKILL)

@register_model("broken")
def broken(config, dataset):
    raise ArithmeticError("no network")

def configs():
    return [RunConfig(data=DataConfig(name="digits"), model=ModelConfig(name=name, depth=1, width=8,
            parameterization="sp"), optimizer=OptimizerConfig(name="sgd", lr=0.1), num_steps=4, seed=seed)
            for seed, name in enumerate(NAMES)]
"""


def recipe_of(path, names):
    file = path / "mine.py"
    file.write_text(RECIPE.replace("NAMES", repr(names)))
    return file, own.load(file)


def sweep_of(path, names, slurm=HERE):
    file, its = recipe_of(path, names)
    its_configs = its.configs("own")
    options = {"engine": "slurm", "slurm": slurm, "recipe_file": file}
    return its_configs, lambda: sweep.run({"mine": its.ladders("own")}, "own", path / "out", **options)


def test_a_run_whose_job_dies_is_tried_again_and_a_warning_of_the_end_is_no_end(tmp_path):
    configs, run = sweep_of(tmp_path, ["killed", "terminated", "warned"], ("cluster=local", "jobs=1"))
    store = run()
    tries = {name: len((tmp_path / name).read_text()) for name in ("killed", "terminated", "warned")}
    assert tries == {"killed": 2, "terminated": 2, "warned": 1}
    assert store.failures.ids() == set()
    assert not without_results(tmp_path)
    for config in configs:
        (tmp_path / config.model.name).write_text("..")
        if config.model.name != "warned":
            assert_stored_as_trained(store, config)


def test_a_run_under_which_all_jobs_die_is_given_up_and_blamed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "RETRIES", 2)
    (broken, doomed, whole), run = sweep_of(
        tmp_path, ["broken", "doomed", "fcn"], ("cluster=local", "jobs=1")
    )
    with pytest.raises(ArithmeticError):  # though its first job died under the next run
        run()
    assert (tmp_path / "doomed").read_text() == "...."  # the first time beside the one that raised
    store = Store.open(tmp_path / "out")
    assert store.runs.finished() == {whole.run_id}
    assert store.failures.ids() == {broken.run_id, doomed.run_id}
    assert store.failures.last_line(broken.run_id) == "ArithmeticError: no network"
    said = store.failures.file(doomed.run_id).read_text()
    assert "WorkerError: jobs died under this run (3), the last one in state FINISHED, with " in said
    assert "\n  too large\n" in said
    assert "more --slurm time or memory" in said
    assert without_results(tmp_path)  # with the log that is named


@pytest.mark.parametrize("retries", [0, 1])
def test_where_every_job_dies_the_sweep_ends_when_as_many_died_as_under_one_run(
    tmp_path, monkeypatch, retries
):
    monkeypatch.setattr(worker, "RETRIES", retries)
    configs, run = sweep_of(tmp_path, ["doomed"] * 3, ("cluster=local", "jobs=1"))
    with pytest.raises(WorkerError, match=r"jobs died under this run \(1\)"):
        run()
    assert (tmp_path / "doomed").read_text() == "." * (1 + retries)
    assert Store.open(tmp_path / "out").failures.ids() == {configs[retries].run_id}


def test_an_error_is_recorded_and_the_others_are_finished(tmp_path):
    (broken, whole), run = sweep_of(tmp_path, ["broken", "fcn"], ("cluster=local", "jobs=1"))
    with pytest.raises(ArithmeticError, match="no network"):
        run()
    store = Store.open(tmp_path / "out")
    assert store.runs.finished() == {whole.run_id}
    assert store.failures.ids() == {broken.run_id}
    assert store.failures.last_line(broken.run_id) == "ArithmeticError: no network"
    assert ", in broken" in store.failures.file(broken.run_id).read_text()  # where
    assert not without_results(tmp_path)


def test_a_recipe_that_raises_in_jobs_alone_is_one_sentence_and_no_run_is_to_blame(tmp_path):
    file, _ = recipe_of(tmp_path, ["fcn"])
    guard = f"import os\nif os.getpid() != {os.getpid()}: raise ArithmeticError('no port left')\n"
    file.write_text(guard + file.read_text())
    its = own.load(file)
    with pytest.raises(RecipeError, match=r"mine\.py, line 2, raised ArithmeticError: no port left"):
        sweep.run(
            {"mine": its.ladders("own")},
            "own",
            tmp_path / "out",
            engine="slurm",
            slurm=HERE,
            recipe_file=file,
        )
    assert Store.open(tmp_path / "out").failures.ids() == set()


def test_ctrl_c_ends_the_jobs_and_the_same_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    quick, long = tiny(), tiny(seed=1, num_steps=10**7)
    submitted = []
    monkeypatch.setattr(slurm, "_has_ended", lambda job: submitted.append(job) or False)

    def interrupt(state):
        if quick.run_id in state.finished:
            raise KeyboardInterrupt

    planned = {"fig1": [(quick,), (long,)]}
    options = {"engine": "slurm", "slurm": ("cluster=local", "jobs=1")}
    with pytest.raises(KeyboardInterrupt):
        sweep.run(planned, "demo", tmp_path / "out", on_progress=interrupt, **options)
    deadline = time.monotonic() + 60  # told to end, which takes a busy machine longer than the sweep waits
    while any(job.state == "RUNNING" for job in submitted):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert os.listdir(tmp_path) == ["out"]
    monkeypatch.undo()
    kept = tmp_path / "out" / "runs" / quick.run_id / "outcome.json"
    before = kept.stat().st_mtime_ns
    with pytest.raises(StoreError):  # the very runs
        sweep.run({"fig1": [(quick,)]}, "demo", tmp_path / "out", **options)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(planned, "demo", tmp_path / "out", on_progress=interrupt, **options)
    assert kept.stat().st_mtime_ns == before


def climber_for(path, configs, holder):
    figure = FigureRuns(figure="fig1", scale="demo", run_ids=tuple(config.run_id for config in configs))
    store = Store.create(path, [figure])
    store.holder = holder
    return slurm_job.Climber(store), store


def test_a_job_trains_nothing_that_is_stored_and_nothing_where_the_sweep_is_not_at_work(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm_job, "_be_killed_by_signals", lambda: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    threads = torch.get_num_threads()
    config, other = tiny(), tiny(seed=1)
    share = [Climb(rungs=(config,), trained_below=False), Climb(rungs=(other,), trained_below=False)]
    with lock.locked(Folder(tmp_path / "out")) as holder:
        climber, store = climber_for(tmp_path / "out", [config, other], holder)
        stranger, _ = climber_for(tmp_path / "out", [config, other], holder.replace("pid", "PID"))
        refused = stranger(share)
        assert isinstance(refused.stopped, StoreError)
        assert "does not see" in str(refused.stopped)
        assert "--out" in str(refused.stopped)
        assert not store.runs.ids()
        assert climber(share[:1]).stored == [config]
        monkeypatch.setattr(worker, "trained", lambda config: pytest.fail("trained again"))
        assert climber(share[:1]).stored == [config]
    torch.set_num_threads(threads)


DYING = """
import os, signal, sys
from pathlib import Path
from edgewise.lab import sweep
from edgewise.lab.engines import slurm
from lab_cases import tiny

def collect(self):  # the sweep dies before it hears of any result
    os.kill(os.getpid(), signal.SIGKILL)

slurm._Jobs.collect = collect
planned = {"fig1": [(tiny(seed=seed),) for seed in range(2)]}
sweep.run(planned, "demo", Path(sys.argv[1]), engine="slurm", slurm=("cluster=local", "jobs=1"))
"""


def test_nothing_that_was_trained_is_lost_with_the_sweep(tmp_path):
    tests, configs = Path(__file__).parents[2], [tiny(seed=seed) for seed in range(2)]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    died = subprocess.run(
        [sys.executable, "-c", DYING, tmp_path / "out"], env=os.environ | {"PYTHONPATH": path}, check=False
    )
    assert died.returncode == -signal.SIGKILL
    store, deadline = Store.open(tmp_path / "out"), time.monotonic() + 240
    while len(store.runs.finished()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for config in configs:
        assert_stored_as_trained(store, config)


# What Slurm's programs do, as far as the engine needs it: jobs are processes of this machine.
SBATCH = r"""
id=$(( 100 + $(ls "$FAKE" | grep -c '^job-') ))
cp "$1" "$FAKE/job-$id"
[ -n "$REFUSED" ] && { echo "sbatch: error: $REFUSED" >&2; exit 1; }
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$1")
for i in $(seq 0 "${last:-0}"); do
    name=$id${last:+_$i}
    echo RUNNING > "$FAKE/state-$name"
    SLURM_JOB_ID=$id ${last:+env SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$i} setsid bash -c '
        echo $$ > "$FAKE/pid-$2"
        bash "$1" && state=COMPLETED || state=$DEAD
        echo "$state" > "$FAKE/state-$2"' - "$FAKE/job-$id" "$name" > /dev/null 2>&1 &
done
echo "Submitted batch job $id"
"""
SRUN = r"""
while [[ $1 == --* ]]; do [[ $1 == --error ]] && errors=$2; [[ $1 == --unbuffered ]] && shift || shift 2; done
ids="s/%A/$SLURM_ARRAY_JOB_ID/; s/%a/$SLURM_ARRAY_TASK_ID/; s/%j/$SLURM_JOB_ID/; s/%t/0/"
exec "$@" 2> "$(echo "$errors" | sed "$ids")"
"""
SACCT = r"""
echo "JobID|State|NodeList"
for file in "$FAKE"/state-*; do echo "${file##*state-}|$(cat "$file")|here"; done
"""
SCANCEL = r"""
echo "$1" >> "$FAKE/cancelled"
kill -KILL -- "-$(cat "$FAKE/pid-$1")"
echo "CANCELLED by 1000" > "$FAKE/state-$1"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder in which programs of Slurm's names, which are first in the PATH, note what they are asked for."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (programs / name).write_text("#!/bin/bash\n" + text.lstrip())
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("FAKE", str(notes))
    monkeypatch.setenv("DEAD", "FAILED")
    return notes


def options_in(script):
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))


def test_slurm_gets_an_array_with_what_was_asked_for(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("SLURM_CPU_BIND", "of the job in which the sweep runs")
    configs = [tiny(), tiny(seed=1), tiny(seed=2)]
    wanted = (
        "jobs=2",
        "partition=long",
        "time=90",
        "memory=6",
        "cpus=2",
        "gpus=1",
        "account=physics",
        "qos=low",
    )
    further = ("constraint=avx512", "exclude=node7", "gres=lscratch:10", "reservation=friday")
    store = sweep.run(
        {"fig1": [(c,) for c in configs]}, "demo", tmp_path / "out", engine="slurm", slurm=wanted + further
    )
    for config in configs:
        assert_stored_as_trained(store, config)
    (script,) = cluster.glob("job-*")
    given = options_in(script)
    assert {name: given[name] for name in ("partition", "time", "mem", "cpus-per-task", "gpus-per-node")} == {
        "partition": "long",
        "time": "90",
        "mem": "6GB",
        "cpus-per-task": "2",
        "gpus-per-node": "1",
    }
    assert given["array"] == "0-1%2"
    assert {given[name] for name in ("account", "qos", "constraint", "exclude", "gres", "reservation")} == {
        "physics",
        "low",
        "avx512",
        "node7",
        "lscratch:10",
        "friday",
    }
    assert "no-requeue" in given
    assert given["job-name"] == "edgewise"
    assert not without_results(tmp_path)


def test_a_job_that_slurm_preempts_is_followed_by_another(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("DEAD", "PREEMPTED")  # for good: submitit alone would wait for it for ever
    (config,), run = sweep_of(tmp_path, ["killed"], ("jobs=1",))
    store = run()
    assert len((tmp_path / "killed").read_text()) == 2
    assert len([*cluster.glob("job-*")]) == 2
    assert_stored_as_trained(store, config)


def test_ctrl_c_cancels_the_jobs_in_slurm(tmp_path, cluster):
    configs = [tiny(num_steps=10**7), tiny(seed=1, num_steps=10**7)]

    def interrupt(state):
        if len([*cluster.glob("pid-*")]) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(
            {"fig1": [(c,) for c in configs]}, "demo", tmp_path / "out", engine="slurm", on_progress=interrupt
        )
    assert set((cluster / "cancelled").read_text().split()) == {"100_0", "100_1"}
    assert not without_results(tmp_path)


def test_what_slurm_refuses_is_a_sentence_with_its_own_words(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("REFUSED", "invalid partition specified: lang")
    with pytest.raises(
        WorkerError,
        match=r"refused 1 jobs \(sbatch: error: invalid partition specified: lang\).*partition, acc",
    ):
        sweep.run({"fig1": [(tiny(),)]}, "demo", tmp_path / "out", engine="slurm", slurm=["partition=lang"])
    assert not without_results(tmp_path)


def test_a_refusal_is_waited_out_while_jobs_are_at_work(tmp_path):
    class Busy:
        def map_array(self, function, shares):
            raise submitit.core.utils.FailedJobError("Socket timed out")

    store = Store.create(tmp_path, [FigureRuns(figure="fig1", scale="demo", run_ids=(tiny().run_id,))])
    jobs = slurm._Jobs(Work([(tiny(),)], store), store, Busy(), most=2)
    with pytest.raises(WorkerError, match="Socket timed out"):
        jobs.submit()
    jobs._shares[object()] = []
    jobs.submit()
    assert jobs.are_needed()


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        ("CANCELLED by 1000", True),
        ("NODE_FAIL", True),
        ("OUT_OF_MEMORY", True),
        ("PREEMPTED", True),
        ("TIMEOUT", True),
        ("PENDING", False),
        ("RUNNING", False),
        ("SUSPENDED", False),  # goes on later
        ("UNKNOWN", False),
        ("", False),
    ],
)
def test_a_job_has_ended_where_nothing_follows(tmp_path, state, ended):
    class Job:
        class paths:
            result_pickle = tmp_path / "none"

    Job.state = state
    assert slurm._has_ended(Job) is ended


def use_everywhere(tmp_path, error, match):
    for use in (
        lambda: engine("slurm"),
        lambda: sweep.run({"fig1": [(tiny(),)]}, "demo", tmp_path / "out", engine="slurm"),
    ):
        with pytest.raises(error, match=match) as caught:
            use()
        assert isinstance(caught.value, EdgewiseError)
    assert not (tmp_path / "out").exists()


def test_without_submitit_the_error_says_what_to_install_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    use_everywhere(
        tmp_path, ModuleNotFoundError, r"pip install 'edgewise\[slurm\]', or choose engine 'local'"
    )


def test_without_slurm_the_error_says_how_to_go_on_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    use_everywhere(
        tmp_path, WorkerError, "sbatch, srun, sacct, scancel cannot be found here.* --slurm cluster=local"
    )
    assert callable(engine("slurm", ["cluster=local"]))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            ["partion=cpu"],
            UnknownNameError,
            r"unknown setting of --slurm 'partion'; known: account, cluster, .*",
        ),
        (["time"], ValueError, r"--slurm time has no value: write NAME=VALUE, such as time=120"),
        (["time="], ValueError, r"--slurm time= has no value"),
        (["time=soon"], ValueError, r"--slurm time must be a whole number, got 'soon'"),
        (["time=1:00:00"], ValueError, r"--slurm time must be a whole number, got '1:00:00'"),
        (["jobs=0"], ValueError, r"--slurm jobs must be 1 or greater, got 0"),
        (["time=1", "time=2"], ValueError, r"--slurm time is given twice: time=1 and time=2"),
        (["cluster=pbs"], ValueError, r"--slurm cluster must be slurm or local, got 'pbs'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(given, error, message):
    with pytest.raises(error, match=message):
        settings(given)


def test_settings_of_slurm_are_for_its_engine_alone():
    with pytest.raises(ValueError, match=r"--slurm time=5 is for engine 'slurm', not for 'local'"):
        engine("local", ["time=5"])


def test_there_are_as_many_jobs_as_asked_for_else_a_hundred_or_the_workers_of_this_machine():
    assert (
        settings(["jobs=7"]).jobs_at_a_time(2) == settings(["jobs=7", "cluster=local"]).jobs_at_a_time(2) == 7
    )
    assert settings([]).jobs_at_a_time(2) == 100
    assert settings(["cluster=local"]).jobs_at_a_time(2) == 2
