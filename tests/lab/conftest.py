"""What holds for all tests of the laboratory."""

import pytest

from edgewise.lab import data, plugins


@pytest.fixture(autouse=True)
def no_plugins_left():
    """What a recipe file registered is forgotten after the test."""
    yield
    plugins.DATA.clear()
    plugins.MODELS.clear()
    data._own.cache_clear()
