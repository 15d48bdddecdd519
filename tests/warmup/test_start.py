"""Where EdgeWarmup starts: no update may overwrite a matrix, also one that has no gradient at first.

Oracle: the changes that the first updates make, measured. Cannot see: whether 1 % is the right share.
"""

import itertools

import pytest
import torch
from lion_pytorch import Lion
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Muon, RMSprop

from edgewise import EdgeWarmup, Status
from edgewise.optimizers.averages import first_share

SHARE = 0.01


def train(model, optimizer, steps, *, warmup=None, lr=None, seed=0):
    """Return how much each update changes each parameter, as a share of its norm; nan of one that is zero."""
    generator = torch.Generator().manual_seed(seed)
    warmup = warmup or EdgeWarmup(optimizer, num_steps=400)
    changes = []
    for _ in range(steps):
        inputs = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :3]).square().mean()
        loss.backward()
        warmup.observe(lambda x=inputs: (model(x) - x[:, :3]).square().mean(), loss=loss)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        warmup.step()
        moved = zip(before, model.parameters(), strict=True)
        changes.append([float((p.detach() - b).norm() / b.norm()) for b, p in moved])
    return warmup, changes


def network(*, zero_head=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3, bias=False))
    if zero_head:
        nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize(
    "make_optimizer", [lambda p: AdamW(p, lr=1.0), lambda p: SGD(p, lr=100.0)], ids=["adamw", "sgd"]
)
def test_the_first_update_changes_the_matrix_that_changes_most_by_a_hundredth(make_optimizer):
    model = network()
    nn.init.constant_(model[1].weight, 100.0)  # gains that hold nearly all of the norm
    nn.init.normal_(model[2].weight, std=1e-3)
    _, [first] = train(model, make_optimizer(model.parameters()), 1)
    assert max(first[0], first[3]) == pytest.approx(SHARE, rel=0.02)


@pytest.mark.parametrize(
    ("make_optimizer", "first_of_long"),
    [
        (lambda p: SGD(p, lr=100.0, momentum=0.8), 0.2),
        (lambda p: SGD(p, lr=100.0, momentum=0.8, dampening=0.8), 1.0),
        (lambda p: SGD(p, lr=100.0, momentum=0.8, nesterov=True), 0.36),
        (lambda p: RMSprop(p, lr=100.0, momentum=0.8), 0.2),
        (lambda p: Muon(p, lr=100.0, momentum=0.8), 1.0),
        (lambda p: Lion(p, lr=100.0, betas=(0.8, 0.9)), 1.0),
        (lambda p: Adafactor(p, lr=100.0), 1.0),
    ],
    ids=["heavy ball", "dampening", "nesterov", "rmsprop", "muon", "lion", "adafactor"],
)
def test_where_updates_grow_the_first_is_the_share_of_a_hundredth_that_it_is_of_a_long_one(
    make_optimizer, first_of_long
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    _, [first] = train(model, make_optimizer(model.parameters()), 1)
    assert max(first) == pytest.approx(SHARE * first_of_long, rel=0.03)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: SGD(p, lr=1.0),
        lambda p: SGD(p, lr=1.0, momentum=0.8),
        lambda p: SGD(p, lr=1.0, momentum=0.8, dampening=0.5),
        lambda p: SGD(p, lr=1.0, momentum=0.8, nesterov=True),
        lambda p: Muon(p, lr=1.0, momentum=0.8, weight_decay=0.0),
        lambda p: Lion(p, lr=1.0, weight_decay=0.0),
        lambda p: Adam(p, lr=1.0),
    ],
    ids=["sgd", "heavy ball", "dampening", "nesterov", "muon", "lion", "adam"],
)
def test_which_share_the_first_update_is_of_a_long_one_is_seen_in_updates_of_one_gradient(make_optimizer):
    torch.manual_seed(0)
    w, gradient = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64)), torch.randn(4, 4, dtype=torch.float64)
    optimizer = make_optimizer([w])
    expected, lengths = first_share(optimizer), []
    for _ in range(300):
        before, w.grad = w.detach().clone(), gradient.clone()
        optimizer.step()
        lengths.append(float((w.detach() - before).norm()))
    assert lengths[0] / lengths[-1] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("target", [0.02, 1.0, 100.0])
