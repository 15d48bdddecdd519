"""The vectorized engine: many cells as one batch.

Oracle: each cell trained alone by `train`, to the rounding of batched arithmetic. Cannot see: a GPU.
"""

import math

import numpy as np
import pytest
import torch

from edgewise.lab import catalogue, plugins, sweep
from edgewise.lab.configs import DECAYED, PARAMETERIZATIONS
from edgewise.lab.engines import vectorized
from edgewise.lab.engines.batched_training import is_batchable, train_together
from edgewise.lab.engines.vectorized import chunks
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from lab_cases import TINY_LM, changed, runs_of, tiny

BATCHED = [name for name, row in catalogue.OPTIMIZERS.items() if row.elementwise]


def assert_like_alone(configs, rtol=2e-5):
    for config, together in zip(configs, train_together(configs), strict=True):
        alone = train(config)
        assert [row.keys() for row in together.rows] == [row.keys() for row in alone.rows]
        for name in ("step", "lr", "train_loss"):
            got, expected = ([row[name] for row in result.rows] for result in (together, alone))
            np.testing.assert_allclose(got, expected, rtol=1e-12 if name == "lr" else rtol)
        assert together.outcome.keys() == alone.outcome.keys()
        limits = [result.outcome["stability_limit"] for result in (together, alone)]
        np.testing.assert_equal(*limits)  # bit for bit, or NaN both
        for name, value in alone.outcome.items():
            if isinstance(value, float) and name != "seconds":
                assert together.outcome[name] == pytest.approx(value, rel=10 * rtol, nan_ok=True)
            elif name not in ("seconds", "warmup"):
                assert together.outcome[name] == value
        warmup = alone.outcome["warmup"]
        assert {
            k: v if isinstance(v, str) else pytest.approx(v, rel=1e-12) for k, v in warmup.items() if v
        } == {k: v for k, v in together.outcome["warmup"].items() if v}


def cells(base):
    """Cells that differ in all that a batch allows."""
    return [
        changed(base, seed=seed, optimizer={"lr": lr}, warmup={"steps": steps, "decay": decay})
        for seed, lr, steps, decay in [(0, 0.01, 1, "none"), (1, 0.03, 3, "none"), (0, 0.02, 2, "cosine")]
    ]


@pytest.mark.parametrize("batch_size", [None, 16])
@pytest.mark.parametrize("name", BATCHED)
def test_a_cell_trains_as_it_would_alone(name, batch_size):
    decay = {"weight_decay": 0.3} if name in DECAYED else {}
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    assert_like_alone(cells(tiny(optimizer={"name": name} | decay | momentum, batch_size=batch_size)))


def test_cells_are_looked_at_on_the_way_each_by_itself():
    base = tiny(loss="xent", num_steps=20, evaluate_every=3)
    assert_like_alone(
        [
            changed(base, optimizer={"lr": lr}, warmup={"steps": 1}, seed=seed)
            for lr, seed in ((2.0, 0), (1e12, 1), (0.1, 0))
        ]
    )


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", ["sgd", "adam", "gi-adamw", "nadam", "lion"])
def test_every_parameterization_keeps_its_rates(name, parameterization):
    model = {"parameterization": parameterization, "depth": 2}
    assert_like_alone(cells(tiny(optimizer={"name": name}, model=model, batch_size=16)))


@pytest.mark.parametrize(
    "base",
    [
        TINY_LM,
        changed(TINY_LM, model={"norm": "post", "final_norm": False}),
        tiny(model={"name": "wrn", "depth": 10, "width": 1}, batch_size=8, loss="xent", num_steps=4),
    ],
    ids=["lm", "post-lm", "wrn"],
)
def test_every_network_can_be_stacked(base):
    assert_like_alone(cells(base), rtol=1e-4)


def test_a_start_above_zero_is_each_cell_s_own():
    assert_like_alone(
        [tiny(optimizer={"lr": lr}, warmup={"steps": 4, "lr_init": 0.005}) for lr in (0.01, 0.05)]
    )


def test_rates_in_units_of_the_sharpness_are_each_cell_s_own():
    assert_like_alone([tiny(optimizer={"lr": lr, "lr_unit": "1/sharpness"}, seed=1) for lr in (0.5, 1.0)])


