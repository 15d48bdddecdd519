"""Measuring on two ranks changes nothing. Oracle: the bits of the training that is not measured."""

import pytest

from distributed import isolation


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(isolation.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(isolation.fsdp)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_training_is_the_same_with_and_without_measuring(how, request):
    for rank in request.getfixturevalue(how):
        assert len(rank["measured"]) == 4 + 3 * 4  # parameters; steps and two moments of each
        assert rank["measured"] == rank["unmeasured"]


def test_hooks_of_the_shards_are_silent_in_a_measurement(fsdp):
    for rank in fsdp:
        assert (rank["hooks in a measurement"], rank["hooks in training"]) == (0, 4)
