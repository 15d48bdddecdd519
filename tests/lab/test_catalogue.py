"""The catalogue of optimizers and warmups, and the constructors that go with it.

Ladder: the tables themselves, beside each other, beside the fields of the configs and beside the preconditioners that
the library knows. Cannot see: whether the rest of a row is true; the tests of training and of the vectorized engine do.
"""

from dataclasses import fields

import pytest
from torch import nn

from edgewise.lab import catalogue, configs
from edgewise.lab.configs import OptimizerConfig, WarmupConfig
from edgewise.lab.training import optimizers
from edgewise.optimizers.preconditioner import diagonal


@pytest.mark.parametrize("table", ["OPTIMIZERS", "WARMUPS"])
def test_every_row_has_its_constructor(table):
    assert (
        list(getattr(catalogue, table)) == list(getattr(optimizers, table)) == list(getattr(configs, table))
    )


def test_options_are_fields_of_the_config():
    names = {field.name for field in fields(OptimizerConfig)} - {"name", "lr", "lr_unit"}
    for row in catalogue.OPTIMIZERS.values():
        assert set(row.options) <= names
    assert {option for row in catalogue.OPTIMIZERS.values() for option in row.options} == names


def test_labels_are_distinct():
    for rows in (catalogue.OPTIMIZERS, catalogue.WARMUPS):
        assert len({row.label for row in rows.values()}) == len(rows)


def test_a_config_knows_its_row():
    assert OptimizerConfig(name="lion", lr=1.0).traits is catalogue.OPTIMIZERS["lion"]
    assert WarmupConfig(kind="edge").traits is catalogue.WARMUPS["edge"]


@pytest.mark.parametrize("name", catalogue.OPTIMIZERS)
def test_a_row_says_whether_the_library_knows_the_preconditioner(name):
    """Or its measurement is refused, or fails, only when the run is under way."""
    made = optimizers.make_optimizer(OptimizerConfig(name=name, lr=0.1), nn.Linear(2, 2), 0.1)
    known = diagonal.dispatch(type(made)) is not diagonal.dispatch(object)
    assert known is (catalogue.OPTIMIZERS[name].no_preconditioner is None)
