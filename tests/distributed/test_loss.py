"""One objective on two ranks. Ladder: the objective of this process, on the batches of both."""

import pytest
import torch

from cases import MLP
from distributed import loss
from distributed.setups import EVEN_SHARES, SHARES


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(loss.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(loss.fsdp)


def test_value_and_gradient_are_those_of_one_process(ddp, fsdp):
    for ranks, shares in ((ddp, SHARES), (fsdp, EVEN_SHARES)):
        model, batches = MLP.build()
        batches = [batch for share in shares for batch in batches[share]]
        expected = loss.evaluated(model, batches)
        for rank in ranks:
            assert rank["value"] == pytest.approx(expected["value"], rel=1e-12)
        norms = [rank["gradient"].norm() for rank in ranks]
        norm = norms[0] if ranks is ddp else torch.stack(norms).norm()
        torch.testing.assert_close(norm, expected["gradient"].norm(), rtol=1e-12, atol=0)
    for rank in ddp:
        model, batches = MLP.build()
        expected = loss.evaluated(model, batches)["gradient"]
        torch.testing.assert_close(rank["gradient"], expected, rtol=1e-10, atol=1e-12)
