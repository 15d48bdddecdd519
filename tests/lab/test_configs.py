"""Configs, their checks, and the run id.

Oracle: a table of what is allowed; every field by introspection. Cannot see: whether the id of an older version
still names the same computation.
"""

import dataclasses
import json
import math
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.arguments import UnknownNameError
from edgewise.lab import configs
from edgewise.lab.configs import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    WarmupConfig,
    from_dict,
    to_dict,
)
from edgewise.lab.recipes import RECIPES, SCALES
from lab_cases import TINY, TINY_LM, changed, tiny

BASE = changed(TINY, model={"width": 32}, batch_size=4, measure=("sharpness",))
OTHER = {  # part or run → field → a value that BASE does not have
    "data": {"name": "stdlib-text", "context": 16, "num_samples": 100, "augment": True},
    "model": {
        "name": "lm",
        "depth": 2,
        "width": 64,
        "parameterization": "mup",
        "norm": "post",
        "final_norm": False,
    },
    "optimizer": {
        "name": "adam",
        "lr": 0.06,
        "lr_unit": "1/sharpness",
        "momentum": 0.9,
        "betas": (0.8, 0.999),
        "eps": 1e-7,
        "weight_decay": 0.1,
    },
    "warmup": {"kind": "catapult", "steps": 2, "lr_init": "critical", "decay": "cosine"},
    "run": {
        "loss": "xent",
        "num_steps": 7,
        "schedule_steps": 60,
        "batch_size": None,
        "measure": ("sharpness", "preconditioned_sharpness"),
        "measure_every": 2,
        "evaluate_every": 3,
        "measure_rtol": 0.1,
        "seed": 1,
    },
}
PARTS = {"data": DataConfig, "model": ModelConfig, "optimizer": OptimizerConfig, "warmup": WarmupConfig}
FIELDS = [
    *((part, f.name) for part, cls in PARTS.items() for f in dataclasses.fields(cls)),
    *(("run", f.name) for f in dataclasses.fields(RunConfig) if f.name not in PARTS),
]


@pytest.fixture
def any_model_with_any_data(monkeypatch):
    """So that the two names can be changed one by one."""
    monkeypatch.setattr(configs, "MODEL_DATA", dict.fromkeys(configs.MODELS, configs.DATA))


def with_other(part, name):
    value = OTHER[part][name]  # a KeyError here: give a new field another value above
    return changed(BASE, **({name: value} if part == "run" else {part: {name: value}}))


@pytest.mark.usefixtures("any_model_with_any_data")
@pytest.mark.parametrize(("part", "name"), FIELDS)
def test_each_field_decides_the_run_id(part, name):
    other = with_other(part, name)
    assert other != BASE
    assert other.run_id != BASE.run_id
    assert from_dict(to_dict(other)) == other


@pytest.mark.usefixtures("any_model_with_any_data")
def test_all_ids_differ_and_are_names_of_folders():
    ids = {with_other(part, name).run_id for part, name in FIELDS} | {BASE.run_id}
    assert len(ids) == len(FIELDS) + 1
    assert all(len(run_id) == 12 and set(run_id) <= set("0123456789abcdef") for run_id in ids)


def test_the_id_is_that_of_the_stored_results_of_older_commits():
    """If this fails, folders made before can no longer be continued: then raise _SCHEMA and change it here."""
    assert TINY.run_id == "2d74161b3dc8"


def test_the_id_changes_with_the_schema(monkeypatch):
    before = TINY.run_id
    monkeypatch.setattr(configs, "_SCHEMA", 3)
    assert tiny().run_id != before


