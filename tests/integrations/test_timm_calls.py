"""timm's calls of a scheduler, without timm. Oracle: the rates of a linear warmup, in closed form."""

import pytest
import torch

import edgewise as ew
from edgewise.integrations.timm import TimmScheduler


@pytest.fixture
def optimizer():
    return torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=1.0)


def make(optimizer):
    return TimmScheduler(ew.LinearWarmup(optimizer, warmup_steps=4).then_until(8, "linear"))


def rates(optimizer, scheduler, updates):
    """The rates of updates; a skipped one is counted by the loop, but not made."""
    found = []
    for number, made in enumerate(updates, start=1):
        found.append(optimizer.param_groups[0]["lr"])
        if made:
            optimizer.step()
        scheduler.step_update(num_updates=number, metric=0.5)
    return found


def test_updates_move_the_rates_and_epochs_do_not(optimizer):
    scheduler = make(optimizer)
    for epoch in range(9):
        scheduler.step(epoch, metric=0.5)
    assert rates(optimizer, scheduler, [True] * 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5]
    assert not scheduler.t_in_epochs


def test_updates_that_a_scaler_skips_move_nothing(optimizer):
    found = rates(optimizer, make(optimizer), [True, False, False, True, True])
    assert found == [0.25, 0.5, 0.5, 0.5, 0.75]


def test_a_run_goes_on_from_its_state_where_timm_counts_again_from_the_epoch(optimizer):
    first = make(optimizer)
    rates(optimizer, first, [True] * 3)
    scheduler = make(torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=1.0))
    scheduler.load_state_dict(first.state_dict())
    scheduler.step_update(3)
    assert scheduler.scheduler.get_last_lr() == [1.0]
    scheduler.step_update(2)
    scheduler.step_update(3)
    with pytest.raises(ValueError, match="num_updates must be 4 at most, got 5"):
        scheduler.step_update(5)


def test_a_run_that_is_resumed_without_the_state_is_refused(optimizer):
    scheduler = make(optimizer)
    with pytest.raises(ValueError, match=r"num_updates must be 1 at most, got 8.*load_state_dict"):
        scheduler.step_update(8)
    for wrong in (scheduler.scheduler.state_dict(), {}, None):
        with pytest.raises(ValueError, match="state_dict must be what state_dict"):
            scheduler.load_state_dict(wrong)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_scales_of_groups_are_refused(optimizer):
    optimizer.param_groups[0]["lr_scale"] = 1.0
    make(optimizer).scheduler.close()
    optimizer.param_groups[0]["lr_scale"] = 0.5
    with pytest.raises(ValueError, match=r"lr_scale \(layer_decay\), got 0.5.*group\.pop\('lr_scale'\)"):
        make(optimizer)


@pytest.mark.parametrize(
    "kind", [lambda o: torch.optim.lr_scheduler.StepLR(o, 1), lambda o: o, lambda o: None]
)
def test_what_is_no_warmup_is_refused(kind, optimizer):
    with pytest.raises(TypeError, match="scheduler must be a warmup, or what its then"):
        TimmScheduler(kind(optimizer))