def test_adafactor_whose_steps_are_capped_starts_with_a_hundredth_also_when_it_has_a_state(target):
    """A thirtieth is the longest step after 900: a quarter of it is less than a hundredth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    optimizer = Adafactor(model.parameters(), lr=1e-6)
    for _ in range(900):
        for p in model.parameters():
            p.grad = 1e-3 * torch.randn_like(p)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = target
    _, [first] = train(model, optimizer, 1)
    assert 0.1 * SHARE < max(first) < 1.03 * SHARE


def test_gradients_that_are_not_finite_are_not_those_a_matrix_waited_for():
    """As a GradScaler skips the update, it is looked at again: the rate goes down as without."""
    factors = []
    for skipped in (False, True):
        model = network(zero_head=True)
        warmup, _ = train(model, AdamW(model.parameters(), lr=1e-2), 1)
        if skipped:
            for p in model.parameters():
                p.grad = torch.full_like(p, torch.inf)
            warmup.observe(lambda: torch.tensor(1.0), loss=1.0)
        train(model, warmup.optimizer, 1, warmup=warmup, seed=1)
        factors.append(warmup.factor_at(1))
    assert factors[0] == factors[1] < 1


def test_a_matrix_of_nearly_nothing_counts_as_zero():
    """A class token of deviation 1e-6, of which a hundredth shows in no loss."""
    model = network()
    nn.init.normal_(model[2].weight, std=1e-6)
    warmup, [first] = train(model, AdamW(model.parameters(), lr=1.0), 1)
    assert warmup.fallback is None
    assert first[0] == pytest.approx(SHARE, rel=0.02)
    assert first[3] > 1.0


def test_a_matrix_that_is_zero_has_no_hundredth_and_those_behind_it_get_theirs():
    model = network(zero_head=True)
    warmup, [first, second] = train(model, AdamW(model.parameters(), lr=1.0), 2)
    assert first[0] < 1e-3  # decay alone
    assert not first[3] < torch.inf  # from nothing to something
    assert second[0] == pytest.approx(SHARE, rel=0.02)
    assert warmup.num_searches == 2
    assert warmup.factor_at(1) < warmup.factor_at(0)


def test_a_target_that_needs_no_warmup_for_the_head_needs_one_for_what_is_behind():
    model = network(zero_head=True)
    optimizer = AdamW(model.parameters(), lr=0.02)
    warmup, _ = train(model, optimizer, 1)
    assert warmup.factor_at(0) == 1.0
    assert not warmup.finished
    _, [second] = train(model, optimizer, 1, warmup=warmup)
    assert second[0] == pytest.approx(SHARE, rel=0.02)


def test_a_matrix_that_is_never_used_or_frozen_is_searched_for_no_second_time():
    for freeze in (False, True):
        model = network()
        model.unused = nn.Linear(4, 4, bias=False)
        model.unused.weight.requires_grad_(not freeze)
        model.forward = lambda x, net=model: net[2](net[1](net[0](x)))
        warmup, _ = train(model, AdamW(model.parameters(), lr=1.0), 14)
        assert warmup.num_searches == 1
        assert warmup.state_dict()["_idle"] == []


def test_a_run_resumed_between_the_two_searches_makes_the_second():
    rates = []
    for resumes in (False, True):
        model = network(zero_head=True)
        optimizer = AdamW(model.parameters(), lr=1.0)
        warmup, _ = train(model, optimizer, 1)
        assert warmup.state_dict()["_idle"] == [0]
        if resumes:
            state = warmup.state_dict()
            warmup.close()
            optimizer.param_groups[0]["lr"] = 1.0
            warmup = EdgeWarmup(optimizer, num_steps=400)
            warmup.load_state_dict(state)
        train(model, optimizer, 5, warmup=warmup, seed=1)
        rates.append(warmup.export())
    assert rates[0] == rates[1]


def test_a_loss_that_does_not_repeat_in_the_second_search_is_a_reason_to_fall_back():
    model = network(zero_head=True)
    optimizer = AdamW(model.parameters(), lr=1.0)
    warmup, _ = train(model, optimizer, 1)
    noisy = model.forward
    calls = itertools.count()
    model.forward = lambda x: noisy(x) + next(calls)
    with pytest.warns(UserWarning, match="goes on as plain linear warmup"):
        train(model, optimizer, 1, warmup=warmup)
    assert warmup.state_dict()["rate_share"]["kept"] == []
    start = warmup.factor_at(1)
    model.forward = noisy
    train(model, optimizer, 45, warmup=warmup)
    assert warmup.status is Status.FELL_BACK
    assert warmup.finished
    steps = [warmup.factor_at(update) for update in range(1, 41)]
    assert steps == pytest.approx([min(1.0, start + k / 40) for k in range(40)])


@pytest.mark.parametrize("wrong", [[7], [-1], [0.5], 1, None])
def test_a_state_with_other_matrices_is_refused(wrong):
    model = network()
    warmup = EdgeWarmup(AdamW(model.parameters(), lr=1.0), num_steps=400)
    with pytest.raises(ValueError, match=r"_idle in .* must be a list of whole numbers from 0 to 3"):
        warmup.load_state_dict(warmup.state_dict() | {"_idle": wrong})
