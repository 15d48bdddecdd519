"""A trial leaves no trace, keeps to its budget, and sees what happens.

Ladder: bits before and after (`assert_no_side_effects`), and training afterwards beside training without a trial;
closed form (counts of calls, quadratics whose largest stable rate is 2/λ); planted bad inputs. Cannot see: whether the
rates are good for real networks, which benchmarks/advice.py measures.
"""

import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew
from cases import bias_free_mlp, every_optimizer, made
from edgewise.advice.rates import suggest
from edgewise.advice.trial import CEILING, run_trial
from edgewise.errors import LossError


def loss_fn(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))


def some_batches(number=7, size=8):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator), torch.randn(size, 2, generator=generator))
        for _ in range(number)
    ]


class Quadratic(nn.Module):
    """½ Σ λᵢ θᵢ²."""

    def __init__(self, curvatures):
        super().__init__()
        self.curvatures = torch.tensor(curvatures)
        self.theta = nn.Parameter(torch.ones(len(curvatures)))


def quadratic_loss(model, batch):
    return 0.5 * (model.curvatures * model.theta.square()).sum()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def train(model, optimizer, batches):
    for batch in batches:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()


# No trace


@pytest.mark.parametrize("cls", every_optimizer(), ids=lambda cls: cls.__name__)
def test_every_optimizer_is_as_before(cls):
    model, batches = bias_free_mlp(), [(x.double(), y.double()) for x, y in some_batches()]
    optimizer = made(cls, model)
    train(model, optimizer, batches[:3])
    loss_fn(model, batches[0]).backward()
    trial = ew.assert_no_side_effects(
        model, optimizer, lambda: run_trial(model, optimizer, loss_fn, batches, max_updates=40)
    )
    assert trial.cost > 5


def test_training_goes_on_as_without_a_trial():
    ends = []
    for tries in (False, True):
        model, batches = network(), some_batches()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        train(model, optimizer, batches)
        if tries:
            run_trial(model, optimizer, loss_fn, batches, max_updates=30)
        train(model, optimizer, batches)
        ends.append((weights(model), torch.rand(3)))
    for without, after in zip(*ends[0:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(without, after, strict=True))


def test_a_loss_that_raises_leaves_no_trace():
    model, batches, calls = network(), some_batches(), itertools.count()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def breaks(model, batch):
        if next(calls) == 20:
            raise RuntimeError("out of order")
        return loss_fn(model, batch)

    def tried():
        with pytest.raises(RuntimeError, match="out of order"):
            run_trial(model, optimizer, breaks, batches, max_updates=60)

    ew.assert_no_side_effects(model, optimizer, tried)


@pytest.mark.parametrize("own", [False, True], ids=["torch's generator", "the loader's own"])
def test_a_loader_that_shuffles_gives_the_same_batches_afterwards(own):
    inputs, targets = (torch.cat(parts) for parts in zip(*some_batches(), strict=True))

    def orders(tries):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5) if own else None
        loader = DataLoader(
            TensorDataset(inputs, targets), batch_size=16, shuffle=True, generator=generator, drop_last=True
        )
        if tries:
            model = network()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            torch.manual_seed(3)
            run_trial(model, optimizer, loss_fn, loader, max_updates=20)
        return torch.cat([x for x, _ in loader])

    assert torch.equal(orders(False), orders(True))


def test_schedulers_and_warmups_of_the_user_go_on():
    lrs = []
    for tries in (False, True):
        model, batches = network(), some_batches()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        warmup = ew.EdgeWarmup(optimizer, num_steps=60)
        scheduler = warmup.then(LambdaLR(optimizer, lambda update: 0.9**update))
        seen = []
        for i, batch in enumerate(itertools.islice(itertools.cycle(batches), 60)):
            if tries and i in (0, 20, 45):
                run_trial(model, optimizer, loss_fn, batches, max_updates=20)
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            # Dropout draws anew in the closure, as in training.
            warmup.observe(functools.partial(loss_fn, model, batch), loss=loss)
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        lrs.append((seen, weights(model)))
    assert lrs[0][0] == lrs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(lrs[0][1], lrs[1][1], strict=True))


# What is counted, and read


