"""The Ray engine, on this machine.

Oracle: the same configs trained in this process, compared bit for bit. Cannot see: a cluster of several machines.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgewise.errors import EdgewiseError
from edgewise.lab import sweep
from edgewise.lab.engines import cluster, engine
from edgewise.lab.errors import RecipeError, WorkerError
from edgewise.lab.recipes import own
from edgewise.lab.results import lock, run_folder
from edgewise.lab.results.files import Folder
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from lab_cases import tiny

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    cluster._started(2)
    yield
    ray.shutdown()


def test_tasks_give_what_one_process_gives_bit_for_bit(tmp_path):
    configs = [
        tiny(batch_size=8),
        tiny(optimizer={"name": "adam"}, measure=("sharpness",), measure_every=2),
        tiny(optimizer={"lr": 1e12}, warmup={"steps": 1}, num_steps=40),
    ]
    store = sweep.run({"fig1": [(c,) for c in configs]}, "demo", tmp_path / "out", engine="ray", workers=2)
    for config in configs:
        expected, got = train(config), store.runs.load(config.run_id)
        for name, values in got.columns.items():
            assert [repr(float(row.get(name, float("nan")))) for row in expected.rows] == [
                *map(repr, values.tolist())
            ]
        assert {k: repr(v) for k, v in got.outcome.items() if k != "seconds"} == {
            k: repr(v) for k, v in expected.outcome.items() if k != "seconds"
        }


RECIPE = """
import os, signal
from pathlib import Path
from edgewise.lab import models
from edgewise.lab.configs import *
from edgewise.lab.plugins import register_model

@register_model("fragile")
def fragile(config, dataset):
    marker = Path(__file__).with_name("died-once")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return models.FCN(num_features=dataset.num_features, num_classes=dataset.num_classes, depth=1, width=8,
                      parameterization="sp")

@register_model("broken")
def broken(config, dataset):
    raise ArithmeticError("no network")

def configs():
    return [RunConfig(data=DataConfig(name="digits"), model=ModelConfig(name=name, depth=1, width=8,
            parameterization="sp"), optimizer=OptimizerConfig(name="sgd", lr=0.1), num_steps=4) for name in NAMES]
"""


def load(path, names):
    file = path / "mine.py"
    file.write_text(RECIPE.replace("NAMES", repr(names)))
    return file, own.load(file)


def test_a_run_whose_worker_dies_is_tried_again(tmp_path):
    file, its = load(tmp_path, ["fragile"])
    store = sweep.run({"mine": its.ladders("own")}, "own", tmp_path / "out", engine="ray", recipe_file=file)
    (config,) = its.configs("own")
    assert (tmp_path / "died-once").exists()
    assert store.runs.load(config.run_id).columns["train_loss"].tolist() == [
        row["train_loss"] for row in train(config).rows
    ]


def test_an_error_is_recorded_and_the_others_are_finished(tmp_path):
    file, its = load(tmp_path, ["broken", "fcn"])
    with pytest.raises(ArithmeticError, match="no network"):
        sweep.run({"mine": its.ladders("own")}, "own", tmp_path / "out", engine="ray", recipe_file=file)
    broken, whole = its.configs("own")
    store = Store.open(tmp_path / "out")
    assert store.runs.finished() == {whole.run_id}
    assert store.failures.ids() == {broken.run_id}


def test_without_ray_the_error_says_what_to_install_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    planned = {"fig1": [(tiny(),)]}
    for use in (
        lambda: engine("ray"),
        lambda: cluster._started(1),
        lambda: sweep.run(planned, "demo", tmp_path / "out", engine="ray"),
    ):
        with pytest.raises(
            ModuleNotFoundError, match=r"pip install 'edgewise\[ray\]', or choose engine 'local'"
        ) as caught:
            use()
        assert isinstance(caught.value, EdgewiseError)
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_cannot_be_reached_is_a_sentence(monkeypatch):
    def fail(**options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(WorkerError, match=r"reached on 10\.0\.0\.1:6379 \(ConnectionError: nobody there\)"):
        cluster._started(1)


def test_a_recipe_that_raises_in_workers_alone_is_one_sentence_and_no_run_is_to_blame(tmp_path):
    file = tmp_path / "mine.py"
    guard = f"import os\nif os.getpid() != {os.getpid()}: raise ArithmeticError('no port left')\n"
    file.write_text(guard + RECIPE.replace("NAMES", "['fcn']"))
    its = own.load(file)
    with pytest.raises(RecipeError, match=r"mine\.py, line 2, raised ArithmeticError: no port left"):
        sweep.run({"mine": its.ladders("own")}, "own", tmp_path / "out", engine="ray", recipe_file=file)
    assert Store.open(tmp_path / "out").failures.ids() == set()


def test_a_worker_stores_its_run_where_it_sees_the_very_folder_and_nowhere_else(tmp_path):
    config = tiny()
    mine, other = Folder(tmp_path / "mine"), Folder(tmp_path / "other")
    path, threads = [*sys.path], __import__("torch").get_num_threads()
    with lock.locked(mine) as holder, lock.locked(other):
        for folder in (mine, other, Folder(tmp_path / "nowhere")):
            result = cluster._train(config, None, path, folder.path, holder)
            assert result.rows == train(config).rows
        run_folder.check(mine, config.run_id, checked=True)
        assert not (other.path / "runs").exists()
        assert not (tmp_path / "nowhere").exists()
    __import__("torch").set_num_threads(threads)


def test_what_a_worker_cannot_store_the_driver_does(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "holds", lambda *args: False)  # here; there the holder is another
    real = sweep.locked
    monkeypatch.setattr(sweep, "locked", lambda folder: _WithAnotherHolder(real(folder)))
    store = sweep.run({"fig1": [(tiny(),)]}, "demo", tmp_path / "out", engine="ray", workers=1)
    assert store.runs.has(tiny().run_id)


class _WithAnotherHolder:
    def __init__(self, held):
        self._held = held

    def __enter__(self):
        self._held.__enter__()
        return "another"

    def __exit__(self, *error):
        return self._held.__exit__(*error)


DYING = """
import os, signal, sys, time
from pathlib import Path
import ray
from edgewise.lab import sweep
from lab_cases import tiny

configs = [tiny(seed=seed) for seed in range(2)]
runs = Path(sys.argv[1]) / "runs"

def wait(references, timeout):  # the driver dies before it hears of any result
    while not all((runs / config.run_id).exists() for config in configs):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)

ray.wait = wait
sweep.run({"fig1": [(config,) for config in configs]}, "demo", Path(sys.argv[1]), engine="ray", workers=1)
"""


def test_nothing_that_was_trained_is_lost_with_the_driver(tmp_path):
    tests = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DYING, tmp_path / "out"],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])},
    )
    deadline = time.monotonic() + 240
    while driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert driver.returncode == -signal.SIGKILL
    store = Store.open(tmp_path / "out")
    for config in (tiny(seed=seed) for seed in range(2)):
        columns = store.runs.load(config.run_id).columns
        assert columns["train_loss"].tolist() == [row["train_loss"] for row in train(config).rows]
