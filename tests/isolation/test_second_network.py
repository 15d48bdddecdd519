"""What the loss touches outside the model is as it was: a second network that only the loss, or a closure, knows.

Ladder: closed form (bits, modes, flags and gradients before and after, by `assert_no_side_effects` with the second
network as the model), for every entry point. Cannot see: attributes of a module other than parameters and buffers.
"""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import edgewise as ew
from cases import train_step
from edgewise.errors import SecondDerivativeError, SideEffectError
from edgewise.isolation import isolated
from oracles import bits


class Centred(nn.Module):
    """A loss with a buffer, in place and anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.centre.mul_(0.9).add_(0.1)
        self.calls = self.calls + 1
        return x * (1 + self.centre.sum())


def batch_norm():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), lambda second, x: second(x)


def loss_module():
    return Centred(), lambda second, x: second(x)


def follower():
    """A teacher whose weights the loss moves before it calls it."""

    def use(second, x):
        for parameter in second.parameters():
            parameter.data.mul_(0.9).add_(0.1)
        return second(x)

    return nn.Linear(3, 3), use


def switched():
    def use(second, x):
        return second.eval()(x)

    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()), use


def frozen():
    def use(second, x):
        second.requires_grad_(False)
        return second(x)

    return nn.Linear(3, 3), use


def loaded():
    def use(second, x):
        second.load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(3)})
        return second(x)

    return nn.Linear(3, 3), use


def differentiated():
    def use(second, x):
        second.zero_grad()
        with torch.enable_grad():
            second(x.detach()).sum().backward()
        return second(x)

    return nn.Linear(3, 3), use


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), lambda second, x: second(x)


def wrapped_anew():
    """Part of a module that is made at each call."""
    return nn.BatchNorm1d(3), lambda second, x: nn.Sequential(second, nn.LayerNorm(3), nn.Linear(3, 3))(x)


SECONDS = {
    make.__name__: make
    for make in (batch_norm, loss_module, follower, switched, frozen, loaded, differentiated, wrapped_anew)
} | {"scripted": pytest.param(scripted, marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"))}


def training(make_second):
    second, use = make_second()
    for i, parameter in enumerate(second.parameters()):
        parameter.grad = torch.full_like(parameter, i)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.randn(8, 3)
    loss_fn = lambda model, x: use(second, model(x)).square().mean()
    nn.functional.mse_loss(model(x), torch.ones(8, 3)).backward()
    return second, model, optimizer, loss_fn, x


def loss_of_edge(model, optimizer, loss_fn, x):
    """Evaluated where it is not given, once the loss that the gradients are of has shown a rate."""
    warmup = ew.EdgeWarmup(optimizer, max_overhead=None)
    warmup.observe(lambda: nn.functional.mse_loss(model(x), torch.ones(8, 3)))
    before = warmup.num_forwards
    warmup.observe(lambda: loss_fn(model, x))
    assert warmup.fallback is None
    assert warmup.num_forwards == before + 1


def look_of_catapults(model, optimizer, loss_fn, x):
    ew.CatapultWarmup(optimizer)._loss(lambda: loss_fn(model, x), None)


def differences(model, optimizer, loss_fn, x):
    """The squares behind BatchNorm hardly change: float32 may be too coarse for that, and a refusal leaves no trace."""
    with contextlib.suppress(SecondDerivativeError):
        ew.sharpness(model, loss_fn, [x], max_hvps=3, rtol=0.5, hvp="difference")


MEASURES = {
    "sharpness": lambda m, o, f, x: ew.sharpness(m, f, [x], max_hvps=3, rtol=0.5),
    "difference": differences,
    "preconditioned": lambda m, o, f, x: ew.preconditioned_sharpness(m, f, [x], o, max_hvps=3, rtol=0.5),
    "critical_lr": ew.critical_lr,
    "current": lambda m, o, f, x: ew.critical_lr(m, o, f, x, gradient="current"),
    "Monitor": lambda m, o, f, x: ew.Monitor(m, o, f, every=1, rtol=0.5).observe(x),
    "LinearWarmup": lambda m, o, f, x: ew.LinearWarmup(o, warmup_steps=9, lr_init="critical").observe(
        lambda: f(m, x)
    ),
    "EdgeWarmup": lambda m, o, f, x: ew.EdgeWarmup(o).observe(lambda: f(m, x)),
    "EdgeWarmup's loss": loss_of_edge,
    "CatapultWarmup": lambda m, o, f, x: ew.CatapultWarmup(o).observe(lambda: f(m, x)),
    "CatapultWarmup's look": look_of_catapults,
}


@pytest.mark.filterwarnings("ignore:.*goes on as plain linear warmup")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("make_second", SECONDS.values(), ids=SECONDS)
def test_a_second_network_is_as_it_was(make_second, measure):
    second, *rest = training(make_second)
    ew.assert_no_side_effects(second, None, lambda: MEASURES[measure](*rest))


@pytest.mark.parametrize("measure", ["LinearWarmup", "EdgeWarmup", "CatapultWarmup", "CatapultWarmup's look"])
def test_a_closure_that_changes_parameters_in_place_leaves_no_trace(measure):
    """Also one that is in no module, and those that the optimizer does not hold."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1).requires_grad_(False)), torch.randn(8, 3)
    alone = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([*model[0].parameters(), alone], lr=0.1)

    def loss_fn(model, x):
        optimizer.zero_grad()
        loss = (alone * model(x)).square().mean()
        for parameter in (*model.parameters(), alone):
            parameter.data.mul_(0.5)
        return loss

    (alone * model(x)).square().mean().backward()
    tensors = [*model.parameters(), alone, *(p.grad for p in (*model[0].parameters(), alone))]
    before = [bits(tensor) for tensor in tensors]
    MEASURES[measure](model, optimizer, loss_fn, x)
    assert [bits(tensor) for tensor in tensors] == before
    assert [p.grad for p in (*model[0].parameters(), alone)] == tensors[5:]


