"""First steps of runs.

Oracle: the whole run, whose first rows they are, bit for bit; costs written by hand. Cannot see: whether a pace holds
for days.
"""

import numpy as np
import pytest

from edgewise.lab import trial
from edgewise.lab.configs import from_dict, to_dict
from edgewise.lab.engines.batched_training import train_together
from edgewise.lab.recipes import RECIPES
from edgewise.lab.training import cost, train
from lab_cases import TINY, TINY_LM, changed, made, stored, tiny

LONG = changed(TINY_LM, num_steps=9, warmup={"steps": 2})


def cut(config, steps):
    (ladder,) = trial.first_steps({"fig1": [(config,)]}, steps)["fig1"]
    return ladder[0]


@pytest.mark.parametrize(
    "config",
    [LONG, changed(LONG, warmup={"kind": "edge"}), tiny(measure=("sharpness",), measure_every=2)],
    ids=["decay", "edge", "measured"],
)
def test_the_first_steps_are_those_of_the_whole_run(config):
    assert train(cut(config, 5)).rows == train(config).rows[:5]  # warmup and decay too, which know the length


def test_a_batch_of_stopped_runs_keeps_the_schedules_of_the_whole_ones():
    configs = [LONG, changed(LONG, optimizer={"lr": 0.02})]
    together, alone = train_together([cut(c, 5) for c in configs]), train_together(configs)
    for stopped, whole in zip(together, alone, strict=True):
        assert [row["lr"] for row in stopped.rows] == [row["lr"] for row in whole.rows[:5]]
        assert stopped.outcome["cost"].keys() == train(cut(LONG, 5)).outcome["cost"].keys()


def test_a_stopped_run_is_never_taken_for_the_whole_one():
    stopped = cut(LONG, 5)
    assert stopped.run_id != LONG.run_id
    assert stopped.run_id != changed(LONG, num_steps=5).run_id  # nor for a shorter one
    assert from_dict(to_dict(stopped)) == stopped
    assert (stopped.num_steps, stopped.whole_steps, LONG.whole_steps) == (5, 9, 9)
    assert cut(stopped, 3).whole_steps == 5


def test_whole_runs_have_the_ids_that_they_had():
    assert "schedule_steps" not in to_dict(TINY)


@pytest.mark.parametrize("steps", [4, 6])
def test_the_whole_is_longer_than_its_beginning(steps):
    with pytest.raises(
        ValueError, match=f"schedule_steps must be above num_steps = 6, got {steps}: leave it out"
    ):
        tiny(schedule_steps=steps)
    with pytest.raises(ValueError, match="warmup_steps must be at most schedule_steps = 9, got 10"):
        tiny(num_steps=3, schedule_steps=9, warmup={"steps": 10})


def test_runs_that_are_no_longer_are_trained_as_they_are():
    planned = trial.first_steps({"fig6": RECIPES["fig6"].ladders("demo")}, 5)
    lengths = {config.num_steps for ladder in planned["fig6"] for config in ladder}
    assert lengths == {1, 5}
    with pytest.raises(
        ValueError, match="stop-after must be below 100, the steps of the longest run, got 100"
    ):
        trial.first_steps({"fig6": RECIPES["fig6"].ladders("demo")}, 100)


def test_every_rate_is_trained():
    """Nothing learns in a few steps: a ladder would end at its second rung."""
    ladders = RECIPES["fig4"].ladders("demo")
    assert max(map(len, ladders)) == 6
    planned = trial.first_steps({"fig4": ladders}, 5)["fig4"]
    assert [len(ladder) for ladder in planned] == [1] * 36


def test_one_of_each_kind_is_the_first_of_it():
    ladders = RECIPES["table1"].ladders("demo")
    kinds = trial.one_of_each({"table1": ladders})["table1"]
    seen = [(c.optimizer.name, c.warmup.lr_init) for (c,) in kinds]
    assert seen == [("adam", 0.0), ("adam", "critical"), ("gi-adam", 0.0), ("radam", 0.0)]
    assert all(
        config == next(c for (c,) in ladders if trial.kind_of(c) == trial.kind_of(config))
        for (config,) in kinds
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"num_samples": 5}}, {"model": {"width": 9}}, {"model": {"parameterization": "mup"}},
        {"optimizer": {"name": "adam"}}, {"optimizer": {"momentum": 0.9}}, {"warmup": {"kind": "edge"}},
        {"warmup": {"lr_init": "critical"}}, {"warmup": {"decay": "cosine"}}, {"loss": "xent"}, {"batch_size": 2},
        {"measure": ("sharpness",)}, {"measure": ("sharpness",), "measure_every": 2},
    ],
)  # fmt: skip
def test_kinds_are_of_what_a_step_may_cost(changes):
    assert trial.kind_of(tiny(**changes)) != trial.kind_of(TINY)
    same = tiny(seed=3, num_steps=50, warmup={"steps": 7}, optimizer={"lr": 3.0})
    assert trial.kind_of(same) == trial.kind_of(TINY)


def test_kinds_of_a_figure_have_names_of_their_own():
    for figure in ("fig12", "fig17", "fig21", "table1", "edge-warmup"):
        kinds = {trial.kind_of(config) for config in RECIPES[figure].configs("demo")}
        assert len({trial.name_of(kind) for kind in kinds}) == len(kinds) > 1


def test_costs_are_of_the_stopped_runs_by_kind(tmp_path):
    paces = [0.5, 1.0, 3.0]
    configs = [tiny(seed=seed, num_steps=2, schedule_steps=40 + 20 * seed) for seed in range(3)]
    runs = [
        made(config, cost={"seconds_a_step": pace, "peak_memory": 100 * i})
        for i, (config, pace) in enumerate(zip(configs, paces, strict=True))
    ]
    store = stored(tmp_path, {"fig1": [*runs, made(TINY)]})
    planned = {
        "fig1": [(c,) for c in (*configs, TINY, tiny(seed=9, num_steps=2, schedule_steps=5))]
    }  # one is missing
    (found,) = trial.costs(store, planned)
    assert (found.kind, found.num_runs) == (trial.kind_of(TINY), 3)
    assert (found.seconds_a_step, found.peak_memory) == (1.0, 200)
    assert found.seconds_whole == 60.0


def test_the_peak_is_of_the_run_and_not_of_what_the_process_did_before():
    before = np.ones(2**27 // 8)  # 128 MiB, touched
    held = cost.peak_memory()
    del before
    cost.reset_peak_memory()
    again = np.ones(2**24 // 8)
    assert cost.peak_memory() >= again.nbytes
    if cost._OWN.exists():
        assert cost.peak_memory() < held - 2**26


def test_a_pace_leaves_out_the_first_step(monkeypatch):
    clock = iter([10.0, 60.0, 62.0, 65.0, 66.0])  # before the first step, and after each
    monkeypatch.setattr("edgewise.lab.training.loop.time.process_time", lambda: next(clock))
    assert train(cut(tiny(), 4)).outcome["cost"]["seconds_a_step"] == pytest.approx((66 - 60) / 3)
