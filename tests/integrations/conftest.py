"""The two processes that the tests of this folder may ask for something."""

import pytest

from distributed.two_ranks import TwoRanks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    return TwoRanks(tmp_path_factory.mktemp("two_ranks"))
