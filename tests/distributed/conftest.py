"""The two processes, which all tests of this folder may ask for something; they start when the first one does."""

import pytest

from distributed.two_ranks import TwoRanks


@pytest.fixture(scope="session", autouse=True)
def two_ranks(tmp_path_factory):
    ranks = TwoRanks(tmp_path_factory.mktemp("two_ranks"))
    yield ranks
    ranks.stop()