# What is compiled


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.hidden(x))))


def by_wrapper(model, fullgraph):
    return torch.compile(model, backend="eager", fullgraph=fullgraph)


def in_place(model, fullgraph):
    model.compile(backend="eager", fullgraph=fullgraph)
    return model


def by_function(model, fullgraph):
    return torch.compile(lambda x: 1.0 * model(x), backend="eager", fullgraph=fullgraph)


COMPARED = ["sharpness", "critical_lr", "current", "Monitor", "LinearWarmup", "EdgeWarmup", "CatapultWarmup"]


@pytest.mark.filterwarnings("error:Using `torch.compile")
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("compiled", [by_wrapper, in_place, by_function])
def test_a_compiled_network_is_measured_as_another_and_is_as_it_was(compiled, fullgraph):
    def results(compiled):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model, x = Network(), torch.randn(16, 3)
        network = compiled(model)
        loss_fn = lambda model, x: network(x).square().mean()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_fn(model, x).backward()
        found = []
        for measure in (
            "sharpness",
            "critical_lr",
            "current",
            "Monitor",
            "LinearWarmup",
            "EdgeWarmup",
            "CatapultWarmup",
        ):
            call = lambda measure=measure: MEASURES[measure](model, optimizer, loss_fn, x)
            found.append((ew.assert_no_side_effects(model, None, call), optimizer.param_groups[0]["lr"]))
        (sharp, _), (computed, _), (current, _), (row, _), *warmups = found
        return [sharp.value, computed.lr, current.lr, row.sharpness, *(lr for _, lr in warmups)]

    plain = results(lambda model: model)
    assert results(lambda model: compiled(model, fullgraph)) == pytest.approx(plain, rel=1e-4)


def test_measuring_again_does_not_compile_again():
    torch._dynamo.reset()
    counter = CompileCounter()
    model, x = Network(), torch.randn(16, 3)
    network = torch.compile(model, backend=counter, fullgraph=True)
    loss_fn = lambda model, x: network(x).square().mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    counts = []
    for _ in range(4):
        train_step(model, optimizer, loss_fn, x)
        ew.critical_lr(model, optimizer, loss_fn, x)
        counts.append(counter.frame_count)
    assert counts == [2, 2, 2, 2]  # with a graph, and without


# What is made inside


def test_a_network_that_is_made_inside_is_left_alone():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with isolated(model) as snapshot:
        twin = copy.deepcopy(model)
        twin(x)
        with torch.no_grad():
            twin.weight.fill_(3.0)
        snapshot.rewind()
        assert (twin.weight == 3.0).all()
        assert snapshot.modules == [model]


# assert_no_side_effects sees it, too

EFFECTS = {
    "forward": (
        lambda second: second(torch.randn(4, 3)),
        [
            "buffer 'running_mean' of BatchNorm1d outside the model changed",
            "buffer 'running_var' of BatchNorm1d outside the model changed",
            "buffer 'num_batches_tracked' of BatchNorm1d outside the model: tensor(0) -> tensor(1)",
        ],
    ),
    "mode": (
        lambda second: second[1].eval(),
        ["BatchNorm1d outside the model: training False, was True"],
    ),
    "flag": (
        lambda second: second[0].requires_grad_(False),
        [
            "parameter 'weight' of Linear outside the model: requires_grad False, was True",
            "parameter 'bias' of Linear outside the model: requires_grad False, was True",
        ],
    ),
    "gradient": (
        lambda second: second[0](torch.randn(4, 3)).sum().backward(),
        [
            "gradient of parameter 'weight' of Linear outside the model added",
            "gradient of parameter 'bias' of Linear outside the model added",
        ],
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_on_a_second_network_is_named(name):
    effect, words = EFFECTS[name]
    model, second = nn.Linear(2, 1), batch_norm()[0]
    torch.manual_seed(0)
    state = torch.get_rng_state()

    def fn():
        effect(second)
        torch.set_rng_state(state)

    with pytest.raises(SideEffectError) as caught:
        ew.assert_no_side_effects(model, None, fn)
    assert str(caught.value).split("\n  - ")[1:] == words


def test_what_is_only_looked_at_or_made_inside_is_no_effect():
    model, second = nn.Linear(2, 1), batch_norm()[0]

    def fn():
        second.eval()(torch.ones(4, 3))
        second.train()
        nn.BatchNorm1d(3)(torch.ones(4, 3))

    ew.assert_no_side_effects(model, None, fn)
