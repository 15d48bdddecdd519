"""The catalogue of optimizers and warmups, and the constructors that go with it.

Ladder: the tables themselves, beside each other and beside the fields of the configs. Cannot see: whether a row says
the truth; the tests of training and of the vectorized engine do.
"""

from dataclasses import fields

import pytest

from edgewise.lab import catalogue, configs
from edgewise.lab.configs import OptimizerConfig, WarmupConfig
from edgewise.lab.training import optimizers


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
