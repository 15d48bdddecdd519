"""A loss that is another one again is refused by name, or gives a status: no critical rate of it is nonsense.

Ladder: closed form (η_c = 4 of a quadratic, over kinds and sizes of noise and 20 seeds each; counted evaluations).
Cannot see: a loss that repeats while it is looked at, and not later.
"""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

import edgewise as ew
from cases import MLP, mse
from edgewise.critical import Searching, search_critical_lr
from edgewise.critical.best_step import search_best_step
from edgewise.errors import LossError, UnrepeatableError
from edgewise.loss.repeats import repeated


def own_generator(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda: size * torch.randn((), generator=generator)


def numpy_generator(size, seed):
    generator = np.random.default_rng(seed)
    return lambda: size * float(generator.standard_normal())


def counter(size, seed):
    calls = []
    return lambda: calls.append(1) or size * len(calls)


def alternating(size, seed):
    calls = []
    return lambda: calls.append(1) or size * (len(calls) % 2)


def carried(size, seed):
    state = [0.0]

    def noise():
        state[0] = 0.9 * state[0] + size
        return state[0]

    return noise


def quadratic():
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    return model, SGD(model.parameters(), lr=1e-3), torch.eye(4)


@pytest.mark.parametrize("method", ["secant", "paper"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 3e-4, 0.02, 1.0])
@pytest.mark.parametrize("kind", [own_generator, numpy_generator, counter, alternating, carried])
def test_a_rate_that_is_found_is_right(kind, size, offset, method):
    told = 0
    for seed in range(20):
        model, optimizer, x = quadratic()
        noise = kind(size * (1 + offset), seed)
        loss_fn = lambda model, x, noise=noise: model(x).square().mean() + offset + noise()
        try:
            found = ew.critical_lr(model, optimizer, loss_fn, x, method=method)
        except LossError as error:
            told += "no module differs, loss_fn or batches do" in str(error)
        else:
            is_found = found.status in (ew.Status.FOUND, ew.Status.MULTIPLE_CROSSINGS)
            assert not is_found or found.lr == pytest.approx(4, rel=0.1)
            assert is_found or found.status is ew.Status.BELOW_RESOLUTION
    assert told == 20 or size < 0.02


def test_a_little_noise_is_the_noise_floor():
    model, optimizer, x = quadratic()
    noise = alternating(1e-4, 0)
    found = ew.critical_lr(model, optimizer, lambda model, x: model(x).square().mean() + noise(), x)
    assert found.noise_floor == pytest.approx(4e-4 / found.lr, rel=0.01)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], (1.0, 0.0)),
        ([2.0, 0.5, 1.0], (2.0, 1.5)),
        ([float("nan"), 1.0, 1.0], (pytest.approx(float("nan"), nan_ok=True), float("inf"))),
    ],
)
def test_the_width_is_that_of_all_evaluations(values, expected):
    left = iter(values)
    assert repeated(1.0, lambda: next(left)) == expected
    assert list(left) == []


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x * (1 + 0.1 * torch.randn(x.shape, generator=self.generator))


class Counted(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def noisy(layer):
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), layer()), nn.Linear(4, 1))
    batch = torch.randn(8, 3), torch.randn(8, 1)
    mse(model, batch).backward()
    return model, Adam(model.parameters(), lr=0.01), batch


ENTRIES = {
    "sharpness": lambda m, o, b: ew.sharpness(m, mse, [b]),
    "preconditioned_sharpness": lambda m, o, b: ew.preconditioned_sharpness(m, mse, [b], o),
    "Monitor": lambda m, o, b: ew.Monitor(m, o, mse, every=1).observe(b),
    "critical_lr": lambda m, o, b: ew.critical_lr(m, o, mse, b),
    "current": lambda m, o, b: ew.critical_lr(m, o, mse, batches=[b, b], gradient="current"),
    "search_critical_lr": lambda m, o, b: search_critical_lr(o, lambda: mse(m, b), Searching()),
    "search_best_step": lambda m, o, b: search_best_step(
        o, lambda: mse(m, b), max_lr=1.0, max_change=1.0, max_forwards=20
    ),
}


