"""The two processes that the tests of this folder may ask for something."""

import pytest

from distributed.two_ranks import TwoRanks


@pytest.fixture(scope="session", autouse=True)  # every test here is known by it to start processes
def two_ranks(tmp_path_factory):
    return TwoRanks(tmp_path_factory.mktemp("two_ranks"))
