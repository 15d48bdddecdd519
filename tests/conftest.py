"""Every test starts from the same random state, on one thread, so that a failure repeats."""

import functools
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from edgewise.preconditioner import diagonal

settings.register_profile(
    "suite",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what isolation protects
    torch.manual_seed(0)


@pytest.fixture
def registry(monkeypatch):
    """Registrations of preconditioners are undone after the test."""
    fresh = functools.singledispatch(diagonal.dispatch(object))
    for cls in diagonal.registry:
        fresh.register(cls, diagonal.registry[cls])
    monkeypatch.setattr("edgewise.preconditioner.diagonal", fresh)
