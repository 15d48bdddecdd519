"""An UpdateLoss on two ranks. Ladder: the run of this process, on the micro-batches of both."""

import pytest

from cases import MLP
from distributed import update_loss
from distributed.setups import EVEN_SHARES, SHARES


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(update_loss.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(update_loss.fsdp)


@pytest.mark.parametrize("way", ["wrapped", "inside", "sharded"])
@pytest.mark.parametrize("kind", update_loss.WARMUPS)
def test_rates_and_curvatures_are_those_of_one_process(way, kind, request):
    """Also where the loss goes around the wrapper, and where one rank alone has shares to find."""
    first, second = request.getfixturevalue("fsdp" if way == "sharded" else "ddp")
    first, second = first[kind, way], second[kind, way]
    assert first["rates"] == second["rates"]
    assert first["sharpness"] == second["sharpness"]
    assert first["forwards"] == second["forwards"]
    assert way == "sharded" or first["weights"] == second["weights"]
    model, batches = MLP.build()
    mine = [batches[share] for share in (EVEN_SHARES if way == "sharded" else SHARES)]
    every = update_loss.UPDATES if way == "sharded" else 4
    expected = update_loss.alone(model, mine, kind, every=every)
    assert first["rates"] == pytest.approx(expected["rates"], rel=1e-3)
    assert first["sharpness"] == pytest.approx(expected["sharpness"], rel=1e-3)
    assert 0 < first["rates"][0] < 20.0


def test_what_one_rank_cannot_explain_is_raised_on_both(ddp):
    first, second = (rank["one rank cannot tell"] for rank in ddp)
    assert first.startswith("EdgewiseError: rank 1 of 2 failed")
    assert second.startswith("LossError: the losses added are 7 times what loss_fn returns")
