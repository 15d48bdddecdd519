"""EdgeWarmup under the recipes that people use: optimizers, networks and losses as they come, all tiny.

Oracle: the same recipe with linear warmup over a tenth of the run, at the best rate of a grid; the same rates set by
hand; the entropy of a Markov chain; the closed form of a decay; a parabola. Cannot see: what the rule comes to at size.
"""

import functools
import io
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

from edgewise import CatapultWarmup, EdgeWarmup, LinearWarmup, Status
from warmup.recipes import RECIPES, STEPS, Recipe, Run, Sines, adamw, mlp

LOW = 2.0**-13  # of the best rate: below where any of them starts
MOST_FORWARDS = 8
CAPPED = "Adafactor"  # takes no step longer than 1/√t, so that no rate is too high
IMPRECISE = "bfloat16"  # no update at a low rate shows in its loss
edge = functools.partial(EdgeWarmup, num_steps=STEPS)
linear = functools.partial(LinearWarmup, warmup_steps=STEPS // 10)
constant = functools.partial(LinearWarmup, warmup_steps=1)


def every_recipe_but(*names):
    return pytest.mark.parametrize("name", [name for name in RECIPES if name not in names])


@functools.cache
def at_its_best(name):
    return Run(RECIPES[name]).warm_up(linear).train()


@functools.cache
def far_too_high(name):
    return Run(RECIPES[name], times=RECIPES[name].too_high).warm_up(edge).train()


def fall(run, name):
    """Return the share of the fall of the oracle's loss that a run has come to."""
    best = at_its_best(name)
    return (best.first - run.last) / (best.first - best.last)


def same(run, other):
    return all(torch.equal(a, b) for a, b in zip(run.bits(), other.bits(), strict=True))


def check_forwards(run):
    assert all(warmup.report().num_forwards <= MOST_FORWARDS for warmup in run.warmups)


@every_recipe_but()
def test_at_the_best_rate_it_comes_to_what_linear_warmup_does(name):
    run = Run(RECIPES[name]).warm_up(edge).train()
    assert fall(run, name) > 0.9
    assert {warmup.status for warmup in run.warmups} <= {Status.AT_TARGET, Status.HELD_BELOW_TARGET}
    check_forwards(run)


@every_recipe_but(CAPPED)
def test_it_trains_at_a_target_far_too_high_where_a_constant_rate_does_not(name):
    without = Run(RECIPES[name], times=RECIPES[name].too_high).warm_up(constant).train()
    assert not fall(without, name) > 0.5  # nan, too
    run = far_too_high(name)
    assert fall(run, name) > 0.8
    assert {warmup.status for warmup in run.warmups} == {Status.HELD_BELOW_TARGET}
    check_forwards(run)


@every_recipe_but()
def test_the_same_rates_by_hand_end_at_the_same_bits(name):
    """Dropout, BatchNorm, clipping; of two warmups neither moves what the other's optimizer trains."""
    run = far_too_high(name)
    again = Run(RECIPES[name], times=RECIPES[name].too_high).train(rates=run.rates)
    assert same(run, again)
    assert all(len({rates[0] for rates in own}) > 30 for own in run.rates)


@every_recipe_but(IMPRECISE)
def test_at_a_low_target_a_run_is_that_without_a_warmup_bit_for_bit(name):
    without = Run(RECIPES[name], times=LOW).train(range(100))
    run = Run(RECIPES[name], times=LOW).warm_up(edge, decay=None).train(range(100))
    assert same(run, without)
    assert {warmup.status for warmup in run.warmups} == {Status.AT_TARGET}
    assert all(warmup.state_dict()["rate_share"]["kept"] == [] for warmup in run.warmups)
    check_forwards(run)


# A thousand updates, with everything


def warmup_stable_decay(update, length, num_steps=1000):
    """Stable for four fifths of what the warmup has left."""
    return min(1.0, (num_steps - update) / (0.2 * (num_steps - length)))


@pytest.mark.parametrize("decay", ["cosine", warmup_stable_decay])
def test_a_thousand_updates_of_a_language_model_come_near_the_entropy_of_the_text(decay):
    recipe = RECIPES["language model, AdamW"]
    run = Run(recipe, times=recipe.too_high, steps=1000).warm_up(
        functools.partial(EdgeWarmup, num_steps=1000), decay
    )
    run.train()
    assert run.last - run.loss.entropy < 0.15 * (run.first - run.loss.entropy)
    assert run.warmups[0].status is Status.HELD_BELOW_TARGET
    (rates,) = run.rates
    if decay is warmup_stable_decay:
        length, held = run.warmups[0].length, run.warmups[0].lr_held
        closed = [held * decay(update, length) for update in range(length, 1000)]
        assert [rate for rate, _ in rates[length:]] == pytest.approx(closed, rel=1e-12)
    assert all(rate == no_decay for rate, no_decay in rates)
    check_forwards(run)


def test_warmup_stable_decay_by_a_scheduler_of_torchs_starts_from_the_rate_that_was_held():
    """Which counts from the warmup's end, at half of the run."""
    run = Run(RECIPES["language model, AdamW"], times=64).warm_up(edge, decay=None)
    (warmup,), (optimizer,) = run.warmups, run.optimizers
    left = STEPS // 2 - 1
    factor = lambda t: min(1.0, (left - t) / (0.2 * left))
    run.schedulers = [warmup.then(LambdaLR(optimizer, factor))]
    run.train()
    closed = [warmup.lr_held * factor(t) for t in range(left)]
    assert [rate for rate, _ in run.rates[0][-left:]] == pytest.approx(closed, rel=1e-12)
    assert run.last < run.losses[0]


# Two optimizers


@pytest.mark.parametrize("stop", [1, 30, 250])
def test_two_optimizers_resume_with_a_warmup_each(stop):
    """In the start, while both climb, and in the decay: the bits of the run that was not stopped."""
    recipe = RECIPES["Muon and AdamW"]
    stopped = Run(recipe, times=recipe.too_high).warm_up(edge).train(range(stop))
    parts = lambda run: {"model": [run.model], "optimizers": run.optimizers, "schedulers": run.schedulers}
    states = {name: [part.state_dict() for part in own] for name, own in parts(stopped).items()}
    file = io.BytesIO()
    torch.save(states | {"random": torch.get_rng_state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    run = Run(recipe, times=recipe.too_high).warm_up(edge)
    for name, own in parts(run).items():
        for part, state in zip(own, saved[name], strict=True):
            part.load_state_dict(state)
    torch.set_rng_state(saved["random"])
    run.train(range(stop, STEPS))
    assert same(run, far_too_high("Muon and AdamW"))


def test_two_warmups_find_a_start_each_and_tell_of_their_own_optimizer():
    run = far_too_high("Muon and AdamW")
    (muon, adam), (of_muon, of_adam) = (warmup.report() for warmup in run.warmups), run.rates
    assert (muon.lr_start, adam.lr_start) == pytest.approx((of_muon[0][0], of_adam[0][0]), rel=1e-12)
    assert muon.lr_start / muon.lr_target != pytest.approx(adam.lr_start / adam.lr_target, rel=0.1)
    assert muon.updates == adam.updates == STEPS
    assert muon.lr_held in {row[0] for row in of_muon}
    assert adam.lr_held in {row[0] for row in of_adam}


# Fine-tuning, and parameters that come later


def test_of_a_frozen_base_nothing_is_kept_and_nothing_changes():
    run = Run(RECIPES["LoRA"]).warm_up(edge)
    run.optimizers[0].add_param_group({"params": [run.model[0].weight], "weight_decay": 0.0})  # frozen
    base = run.model[0].weight.clone()
    run.train(range(4))
    kept = {p: k.numel() for p, k in zip(parameters(run), run.warmups[0]._climb.slopes.kept, strict=True)}
    assert kept == {p: p.numel() if p.requires_grad else 0 for p in parameters(run)}
    run.train(range(4, STEPS))
    assert torch.equal(run.model[0].weight, base)
    assert fall(run, "LoRA") > 0.8


@pytest.mark.parametrize("times", [1.0, 4.0])
def test_matrices_whose_first_update_shows_nothing_are_a_reason_to_fall_back_not_to_end(times):
    """Adapters in bfloat16: the update of the one that is zero at first shows, that of both together does not."""
    make_model = lambda: RECIPES["LoRA"].make_model().bfloat16()
    recipe = Recipe(make_model, adamw, functools.partial(Sines, dtype=torch.bfloat16), -4)
    run = Run(recipe, times=times).warm_up(edge, decay=None)
    with pytest.warns(UserWarning, match="matrices that had no gradient at first show no scale"):
        run.train(range(4))
    (warmup,) = run.warmups
    assert (warmup.num_searches, warmup.status) == (2, Status.FELL_BACK)
    assert warmup.state_dict()["rate_share"]["kept"] == []


def parameters(run):
    return [p for group in run.optimizers[0].param_groups for p in group["params"]]


@pytest.mark.parametrize("update", [3, 60])
def test_a_layer_that_is_thawed_under_way_trains_with_the_others(update):
    """In the climb and in the creep."""
    run = Run(Recipe(mlp, adamw, Sines, 0))
    run.model[0].requires_grad_(False)
    run.warm_up(edge).train(range(update))
    frozen = run.model[0].weight.clone()
    run.model[0].requires_grad_(True)
    run.train(range(update, STEPS))
    assert not torch.equal(run.model[0].weight, frozen)
    assert run.warmups[0].status is Status.HELD_BELOW_TARGET
    assert run.last < 0.3 * run.first


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_the_flat_weights_of_a_recurrent_network_are_its_parameters(name):
    run = Run(RECIPES[name]).warm_up(edge).train(range(5))
    assert all(a is b for a, b in zip(run.model.rnn._flat_weights, run.model.rnn.parameters(), strict=True))


# One weight


class Parabola:
    """(w − 3 + noise)², whose critical rate is 1 for gradient descent."""

    def __init__(self, steps):
        self.noise = 0.1 * torch.randn(steps, generator=torch.Generator().manual_seed(1))

    def __call__(self, model, t):
        return (next(model.parameters()) - 3 + self.noise[t]).square().sum()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("cls", [SGD, AdamW], ids=["sgd", "adamw"])
def test_one_weight_comes_to_the_minimum_at_a_rate_fifty_times_critical(shape, value, cls):
    def make_model():
        return nn.ParameterList([torch.full(shape, value)])

    recipe = Recipe(make_model, lambda p, lr: [cls(p, lr, weight_decay=0.0)], Parabola, 0)
    without, run = (Run(recipe, times=50).warm_up(make).train() for make in (constant, edge))
    highest = [max(math.inf if math.isnan(loss) else loss for loss in its.losses) for its in (without, run)]
    assert highest[1] < 0.1 * highest[0]  # the steps of AdamW are 50, those of gradient descent grow
    assert float(run.model[0].detach()) == pytest.approx(3, abs=0.1)  # noise by linear decay
    assert run.warmups[0].status is Status.HELD_BELOW_TARGET
    check_forwards(run)


# Losses that are negative, huge or nothing


class Shifted(Sines):
    def __init__(self, steps, *, factor=1.0, added=0.0, dtype=torch.float64):
        super().__init__(steps, dtype)
        self.factor, self.added = factor, added

    def __call__(self, model, t):
        loss = (model(self.inputs[t]) - self.targets[t]).square().mean()
        return self.factor * loss + self.added


@pytest.mark.parametrize(
    "shift", [{"added": 1e6}, {"added": -1e6}, {"added": -0.3}, {"factor": 1e-12}], ids=str
)
def test_what_is_added_to_the_losses_of_a_whole_run_or_multiplied_with_them_changes_no_rate(shift):
    rates = []
    for its in ({}, shift):
        factor = its.get("factor", 1.0)
        recipe = Recipe(lambda: mlp().double(), lambda p, lr: [SGD(p, lr)], Shifted, 3)
        run = Run(recipe, times=1 / factor, make_loss=functools.partial(Shifted, **its)).warm_up(edge).train()
        rates.append([rate * factor for (rate,) in run.rates[0]])
        assert run.warmups[0].status is Status.HELD_BELOW_TARGET
    assert rates[1] == pytest.approx(rates[0], rel=1e-4)


@pytest.mark.parametrize(
    ("recipe", "loss"),
    [
        (RECIPES[IMPRECISE], RECIPES[IMPRECISE].make_loss),
        (Recipe(mlp, adamw, Sines, -5), functools.partial(Shifted, added=1e6, dtype=torch.float32)),
    ],
    ids=["bfloat16", "a million, in float32"],
)
def test_a_loss_that_cannot_show_a_low_rate_is_a_reason_to_fall_back_that_is_named(recipe, loss):
    run = Run(recipe, times=LOW, make_loss=loss).warm_up(edge)
    with pytest.warns(UserWarning, match="the loss is not precise enough"):
        run.train(range(60))
    assert run.warmups[0].status is Status.FELL_BACK
    assert run.rates[0][-1][0] < run.rates[0][40][0] == 2.0**recipe.log_lr * LOW  # in the decay


# What cannot work


@pytest.mark.parametrize("make", [edge, CatapultWarmup, functools.partial(linear, lr_init="critical")])
def test_an_optimizer_that_maximizes_is_refused(make):
    """Gradients and loss would be of opposite sign: no update lowers a loss that is to rise."""
    with pytest.raises(ValueError, match=r"parameter group 0 has maximize=True: negate the loss instead"):
        make(AdamW(mlp().parameters(), maximize=True))
    linear(AdamW(mlp().parameters(), maximize=True))  # which measures nothing
