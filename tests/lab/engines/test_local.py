"""The local engine: processes on this machine.

Oracle: the same configs trained one after the other in this process, compared bit for bit. Cannot see: how much
faster more processes are.
"""

import itertools
import multiprocessing
import os
import signal

import pytest

from edgewise.arguments import UnknownNameError
from edgewise.errors import WorkerError
from edgewise.lab import engines
from edgewise.lab.engines import local
from edgewise.lab.store import FigureRuns, Store
from edgewise.lab.training import train
from edgewise.lab.work import Work
from lab_cases import TINY, tiny

DIVERGING = tiny(optimizer={"lr": 1e12}, warmup={"steps": 1}, num_steps=40)
FAILING = tiny(optimizer={"lr_unit": "1/sharpness"}, warmup={"lr_init": 1e9})  # seen only once λ₀ is measured


def store_for(path, configs):
    run_ids = tuple(config.run_id for config in configs)
    return Store.create(path, [FigureRuns(figure="fig1", scale="demo", run_ids=run_ids)])


def work_of(configs, store):
    return Work([(config,) for config in configs], store)


def without_time(outcome):
    return {name: repr(value) for name, value in outcome.items() if name != "seconds"}


def assert_stored_as_trained(store, config):
    run, expected = store.load(config.run_id), train(config)
    for name, values in run.columns.items():
        assert [repr(float(row.get(name, float("nan")))) for row in expected.rows] == [
            *map(repr, values.tolist())
        ]
    assert {name for row in expected.rows for name in row} == run.columns.keys()
    assert without_time(run.outcome) == without_time(expected.outcome)


def test_two_processes_give_what_one_gives_bit_for_bit(tmp_path):
    adam = tiny(optimizer={"name": "adam"}, batch_size=8)
    configs = [TINY, adam, tiny(seed=1, measure=("sharpness",), measure_every=2), DIVERGING]
    store = store_for(tmp_path, configs)
    seen = []
    local.run(work_of(configs, store), store, 2, lambda steps: seen.append(dict(steps)))
    for config in configs:
        assert_stored_as_trained(store, config)
    assert store.load(DIVERGING.run_id).outcome["num_steps"] < 40
    assert seen[-1] == {
        config.run_id: config.num_steps for config in configs
    }  # also of the one that ended early
    assert all(before[i] <= after[i] for before, after in itertools.pairwise(seen) for i in before)


def test_an_error_names_its_run_and_leaves_the_others_stored(tmp_path):
    others = [tiny(seed=seed) for seed in (1, 2)]
    store = store_for(tmp_path, [others[0], FAILING, others[1]])
    with pytest.raises(ValueError, match="lr_init must be at most the target") as caught:
        local.run(work_of([others[0], FAILING, others[1]], store), store, 1, lambda steps: None)
    assert f"in run {FAILING.run_id}: RunConfig(" in "".join(caught.value.__notes__)
    assert all(store.has(config.run_id) for config in others)
    assert not store.has(FAILING.run_id)
    assert {p.name for p in (tmp_path / "runs").iterdir()} <= {config.run_id for config in others}


def test_engines_are_found_by_name():
    assert engines.engine("local") is local.run
    with pytest.raises(UnknownNameError, match=r"unknown engine 'locl'; known: local, ray, vec"):
        engines.engine("locl")


@pytest.mark.slow
def test_ctrl_c_is_an_interrupt_also_where_the_workers_notice_it_first(tmp_path):
    configs = (tiny(num_steps=10**7), tiny(seed=1, num_steps=10**7))
    store = store_for(tmp_path / "out", configs)

    def interrupt_workers(steps):
        if min(steps.values()) > 0:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        local.run(work_of(configs, store), store, 2, interrupt_workers)


def test_a_killed_worker_is_said_and_the_sweep_goes_on_where_it_was(tmp_path):
    configs = [tiny(batch_size=8), *(tiny(seed=seed, num_steps=3000, batch_size=8) for seed in (1, 2))]
    store = store_for(tmp_path / "out", configs)

    def kill_one(steps):
        if store.has(configs[0].run_id) and sum(n > 0 for n in steps.values()) == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"a training process was killed.* run the same command again"):
        local.run(work_of(configs, store), store, 2, kill_one)
    assert store.has(configs[0].run_id)
    kept = tmp_path / "out" / "runs" / configs[0].run_id / "outcome.json"
    before = kept.stat().st_mtime_ns
    local.run(work_of(configs, store), store, 2, lambda steps: None)
    assert kept.stat().st_mtime_ns == before
    for config in configs:
        assert_stored_as_trained(store, config)
