"""The critical learning rate on two ranks. Ladder: that of this process, for the mean of both losses."""

import pytest

import edgewise as ew
from cases import MLP, mse, train_step
from distributed import critical
from distributed.setups import EVEN_SHARES, SHARES, adamw


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(critical.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(critical.fsdp)


@pytest.mark.parametrize("which", ["computed", "closure", "current"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_critical_rate_is_that_of_one_process(how, which, request):
    """Gradients are means over ranks, whatever their batches' sizes; the loss is, for a closure."""
    first, second = (rank[which] for rank in request.getfixturevalue(how))
    assert first == second
    shares = SHARES if how == "ddp" else EVEN_SHARES
    model, batches = MLP.build()
    mine = [batches[share] for share in shares]
    firsts = [batches[0] for batches in mine]
    mean_of_ranks = lambda model, firsts: sum(mse(model, batch) for batch in firsts) / len(firsts)
    optimizer = adamw(model)
    for _ in range(3):
        train_step(model, optimizer, mean_of_ranks, firsts)
    if which == "computed":
        expected = ew.critical_lr(model, optimizer, mse, batches=[*mine[0], *mine[1]], rtol=1e-3)
    elif which == "closure":
        expected = ew.critical_lr(model, optimizer, mean_of_ranks, firsts, rtol=1e-3)
    else:
        optimizer.zero_grad()
        mean_of_ranks(model, firsts).backward()
        expected = ew.critical_lr(model, optimizer, mse, batches=firsts, gradient="current", rtol=1e-3)
    assert first.status is expected.status is ew.Status.FOUND
    assert first.bracket == pytest.approx(expected.bracket, rel=2e-3)
    assert first.slope == pytest.approx(expected.slope, rel=1e-6)
    assert first.loss == pytest.approx(expected.loss, rel=1e-9)