def test_only_runs_in_units_of_a_text_s_sharpness_have_got_new_ids(monkeypatch):
    """These were once in units of the sharpness on the beginning of the text, and are other runs now."""
    on_text = {"data": {"name": "stdlib-text"}, "model": {"name": "lm", "width": 32}}
    for parts, is_new in (
        ({"optimizer": {"lr_unit": "1/sharpness"}} | on_text, True),
        (on_text, False),
        ({"optimizer": {"lr_unit": "1/sharpness"}}, False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(configs, "_SCHEMA_TEXT_UNIT", 2)
            old = tiny(**parts).run_id
        assert (tiny(**parts).run_id != old) is is_new


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"optimizer": {"lr": 1.0}}, {"optimizer": {"lr": 1}}),
        ({"optimizer": {"momentum": 0.0}}, {"optimizer": {"momentum": 0}}),
        ({"optimizer": {"eps": 1.0}}, {"optimizer": {"eps": 1}}),
        ({"optimizer": {"betas": (0.0, 0.5)}}, {"optimizer": {"betas": (0, 0.5)}}),
        ({"warmup": {"lr_init": 0.0}}, {"warmup": {"lr_init": 0}}),
        ({"measure_rtol": 1.0}, {"measure_rtol": 1}),
        ({"seed": 3}, {"seed": np.int64(3)}),
        ({"num_steps": 9}, {"num_steps": np.int32(9)}),
        ({"model": {"width": 16}}, {"model": {"width": np.int64(16)}}),
        ({"optimizer": {"lr": 0.5}}, {"optimizer": {"lr": np.float32(0.5)}}),
    ],
)
def test_equal_configs_have_equal_ids(one, same):
    assert tiny(**one) == tiny(**same)
    assert tiny(**one).run_id == tiny(**same).run_id
    assert hash(tiny(**one)) == hash(tiny(**same))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("figure", RECIPES)
def test_every_config_survives_json(figure, scale):
    for config in RECIPES[figure].configs(scale):
        again = from_dict(json.loads(json.dumps(to_dict(config))))
        assert again == config
        assert again.run_id == config.run_id


@given(
    lr=st.floats(1e-12, 1e12),
    seed=st.integers(0, 2**40),
    steps=st.integers(1, 10**6),
    betas=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
    lr_init=st.one_of(st.just("critical"), st.floats(1e-9, 1)),
    batch_size=st.one_of(st.none(), st.integers(1, 10**6)),
    measure=st.lists(st.sampled_from(configs.MEASUREMENTS), unique=True).map(tuple),
)
def test_any_config_survives_json(lr, seed, steps, betas, lr_init, batch_size, measure):
    config = tiny(
        optimizer={"lr": lr, "betas": betas},
        warmup={"steps": steps, "lr_init": lr_init},
        num_steps=steps,
        batch_size=batch_size,
        measure=measure,
        seed=seed,
    )
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert again.run_id == config.run_id


@pytest.mark.parametrize(("part", "name"), [("data", "mine"), ("model", "mine")])
def test_a_stored_name_needs_no_recipe_and_a_new_one_does(part, name):
    values = to_dict(TINY)
    values[part]["name"] = name
    again = from_dict(values)
    assert getattr(again, part).name == name
    assert to_dict(again) == values
    with pytest.raises(UnknownNameError, match=f"unknown {part} 'mine'"):
        tiny(**{part: {"name": name}})
    with pytest.raises(UnknownNameError, match="unknown loss"):
        from_dict(values | {"loss": "mine"})
    with pytest.raises(UnknownNameError, match=f"unknown {part} 3"):
        from_dict(values | {part: values[part] | {"name": 3}})


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.seed = 1