def test_a_diverging_cell_ends_where_it_would_alone_and_leaves_the_others():
    configs = [tiny(optimizer={"lr": lr}, warmup={"steps": 1}, num_steps=40) for lr in (0.05, 1e12)]
    fine, gone = train_together(configs)
    alone = train(configs[1])
    assert gone.outcome["diverged"]
    assert gone.outcome["num_steps"] == alone.outcome["num_steps"] < 40
    assert not math.isfinite(gone.rows[-1]["train_loss"])
    expected = [row["train_loss"] for row in train(configs[0]).rows]
    np.testing.assert_allclose([row["train_loss"] for row in fine.rows], expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("changes", "batchable"),
    [
        ({}, True),
        ({"batch_size": 4}, True),
        ({"measure": ("sharpness",)}, False),
        ({"warmup": {"kind": "catapult"}}, False),
        ({"warmup": {"lr_init": "critical"}}, False),
        ({"data": {"augment": True}}, False),
        ({"optimizer": {"name": "ri-adam"}}, False),
        ({"optimizer": {"name": "lion"}}, True),
        ({"model": {"name": "cnn"}}, False),
    ],
)
def test_what_looks_at_its_own_run_is_not_batched(changes, batchable):
    assert is_batchable(tiny(**changes)) is batchable


def test_a_chunk_is_of_one_kind_and_not_too_large(monkeypatch):
    monkeypatch.setattr(vectorized, "_CELLS_ON_CPU", 3)
    same = [tiny(optimizer={"lr": 0.01 * (i + 1)}, seed=i) for i in range(4)]
    other = tiny(optimizer={"name": "adam"})
    measured = [tiny(measure=("sharpness",), seed=i) for i in range(2)]
    assert chunks([*same, other, *measured]) == [same[:3], same[3:], [other], [measured[0]], [measured[1]]]


def test_a_chunk_that_does_not_fit_is_halved(monkeypatch):
    configs = cells(tiny())
    sizes = []

    def limited(chunk, on_step):
        sizes.append(len(chunk))
        if len(chunk) > 1:
            raise torch.OutOfMemoryError("no")
        return train_together(chunk, on_step)

    monkeypatch.setattr(vectorized, "train_together", limited)
    done = vectorized._train_what_fits(configs, lambda steps: None)
    assert [config for config, _ in done] == configs
    assert sizes == [3, 1, 2, 1, 1]


def test_the_same_sweep_gives_the_same_tables(tmp_path):
    ladder = tuple(
        tiny(optimizer={"lr": lr}, warmup={"steps": 1}, num_steps=30) for lr in (0.02, 0.05, 1e9, 1e12)
    )
    measured = tiny(measure=("sharpness",))
    threads = torch.get_num_threads()
    try:
        stores = [
            sweep.run(
                {"fig4": [ladder], "fig1": [(measured,)]}, "demo", tmp_path / engine, engine=engine, workers=2
            )
            for engine in ("local", "vectorized")
        ]
    finally:
        torch.set_num_threads(threads)
    local, batched = stores
    assert local.beyond == batched.beyond == {ladder[3].run_id}
    for figure in local.figures:
        for one, other in zip(runs_of(local, figure), runs_of(batched, figure), strict=True):
            assert one.config == other.config
            np.testing.assert_allclose(one.columns["train_loss"], other.columns["train_loss"], rtol=1e-4)
    assert list((tmp_path / "vectorized" / "runs").glob(".partial-*")) == []


def test_a_batch_that_raises_is_recorded_and_the_others_are_finished(tmp_path, monkeypatch):
    broken, whole = tiny(), tiny(optimizer={"name": "adam"})

    def refuse(chunk, on_step):
        if broken in chunk:
            raise ArithmeticError("no batch")
        return train_together(chunk, on_step)

    monkeypatch.setattr(vectorized, "train_together", refuse)
    threads = torch.get_num_threads()
    with pytest.raises(ArithmeticError, match="no batch"):
        sweep.run(
            {"fig1": [(broken,), (whole,)]}, "demo", tmp_path / "out", engine="vectorized", workers=threads
        )
    store = Store.open(tmp_path / "out")
    assert (store.runs.finished(), store.failures.ids()) == ({whole.run_id}, {broken.run_id})


def test_a_network_of_one_s_own_is_trained_alone(monkeypatch):
    monkeypatch.setitem(plugins.MODELS, "own", None)
    assert not is_batchable(tiny(model={"name": "own"}))