@pytest.mark.parametrize("layer", [Noisy, Counted])
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_names_the_layer(entry, layer):
    model, optimizer, batch = noisy(layer)
    with pytest.raises(LossError, match=rf"first to differ is 1\.1 \({layer.__name__}\)"):
        ew.assert_no_side_effects(model, optimizer, lambda: ENTRIES[entry](model, optimizer, batch))


WARMUPS = {
    "critical": lambda o: ew.LinearWarmup(o, warmup_steps=9, lr_init="critical"),
    "edge": ew.EdgeWarmup,
    "catapult": ew.CatapultWarmup,
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("layer", [Noisy, Counted])
@pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS)
def test_a_warmup_falls_back_and_names_the_layer(make, layer, given):
    model, optimizer, batch = noisy(layer)
    warmup, calls = make(optimizer), []
    loss = mse(model, batch).detach() if given else None
    with pytest.warns(UserWarning, match=rf"plain linear warmup.*1\.1 \({layer.__name__}\)"):
        warmup.observe(lambda: calls.append(1) or mse(model, batch), loss=loss)
    assert layer.__name__ in warmup.fallback
    assert warmup.report().num_forwards == len(calls)
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it goes on
        warmup.step()


@pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS)
def test_a_given_loss_that_the_closure_gives_again_saves_the_forward(make):
    def forwards(loss_of):
        torch.manual_seed(0)
        model, optimizer, batch = noisy(nn.Identity)
        warmup = make(optimizer)
        warmup.observe(lambda: mse(model, batch), loss=loss_of(mse(model, batch).detach()))
        return warmup.report().num_forwards

    assert forwards(lambda loss: loss) == forwards(lambda loss: 1.01 * loss) - 1


def test_the_error_counts_what_it_took():
    model, optimizer, batch = noisy(Noisy)
    calls = []
    with pytest.raises(UnrepeatableError) as caught:
        search_critical_lr(optimizer, lambda: calls.append(1) or mse(model, batch), Searching())
    assert caught.value.num_forwards == len(calls) == 6  # four values, and two to find the layer


# Losses on batches: the layer is named


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("layer", [OwnGenerator, Counter])
def test_a_layer_that_does_not_repeat_is_named(layer):
    model, batches = MLP.build()
    noisy = nn.Sequential(nn.Sequential(model[0], layer()), nn.Tanh(), model[2])
    with pytest.raises(LossError, match=rf"first to differ is 0\.1 \({layer.__name__}\).*model\.eval\(\)"):
        ew.sharpness(noisy, mse, batches)


def test_a_loss_function_that_does_not_repeat_is_named():
    model, batches = MLP.build()
    generator = torch.Generator().manual_seed(0)
    loss_fn = lambda m, b: mse(m, b) + torch.rand((), generator=generator)
    with pytest.raises(LossError, match="no module differs, loss_fn or batches do"):
        ew.sharpness(model, loss_fn, batches)


def test_dropout_repeats_and_a_warm_start_is_trusted():
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    _, batches = MLP.build()
    first = ew.sharpness(model, mse, batches)
    counted = nn.Sequential(model[0], model[1], nn.Sequential(Counter(), model[2]))
    with pytest.raises(LossError, match=r"2\.0 \(Counter\)"):
        ew.sharpness(counted, mse, batches)
    calls = []
    ew.sharpness(model, lambda m, b: calls.append(1) or mse(m, b), batches[:1], start=first)
    assert len(calls) == 1


def test_batches_of_other_values_in_each_pass_do_not_repeat():
    class Drifting:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(torch.full((4, 3), float(self.passes)).double(), torch.ones(4, 2).double())])

    model, _ = MLP.build()
    with pytest.raises(LossError, match="loss_fn or batches do"):
        ew.sharpness(model, mse, Drifting())
