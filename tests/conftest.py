"""Every test starts from the same random state, on one thread, so that a failure repeats."""

import functools
import gc
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

import sets
from edgewise.optimizers.preconditioner import diagonal

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


def pytest_collection_modifyitems(items):
    """Mark the tests; files that start processes come first, so that none of them is begun last."""
    marks = functools.cache(lambda *functions: sets.marks_of(functions))
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = (found[-1].func for found in item._fixtureinfo.name2fixturedefs.values())
            for mark in marks(item.function, *fixtures):
                item.add_marker(mark)
            if item.originalname in sets.SLOW:
                item.add_marker("slow")
    first = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in first)


def pytest_collection_finish():
    gc.freeze()  # thousands of tests are no garbage: many a test collects it


@pytest.fixture(autouse=True)
def _no_process(request):
    """What `make quick` runs starts none."""
    if any(map(request.node.get_closest_marker, sets.LEFT_OUT)):
        yield
        return
    with sets.no_process():
        yield


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
    monkeypatch.setattr("edgewise.optimizers.preconditioner.diagonal", fresh)
