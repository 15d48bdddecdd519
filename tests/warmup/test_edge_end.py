"""Where EdgeWarmup ends below its target, and next to it.

Ladder: closed form (losses that stand still, so that the rate does after the climb). Cannot see: whether that rate is
good.
"""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from edgewise import EdgeWarmup, Status


def standing(target, num_steps, updates):
    """Train on a quadratic, but say that its loss stands still at the first."""
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer, rates = SGD([w], lr=target), []
    warmup = EdgeWarmup(optimizer, num_steps=num_steps)
    for _ in range(updates):
        optimizer.zero_grad()
        loss = 2 * w.square().sum()
        loss.backward()
        warmup.observe(lambda: 2 * w.square().sum(), loss=4.0)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    return warmup, rates


def test_a_run_of_known_length_ends_its_warmup_below_the_target_at_half_and_no_sooner():
    warmup, rates = standing(5.0, 600, 310)
    assert len(set(rates[60:])) == 1  # it has settled long before
    assert warmup.status is Status.HELD_BELOW_TARGET
    assert warmup.length == 301
    warmup, _ = standing(5.0, None, 310)
    assert warmup.length < 150


@pytest.mark.parametrize("num_steps", [200, None])
def test_a_rate_that_ends_within_a_fifth_of_the_target_is_set_to_it(num_steps):
    found, _ = standing(5.0, num_steps, 110)
    assert found.status is Status.HELD_BELOW_TARGET
    for factor, status in ((1.19, Status.AT_TARGET), (1.21, Status.HELD_BELOW_TARGET)):
        warmup, rates = standing(factor * found.lr_held, num_steps, 110)
        assert rates[-1] == pytest.approx(
            found.lr_held * (factor if status is Status.AT_TARGET else 1), rel=1e-9
        )
        assert max(rates[:50]) == pytest.approx(found.lr_held, rel=1e-9)
        assert warmup.status is status
