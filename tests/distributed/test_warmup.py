"""Warmups on two ranks. Ladder: the warmup of this process, on the mean of both losses."""

import pytest

from cases import MLP, mse
from distributed import warmup
from distributed.setups import EVEN_SHARES, SHARES


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(warmup.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(warmup.fsdp)


@pytest.fixture(scope="module")
def apart(two_ranks):
    return two_ranks.run(warmup.apart)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", warmup.WARMUPS)
def test_warmups_are_those_of_one_process_on_all_ranks(how, kind, request):
    """Each rank sees the loss of its own batch only."""
    first, second = (rank[kind] for rank in request.getfixturevalue(how))
    assert first == second
    model, batches = MLP.build()
    firsts = [batches[share][0] for share in (SHARES if how == "ddp" else EVEN_SHARES)]
    expected = warmup.warmed_rates(model, lambda model: sum(mse(model, batch) for batch in firsts) / 2, kind)
    assert first == pytest.approx(expected, rel=1e-3)
    assert 0 < first[0] < 20.0  # searched, and found below the target
    assert first[-1] > first[0] or kind == "catapult"  # which waits longer


@pytest.mark.parametrize("stop", [3, 30])
def test_the_state_of_one_rank_is_all_that_sharded_parameters_need(stop, fsdp):
    """No copy of a shard is in it; both ranks go on alike, and take their own shards for what they compare with."""
    first, second = (rank["resumed"][stop] for rank in fsdp)
    assert first == second
    assert (first["tensors"], first["kept"], first["fallback"]) == ([], 0, None)
    assert first["climbing"] == (stop == 3)
    assert all(0 < rate <= 0.5 for rate in first["rates"])
    assert first["rates"][-1] > 0.5 * first["rates"][stop - 1]


def test_a_loss_that_is_not_a_number_on_one_rank_is_none_in_a_warmup(ddp):
    for rank in ddp:
        assert rank["not a number on rank 1"].startswith(
            "LossError: the loss of the current parameters is nan"
        )


@pytest.mark.parametrize("kind", warmup.FIRST_LOOKS)
def test_a_closure_of_one_model_that_sees_this_rank_s_loss_alone_is_refused_on_all(kind, apart):
    for rank in apart:
        told = [rank["inside", kind, True], rank["inside", kind, False], rank["averaged by hand", kind]]
        for text in told:
            assert text.startswith("LossError: the 2 processes train one model")
            assert "call the DistributedDataParallel module in it" in text


@pytest.mark.parametrize("kind", warmup.FIRST_LOOKS)
def test_ranks_that_see_the_same_loss_or_train_models_of_their_own_are_left_alone(kind, apart):
    for rank in apart:
        for case in (
            ("wrapped", kind, True),
            ("wrapped", kind, False),
            ("one start", kind),
            ("two starts", kind),
        ):
            assert rank[case] == ""
        assert rank["on one rank", kind] == ""  # and waits for no other
