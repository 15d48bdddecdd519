"""The local engine: processes on this machine.

Oracle: the same configs trained one after the other in this process, compared bit for bit. Cannot see: how much
faster more processes are.
"""

import itertools
import multiprocessing
import os
import pickle
import signal

import pytest

from edgewise.arguments import UnknownNameError
from edgewise.lab import engines, sweep
from edgewise.lab.engines import local
from edgewise.lab.errors import RecipeError, WorkerError
from edgewise.lab.ladders import Work
from edgewise.lab.recipes import own
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
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
    run, expected = store.runs.load(config.run_id), train(config)
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
    assert store.runs.load(DIVERGING.run_id).outcome["num_steps"] < 40
    assert seen[-1] == {
        config.run_id: config.num_steps for config in configs
    }  # also of the one that ended early
    assert all(before[i] <= after[i] for before, after in itertools.pairwise(seen) for i in before)


@pytest.mark.processes
def test_an_error_names_its_run_and_leaves_the_others_stored(tmp_path):
    others = [tiny(seed=seed) for seed in (1, 2)]
    store = store_for(tmp_path, [others[0], FAILING, others[1]])
    with pytest.raises(ValueError, match="lr_init must be at most the target") as caught:
        local.run(work_of([others[0], FAILING, others[1]], store), store, 1, lambda steps: None)
    assert f"in run {FAILING.run_id}: RunConfig(" in "".join(caught.value.__notes__)
    assert all(store.runs.has(config.run_id) for config in others)
    assert not store.runs.has(FAILING.run_id)
    assert {p.name for p in (tmp_path / "runs").iterdir()} <= {config.run_id for config in others}


def test_engines_are_found_by_name():
    assert engines.engine("local") is local.run
    with pytest.raises(UnknownNameError, match=r"unknown engine 'locl'; known: local, ray, slurm, vec"):
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
        if store.runs.has(configs[0].run_id) and sum(n > 0 for n in steps.values()) == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"a training process was killed.* run the same command again"):
        local.run(work_of(configs, store), store, 2, kill_one)
    assert store.runs.has(configs[0].run_id)
    kept = tmp_path / "out" / "runs" / configs[0].run_id / "outcome.json"
    before = kept.stat().st_mtime_ns
    local.run(work_of(configs, store), store, 2, lambda steps: None)
    assert kept.stat().st_mtime_ns == before
    for config in configs:
        assert_stored_as_trained(store, config)


@pytest.mark.processes
@pytest.mark.parametrize("num_runs", [1, 3000])
def test_what_a_process_is_sent_does_not_grow_with_the_sweep(tmp_path, monkeypatch, num_runs):
    store = store_for(tmp_path / "out", [tiny(seed=seed) for seed in range(num_runs)])
    sent = []

    class Pool(local.ProcessPoolExecutor):
        def __init__(self, *args, initargs, **kwargs):
            _, *others = initargs
            sent.append(len(pickle.dumps(others)))
            super().__init__(*args, initargs=initargs, **kwargs)

        def submit(self, function, /, *args):
            sent.append(len(pickle.dumps((function, args))))
            return super().submit(function, *args)

    monkeypatch.setattr(local, "ProcessPoolExecutor", Pool)
    local.run(work_of([TINY, tiny(seed=1)], store), store, 1, lambda steps: None)
    assert len(sent) == 3
    assert max(sent) < 2000


IN_WORKERS = """
import multiprocessing
from edgewise.lab.configs import *
from edgewise.lab.plugins import register_model

in_worker = multiprocessing.parent_process() is not None

class NeedsTwo(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")

BODY

def configs():
    return [RunConfig(data=DataConfig(name="digits"), model=ModelConfig(name=name, depth=1, width=8,
            parameterization="sp"), optimizer=OptimizerConfig(name="sgd", lr=0.1), num_steps=4) for name in NAMES]
"""


def sweep_of(path, body, names=("fcn",), engine="local"):
    file = path / "mine.py"
    file.write_text(IN_WORKERS.replace("BODY", body).replace("NAMES", repr(names)))
    its = own.load(file).ladders("own")
    return sweep.run({"mine": its}, "own", path / "out", engine=engine, workers=2, recipe_file=file)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("if in_worker: raise ArithmeticError('no port left')", "raised ArithmeticError: no port left"),
        (
            "if in_worker: import no_such_library",
            "raised ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("if in_worker: raise SystemExit(3)", "SystemExit: 3"),
        ("if in_worker: raise NeedsTwo('a', 'b')", "raised NeedsTwo: a: b"),
    ],
)
def test_a_recipe_that_raises_in_workers_alone_is_one_sentence_and_no_run_is_to_blame(tmp_path, body, said):
    with pytest.raises(RecipeError, match=r"mine\.py") as caught:
        sweep_of(tmp_path, body)
    assert said in str(caught.value)
    assert "in a process that trains, not where the sweep began" in str(caught.value)
    assert not hasattr(caught.value, "__notes__")
    store = Store.open(tmp_path / "out")
    assert store.runs.finished() == store.failures.ids() == set()


@pytest.mark.parametrize("engine", ["local", "vectorized"])
@pytest.mark.parametrize(
    ("raises", "kind", "said"),
    [
        ("raise NeedsTwo('width', 'too small')", "NeedsTwo", "width: too small"),
        ("raise SystemExit('enough')", "SystemExit", "enough"),
        ("class Local(Exception): pass\n    raise Local('of this call')", "Local", "of this call"),
    ],
)
def test_whatever_a_run_raises_the_others_are_finished(tmp_path, engine, raises, kind, said):
    body = f"@register_model('broken')\ndef broken(config, dataset):\n    {raises}\n"
    with pytest.raises(Exception, match=said) as caught:
        sweep_of(tmp_path, body, ("broken", "fcn"), engine)
    assert isinstance(caught.value, WorkerError) or type(caught.value).__name__ == kind
    assert kind in str(caught.value) or type(caught.value).__name__ == kind
    store = Store.open(tmp_path / "out")
    assert len(store.runs.finished()) == len(store.failures.ids()) == 1
    (failure,) = (tmp_path / "out" / "failures").iterdir()
    assert said in failure.read_text()
    assert ", in broken" in failure.read_text()  # where
