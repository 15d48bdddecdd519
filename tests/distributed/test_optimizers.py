"""GI-Adam on shards. Ladder: the same steps in this process, on the mean of both losses."""

import pytest
import torch

from distributed import optimizers
from distributed.two_ranks import NUM


@pytest.fixture(scope="module")
def gi_adam(two_ranks):
    return two_ranks.run(optimizers.gi_adam)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", optimizers.GI_ADAMS)
def test_gi_adam_on_shards_trains_the_parameters_of_one_process(gi_adam, name, scaled):
    expected = optimizers.train_embedding(*optimizers.GI_ADAMS[name], range(NUM), scaled=scaled)
    for rank in gi_adam:
        for found, one in zip(rank[name, scaled], expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-13)


def test_rejected_steps_leave_no_trace_on_shards(gi_adam):
    for name in optimizers.GI_ADAMS:
        for found, unscaled in zip(gi_adam[0][name, True], gi_adam[0][name, False], strict=True):
            torch.testing.assert_close(found, unscaled, rtol=1e-12, atol=1e-13)