@pytest.mark.parametrize("max_updates", [20, 61, 200])
def test_the_budget_holds_and_progress_is_told(max_updates):
    model, calls, told = network(), itertools.count(), []

    def counted(model, batch):
        next(calls)
        return loss_fn(model, batch)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trial = run_trial(
        model,
        optimizer,
        counted,
        some_batches(),
        max_updates=max_updates,
        on_update=lambda *args: told.append(args),
    )
    assert trial.cost <= max_updates
    assert told == [(i + 1, max_updates) for i in range(trial.num_updates)]
    assert next(calls) == trial.num_updates + trial.num_forwards
    assert len(trial.path.rates) + sum(len(run.losses) for run in trial.runs) == trial.num_updates
    assert len(trial.runs) >= 3


def test_batches_that_run_out_are_read_again():
    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(some_batches(3))

    loader, model = Loader(), network()
    trial = run_trial(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, loader, max_updates=30)
    assert trial.num_passes == loader.passes > 1
    again = run_trial(
        model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, some_batches(3), max_updates=30
    )
    assert again == trial


def test_groups_keep_their_ratios_and_those_at_zero_stay():
    model = network()
    rates, still = [], model[0].weight.detach().clone()
    groups = [
        {"params": model[4].parameters(), "lr": 0.1},
        {"params": model[0].parameters(), "lr": 0.0},
        {"params": model[1].parameters(), "lr": 0.05},
    ]

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            if (
                len(self.param_groups) == 2
            ):  # in the trial: where it is seen whether a step needs a closure, all are there
                rates.append([group["lr"] for group in self.param_groups])
            assert torch.equal(model[0].weight, still)
            return super().step(closure)

    optimizer = Watching(groups)
    run_trial(model, optimizer, loss_fn, some_batches(), max_updates=30)
    assert rates
    assert all(second == pytest.approx(first / 2) for first, second in rates)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.0, 0.05]


# What it sees


@pytest.mark.parametrize("lr", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("top", [1.0, 100.0])
def test_on_a_quadratic_the_rate_is_below_two_over_its_curvature(top, lr):
    model = Quadratic([top, 0.3 * top, 0.1 * top])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    trial = run_trial(model, optimizer, quadratic_loss, [()])
    found = suggest(trial)
    assert trial.ceiling == CEILING * lr
    assert 0.1 < found.lr * top < 2
    assert 1 < found.lr_largest * top < 2 * 11  # longer warmup is taken to bear more than a short run


def test_what_nothing_can_be_found_for_says_so():
    model = Quadratic([1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        model.theta.zero_()
    found = suggest(run_trial(model, optimizer, quadratic_loss, [()], max_updates=40))
    assert found.lr is None
    assert found.pattern == "unknown"
    assert found.reason


def test_a_loss_that_is_never_finite_again_ends_the_trial():
    model, calls = network(), itertools.count()

    def breaks(model, batch):
        loss = loss_fn(model, batch)
        return loss * math.nan if next(calls) > 30 else loss

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trial = run_trial(model, optimizer, breaks, some_batches(), max_updates=200)
    assert trial.path.diverged
    assert not trial.runs
    assert suggest(trial).lr is None


# Bad input


def test_bad_input_is_refused_before_any_compute():
    model, batches = network(), some_batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def never(model, batch):
        pytest.fail("computed")

    for arguments, error, message in [
        ((model, optimizer, never, iter(batches)), TypeError, "read only once.*islice"),
        ((model, optimizer, never, batches[0][0]), TypeError, r"write \[batch\]"),
        ((model, optimizer, never, batches[0]), TypeError, r"tuple of 2 tensors: write \[batch\]"),
        ((model, optimizer, never, []), ValueError, "batches is empty"),
        ((optimizer, model, never, batches), TypeError, "swapped"),
        ((model, torch.optim.LBFGS(model.parameters()), never, batches), TypeError, "closure"),
    ]:
        with pytest.raises(error, match=message):
            run_trial(*arguments)
    with pytest.raises(ValueError, match="20 or greater, got 5"):
        run_trial(model, optimizer, never, batches, max_updates=5)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the optimizer requires a gradient"):
        run_trial(model, optimizer, never, batches)


def test_a_loss_without_a_graph_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(LossError, match="no graph"):
        run_trial(model, optimizer, lambda model, batch: torch.ones(()), some_batches())
