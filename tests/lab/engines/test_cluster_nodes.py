"""The Ray engine on a cluster of several nodes, one of which is lost.

Oracle: the same configs trained in this process, compared bit for bit. Cannot see: nodes on machines of their own:
these are processes of this one, each with its own scheduler, store of objects and workers.
"""

import pytest

from edgewise.lab import sweep
from edgewise.lab.engines.cluster import _started
from edgewise.lab.recipes import own
from edgewise.lab.training import train

ray = pytest.importorskip("ray")

# A run waits until a node is lost, and on that node for ever: no machine is too fast to lose one in the middle.
RECIPE = """
import time
from pathlib import Path
import ray
from edgewise.lab import models
from edgewise.lab.configs import *
from edgewise.lab.plugins import register_model

@register_model("noted")
def noted(config, dataset):
    if ray.is_initialized():
        node, lost = ray.get_runtime_context().get_node_id(), Path(__file__).with_name("lost")
        with Path(__file__).with_name(node).open("a") as begun:
            begun.write(".")
        while not lost.exists() or lost.read_text() == node:
            time.sleep(0.05)
    return models.FCN(num_features=dataset.num_features, num_classes=dataset.num_classes, depth=1, width=8,
                      parameterization="sp")

def configs():
    return [RunConfig(data=DataConfig(name="digits"), model=ModelConfig(name="noted", depth=1, width=8,
            parameterization="sp"), optimizer=OptimizerConfig(name="sgd", lr=0.1), num_steps=1000, batch_size=64,
            seed=seed) for seed in range(4)]
"""


@pytest.fixture
def cluster(monkeypatch):
    """A head that trains nothing, and two nodes of one core each."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - where Ray is installed

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.processes
def test_a_cluster_that_happens_to_run_here_is_not_joined_unless_it_is_named(cluster, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    assert _started(1).cluster_resources()["CPU"] == 1  # and not the cluster's two


@pytest.mark.processes
def test_the_runs_of_a_node_that_is_lost_are_trained_on_the_others(tmp_path, cluster):
    nodes, (lost, left) = cluster
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    its = own.load(file)

    def lose(state):
        if (tmp_path / lost.node_id).exists() and lost in nodes.worker_nodes:
            nodes.remove_node(lost, allow_graceful=False)
            (tmp_path / "lost.new").write_text(lost.node_id)
            (tmp_path / "lost.new").rename(tmp_path / "lost")

    store = sweep.run(
        {"mine": its.ladders("own")},
        "own",
        tmp_path / "out",
        engine="ray",
        recipe_file=file,
        on_progress=lose,
    )
    assert lost not in nodes.worker_nodes
    configs = its.configs("own")
    assert len((tmp_path / lost.node_id).read_text()) >= 1
    assert len((tmp_path / left.node_id).read_text()) >= 1
    begun = sum(len((tmp_path / node.node_id).read_text()) for node in (lost, left))
    assert begun > len(configs)  # what was lost in the middle was begun again
    assert store.runs.finished() == {config.run_id for config in configs}
    ray.shutdown()
    for config in configs:
        expected, got = train(config), store.runs.load(config.run_id)
        for name, values in got.columns.items():
            assert [repr(float(row.get(name, float("nan")))) for row in expected.rows] == [
                *map(repr, values.tolist())
            ]
        assert {k: repr(v) for k, v in got.outcome.items() if k != "seconds"} == {
            k: repr(v) for k, v in expected.outcome.items() if k != "seconds"
        }