COUNTS = [("data", "context"), ("model", "depth"), ("model", "width"), ("warmup", "steps")]
COUNTS += [("run", "num_steps"), ("run", "measure_every"), ("run", "batch_size")]
BAD_COUNTS = [
    (0, ValueError, "must be 1 or greater, got 0"),
    (-1, ValueError, "must be 1 or greater, got -1"),
    (True, TypeError, "must be a whole number, got True of type bool"),
    (2.0, TypeError, r"must be a whole number, got 2\.0 of type float"),
    (math.nan, TypeError, "must be a whole number, got nan of type float"),
]
BAD_POSITIVES = [
    (0, ValueError, "must be a finite number greater than 0, got 0"),
    (-1.0, ValueError, r"must be a finite number greater than 0, got -1\.0"),
    (math.nan, ValueError, "must be a finite number greater than 0, got nan"),
    (math.inf, ValueError, "must be a finite number greater than 0, got inf"),
    (True, TypeError, "must be a number, got True of type bool"),
    ("1", TypeError, "must be a number, got '1' of type str"),
    (None, TypeError, "must be a number, got None"),
]
BAD_NONNEGATIVES = [
    (-1e-9, ValueError, "must be a finite number, 0 or greater, got -1e-09"),
    (math.nan, ValueError, "must be a finite number, 0 or greater, got nan"),
    (False, TypeError, "must be a number, got False of type bool"),
]
BAD = [
    *((part, name, *bad) for part, name in COUNTS for bad in BAD_COUNTS),
    *((*where, *bad) for where in [("optimizer", "lr"), ("run", "measure_rtol")] for bad in BAD_POSITIVES),
    *(
        (*where, *bad)
        for where in [("optimizer", "momentum"), ("optimizer", "eps"), ("warmup", "lr_init")]
        for bad in BAD_NONNEGATIVES
    ),
    ("warmup", "lr_init", "critcal", UnknownNameError, "unknown lr_init 'critcal'; known: critical. Did .* 'critical'"),
    ("optimizer", "momentum", 1, ValueError, "momentum must be from 0 to below 1, got 1"),
    ("optimizer", "momentum", 1.5, ValueError, r"momentum must be from 0 to below 1, got 1\.5"),
    ("optimizer", "momentum", math.inf, ValueError, "momentum must be a finite number, 0 or greater, got inf"),
    ("optimizer", "betas", (1.0, 0.9), ValueError, r"betas must be from 0 to below 1, got 1\.0"),
    ("optimizer", "betas", (0.9, 1.1), ValueError, r"betas must be from 0 to below 1, got 1\.1"),
    ("optimizer", "betas", (0.9,), ValueError, r"betas must be two numbers from 0 to below 1, got \(0\.9,\)"),
    ("optimizer", "betas", (0.9, 0.9, 0.9), ValueError, "betas must be two numbers from 0 to below 1"),
    ("optimizer", "betas", (0.9, True), TypeError, "betas must be a number, got True"),
    ("optimizer", "betas", (-0.1, 0.9), ValueError, "betas must be a finite number, 0 or greater"),
    ("data", "num_samples", 0, ValueError, "num_samples must be 1 or greater, got 0"),
    ("data", "augment", "yes", TypeError, "augment must be True or False, got 'yes'"),
    ("run", "seed", True, TypeError, "seed must be a whole number, got True of type bool"),
    ("run", "seed", -1, ValueError, "seed must be 0 or greater, got -1"),
    ("run", "seed", 1.5, TypeError, r"seed must be a whole number, got 1\.5"),
    ("data", "name", "digit", UnknownNameError, "unknown data 'digit'; known: .* Did .* 'digits'"),
    ("model", "name", "fnc", UnknownNameError, "unknown model 'fnc'; known: cnn, fcn, lm, wrn. Did you mean 'fcn'"),
    ("model", "name", "wrn", ValueError, r"depth of a WRN must be 6n \+ 4: 10, 16, 22, …; got 1"),
    ("model", "name", "cnnn", UnknownNameError, "unknown model 'cnnn'; known: cnn, .* Did you mean 'cnn'"),
    ("optimizer", "name", "lyon", UnknownNameError, "unknown optimizer 'lyon'; .* Did you mean 'lion'"),
    ("model", "norm", "past", UnknownNameError, "unknown norm 'past'; known: post, pre. Did you mean 'post'"),
    ("model", "final_norm", 1, TypeError, "final_norm must be True or False, got 1"),
    ("optimizer", "weight_decay", -1, ValueError, "weight_decay must be a finite number, 0 or greater, got -1"),
    ("model", "name", "lm", ValueError, "width of an LM must be a multiple of 32, its head width, got 8"),
    ("data", "name", "stdlib-text", ValueError, r"model 'fcn' takes data of its kind \(digits.*got 'stdlib-text'"),
    ("model", "parameterization", "simple-up", UnknownNameError, "unknown parameterization .* 'simple-mup'"),
    ("optimizer", "name", "gi-adm", UnknownNameError, "unknown optimizer .* Did you mean 'gi-adam'"),
    ("optimizer", "lr_unit", "sharpness", UnknownNameError, "unknown lr_unit .* Did you mean '1/sharpness'"),
    ("warmup", "kind", "catapults", UnknownNameError, "unknown warmup 'catapults'; known: catapult, edge, linear"),
    ("warmup", "decay", "cosin", UnknownNameError, "unknown decay 'cosin'; known: cosine, none. Did you mean 'cosine'"),
    ("run", "loss", "mes", UnknownNameError, "unknown loss 'mes'; known: mse, xent. Did you mean 'mse'"),
    ("run", "measure", ("sharpnes",), UnknownNameError, "unknown measurement 'sharpnes'.* Did you mean 'sharpness'"),
    ("run", "num_steps", 2, ValueError, "warmup_steps must be at most num_steps = 2, got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "name", "value", "error", "message"), BAD)
def test_a_bad_value_is_refused_where_it_is_given(part, name, value, error, message):
    with pytest.raises(error, match=message):
        tiny(**({name: value} if part == "run" else {part: {name: value}}))


@pytest.mark.parametrize(
    ("width", "error", "message"),
    [
        *(
            (width, ValueError, f"multiple of 32, its head width, got {width}")
            for width in (1, 16, 33, 48, 100)
        ),
        (0, ValueError, "width must be 1 or greater, got 0"),
        ("64", TypeError, "width must be a whole number, got '64' of type str"),
        (64.0, TypeError, r"width must be a whole number, got 64\.0 of type float"),
    ],
)
def test_a_language_model_has_whole_heads(width, error, message):
    with pytest.raises(error, match=message):
        changed(TINY_LM, model={"width": width})


@pytest.mark.parametrize("width", [32, 64, 96])
def test_widths_of_whole_heads_are_taken(width):
    assert changed(TINY_LM, model={"width": width}).model.width == width


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_a_wide_residual_network_has_three_stages_of_whole_blocks(depth):
    assert tiny(model={"name": "wrn", "depth": depth, "width": 1}).model.depth == depth


@pytest.mark.parametrize("depth", [4, 11, 12, 15])
def test_other_depths_of_a_wide_residual_network_are_refused(depth):
    with pytest.raises(ValueError, match=r"depth of a WRN must be 6n \+ 4"):
        tiny(model={"name": "wrn", "depth": depth, "width": 1})


@pytest.mark.parametrize("parameterization", ["ntp", "mup", "simple-mup"])
def test_a_network_with_batch_norm_is_in_standard_parameterization(parameterization):
    assert tiny(model={"name": "cnn"}).model.parameterization == "sp"
    with pytest.raises(
        ValueError, match=f"parameterization of a CNN must be 'sp', .* got '{parameterization}'"
    ):
        tiny(model={"name": "cnn", "parameterization": parameterization})


def test_lion_has_no_preconditioned_sharpness():
    assert tiny(optimizer={"name": "lion"}, measure=("sharpness",)).measure == ("sharpness",)
    with pytest.raises(
        ValueError, match="measure must not have 'preconditioned_sharpness' with optimizer 'lion'"
    ):
        tiny(optimizer={"name": "lion"}, measure=("sharpness", "preconditioned_sharpness"))


def test_each_model_goes_with_its_own_data_only():
    assert configs.MODEL_DATA.keys() == set(configs.MODELS)
    assert set().union(*configs.MODEL_DATA.values()) == set(configs.DATA)
    with pytest.raises(
        ValueError, match=r"model 'lm' takes data of its kind \(stdlib-text, .*\), got 'digits'"
    ):
        changed(TINY_LM, data={"name": "digits"})
    both = tiny(data={"name": "stdlib-text"}, model={"name": "lm", "width": 32})
    assert (both.data.name, both.model.name) == ("stdlib-text", "lm")


@pytest.mark.parametrize("momentum", [0, 0.999999])
def test_momentum_goes_from_zero_to_below_one(momentum):
    assert tiny(optimizer={"momentum": momentum}).optimizer.momentum == momentum


@pytest.mark.parametrize("cls", [*PARTS.values(), RunConfig])
def test_positional_arguments_are_refused(cls):
    with pytest.raises(TypeError, match="positional"):
        cls("digits")


def test_the_longest_warmup_is_the_whole_run():
    assert tiny(warmup={"steps": 6}).warmup.steps == TINY.num_steps


def test_every_field_has_a_type_that_json_knows():
    for cls in [*PARTS.values(), RunConfig]:
        assert typing.get_type_hints(cls).keys() == {f.name for f in dataclasses.fields(cls)}
