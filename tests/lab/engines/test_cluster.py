"""The Ray engine, on this machine.

Oracle: the same configs trained in this process, compared bit for bit. Cannot see: a cluster of several machines.
"""

import sys

import pytest

from edgewise.lab import sweep
from edgewise.lab.engines import cluster
from edgewise.lab.recipes import own
from edgewise.lab.store import Store
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
        expected, got = train(config), store.load(config.run_id)
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
    assert store.load(config.run_id).columns["train_loss"].tolist() == [
        row["train_loss"] for row in train(config).rows
    ]


def test_an_error_is_recorded_and_the_others_are_finished(tmp_path):
    file, its = load(tmp_path, ["broken", "fcn"])
    with pytest.raises(ArithmeticError, match="no network"):
        sweep.run({"mine": its.ladders("own")}, "own", tmp_path / "out", engine="ray", recipe_file=file)
    broken, whole = its.configs("own")
    store = Store.open(tmp_path / "out")
    assert store.finished() == {whole.run_id}
    assert store.failed() == {broken.run_id}


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'edgewise\[ray\]', or choose engine 'local'"):
        cluster._started(1)
