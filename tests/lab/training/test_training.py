"""Training: what a row and an outcome say.

Oracle: plain torch loops, compared bitwise; dense float64 Hessians (oracles.py); numpy for entropies; the paper's
formulas for rates. Cannot see: whether the settings are the paper's; test_recipes looks at those.
"""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lion_pytorch import Lion
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import edgewise as ew
from edgewise.curvature import follow
from edgewise.lab import catalogue, data, models, training
from edgewise.lab.configs import (
    DECAYED,
    OPTIMIZERS,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    WarmupConfig,
)
from edgewise.lab.training import evaluate, guess_loss, loss_function, make_optimizer, make_schedule, train
from edgewise.lab.training.ri_adam import RIAdam
from edgewise.optimizers.preconditioner import diagonal
from lab_cases import TINY, TINY_CNN, TINY_LM, changed, paper_limit, tiny
from oracles import dense_hessian, preconditioned, top

DIGITS = data.load(TINY.data)


def column(result, name):
    return [row[name] for row in result.rows]


def factor(config, step):
    """The paper's schedule, with t counted from 1: min(1, t/T_wrm), then a cosine to a tenth at the last step."""
    warmup = config.warmup
    if warmup.decay == "none" or step < warmup.steps:
        return min(1.0, (step + 1) / warmup.steps)
    progress = (step - warmup.steps) / max(1, config.num_steps - warmup.steps - 1)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def plain_loop(config, make=None, *, until=None):
    """The same training in plain torch: losses, and the model, batch and optimizer before step `until`."""
    torch.manual_seed(config.seed)
    dataset = data.load(config.data)
    model = models.build(config.model, dataset)
    make = (
        make
        or {
            "sgd": SGD,
            "adam": lambda p, lr: Adam(p, lr=lr, fused=True),
            "radam": RAdam,
            "nadam": NAdam,
            "lion": lambda p, lr: Lion(p, lr=lr, betas=config.optimizer.betas),
        }[config.optimizer.name]
    )
    optimizer = make(model.parameters(), lr=config.optimizer.lr)
    scheduler = LambdaLR(optimizer, lambda step: factor(config, step))
    generator = torch.Generator().manual_seed(config.seed)
    losses = []
    for step in range(config.num_steps):
        inputs, targets = dataset.train_inputs, dataset.train_targets
        if config.batch_size:
            chosen = torch.randint(len(inputs), (config.batch_size,), generator=generator)
            inputs, targets = inputs[chosen], targets[chosen]
        inputs, targets = inputs if inputs.is_floating_point() else inputs.long(), targets.long()
        optimizer.zero_grad()
        outputs = model(inputs)
        if config.loss == "mse":
            loss = 0.5 * ((outputs - F.one_hot(targets, 10)) ** 2).sum(-1).mean()
        else:
            loss = F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        loss.backward()
        losses.append(loss.item())
        if step == until:
            return model, (inputs, targets), optimizer
        optimizer.step()
        scheduler.step()
    return losses


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        tiny(loss="xent", batch_size=16, seed=3, optimizer={"momentum": 0.9}),
        tiny(optimizer={"name": "adam"}, warmup={"decay": "cosine"}),
        tiny(optimizer={"name": "radam", "lr": 0.01}, batch_size=8),
        tiny(optimizer={"name": "nadam", "lr": 0.01}, batch_size=8),
        tiny(optimizer={"name": "lion", "lr": 0.001, "betas": (0.9, 0.99)}, batch_size=8),
        TINY_LM,
        changed(TINY_LM, optimizer={"name": "sgd", "lr": 0.5}),
        TINY_CNN,
        changed(TINY_CNN, optimizer={"name": "adam", "lr": 0.01}),
    ],
    ids=[
        "gd",
        "sgd-momentum",
        "adam-cosine",
        "radam",
        "nadam",
        "lion",
        "lm-adam",
        "lm-sgd",
        "cnn-sgd",
        "cnn-adam",
    ],
)
@pytest.mark.parametrize("measure", [(), ("sharpness",)], ids=["unmeasured", "measured"])
def test_losses_are_those_of_a_plain_loop_bit_for_bit(config, measure):
    make = None
    if config.optimizer.momentum:
        make = lambda p, lr: SGD(p, lr=lr, momentum=config.optimizer.momentum)
    expected = plain_loop(config, make)
    assert len(set(expected)) == config.num_steps  # it moves
    result = train(changed(config, measure=measure, measure_every=2, measure_rtol=0.1))
    assert column(result, "train_loss") == expected
    assert column(result, "step") == list(range(config.num_steps))


def test_gi_adam_is_trained_by_the_library_s_optimizer():
    config = tiny(optimizer={"name": "gi-adam", "lr": 0.01})
    expected = plain_loop(config, lambda p, lr: ew.GIAdam(p, lr=lr, fused=True))
    assert column(train(config), "train_loss") == expected
    assert expected != column(train(tiny(optimizer={"name": "adam", "lr": 0.01})), "train_loss")


DECAYING = {
    "adamw": lambda p, lr: AdamW(p, lr=lr, weight_decay=0.3, fused=True),
    "gi-adamw": lambda p, lr: ew.GIAdamW(p, lr=lr, weight_decay=0.3, fused=True),
    "lion": lambda p, lr: Lion(p, lr=lr, betas=(0.9, 0.999), weight_decay=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_of_those_it_is_said_to_be_of(name):
    config = tiny(optimizer={"name": name, "lr": 0.01, "weight_decay": 0.3})
    losses = column(train(config), "train_loss")
    assert DECAYING.keys() == set(DECAYED)
    if name in DECAYED:
        assert losses == plain_loop(config, DECAYING[name])
    undecayed = column(train(changed(config, optimizer={"weight_decay": 0.0})), "train_loss")
    assert (losses == undecayed) is (name not in DECAYED)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_outcome_has_the_optimizers_own_stability_limit(name, momentum):
    """Oracle: the paper's closed forms."""
    config = tiny(optimizer={"name": name, "lr": 0.01, "momentum": momentum, "betas": (momentum, 0.99)})
    found = train(config).outcome["stability_limit"]
    assert found == pytest.approx(paper_limit(config.optimizer), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize(("parameterization", "factor"), [("sp", 1.0), ("mup", 8**-0.5)])
def test_the_stored_limit_is_at_the_rates_the_run_ended_with(parameterization, factor):
    """Decoupled decay lowers it by ηγ(1 + β)/(1 − β); in μP both layers, 8 wide, have the same factor on η."""
    config = tiny(
        optimizer={"name": "adamw", "lr": 0.5, "weight_decay": 0.3},
        warmup={"decay": "cosine"},
        model={"parameterization": parameterization},
    )
    limit = train(config).outcome["stability_limit"]
    assert limit == pytest.approx(19 * (2 - 0.1 * 0.5 * factor * 0.3))


def test_a_diverged_run_has_a_limit_too():
    outcome = train(tiny(optimizer={"lr": 1e9, "momentum": 0.9})).outcome
    assert outcome["diverged"]
    assert outcome["stability_limit"] == pytest.approx(3.8)


def test_ri_adam_starts_as_large_as_the_gradient_and_knows_no_more_of_it():
    parameters = [nn.Parameter(torch.zeros(200, 300)), nn.Parameter(torch.zeros(50))]
    optimizer = RIAdam(parameters, lr=0.1, betas=(0.9, 0.999))
    for p in parameters:
        p.grad = torch.randn_like(p) + 1
    entries = [diagonal(optimizer, optimizer.param_groups[0], {}, p, p.grad) for p in parameters]
    optimizer.step()
    for p, entry in zip(parameters, entries, strict=True):
        start = (optimizer.state[p]["exp_avg_sq"] - 0.001 * p.grad**2) / 0.999
        torch.testing.assert_close(start.sum(), p.grad.square().sum())
        # P, looked at before the step, is that of the step: −lr·m/P with m = (1 − β₁)g.
        torch.testing.assert_close(p.data, -0.1 * (0.1 * p.grad) / entry, rtol=1e-4, atol=1e-6)
    large = optimizer.state[parameters[0]]["exp_avg_sq"]
    assert abs(np.corrcoef(large.flatten(), parameters[0].grad.square().flatten())[0, 1]) < 0.02


def test_the_optimizer_gets_its_options():
    config = OptimizerConfig(name="adam", lr=0.1, betas=(0.8, 0.9), eps=1e-3, momentum=0.5, weight_decay=0.2)
    for name, row in catalogue.OPTIMIZERS.items():
        group = make_optimizer(changed(config, name=name), nn.Linear(2, 2), 0.3).param_groups[0]
        assert group["lr"] == 0.3
        assert {option: group[option] for option in row.options} == {
            option: getattr(config, option) for option in row.options
        }


@pytest.mark.parametrize("warmup_steps", [1, 4, 10, 11, 12])
@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_rates_are_the_paper_s(warmup_steps, decay):
    config = tiny(num_steps=12, warmup={"steps": warmup_steps, "decay": decay})
    expected = [0.05 * factor(config, step) for step in range(12)]
    assert column(train(config), "lr") == pytest.approx(expected, rel=1e-12)


def test_the_decay_is_torch_s_cosine_and_ends_at_a_tenth():
    config = tiny(num_steps=100, warmup={"steps": 20, "decay": "cosine"})
    parameter = nn.Parameter(torch.ones(1))
    optimizer = SGD([parameter], lr=0.05)
    oracle = CosineAnnealingLR(optimizer, T_max=79, eta_min=0.005)
    expected = []
    for _ in range(80):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    rates = column(train(config), "lr")
    assert rates[20:] == pytest.approx(expected, rel=1e-9)
    assert rates[20] == 0.05
    assert rates[-1] == 0.05 * 0.1


def test_each_group_of_mup_decays_to_a_tenth_of_its_own_rate():
    model = models.build(changed(TINY.model, depth=2, width=64, parameterization="mup"), DIGITS)
    optimizer = make_optimizer(OptimizerConfig(name="adam", lr=0.1), model, 0.1)
    targets = [group["lr"] for group in optimizer.param_groups]
    assert max(targets) == pytest.approx(8 * min(targets))
    _, scheduler = make_schedule(WarmupConfig(steps=2, decay="cosine"), optimizer, 50)
    for step in range(50):
        expected = [
            lr * factor(tiny(num_steps=50, warmup={"steps": 2, "decay": "cosine"}), step) for lr in targets
        ]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_measured_sharpness_is_that_of_the_dense_hessian():
    config = tiny(batch_size=24, measure=("sharpness",), measure_every=2, measure_rtol=1e-3)
    rows = train(config).rows
    for step in (0, 2, 4):
        model, batch, _ = plain_loop(config, until=step)
        expected = float(top(dense_hessian(model.double(), loss_function("mse"), [double(batch)]))[0])
        value, residual = rows[step]["sharpness"], rows[step]["sharpness_residual"]
        assert residual <= 1e-3 * value
        assert abs(value - expected) <= residual + 1e-5 * expected  # float32's own error
        assert rows[step]["sharpness_hvps"] >= 1
        assert rows[step]["sharpness_converged"] == 1.0
    measured = {"sharpness", "sharpness_residual", "sharpness_converged", "sharpness_hvps"}
    assert all(rows[step].keys() == {"step", "lr", "train_loss"} | measured for step in (0, 2, 4))
    assert all(rows[step].keys() == {"step", "lr", "train_loss"} for step in (1, 3, 5))


@pytest.fixture
def never_converged(monkeypatch):
    """Every curvature is measured as ever, and said not to have converged."""

    def unconverged(real):
        return lambda *args, **options: replace(real(*args, **options), status=ew.Status.BUDGET_EXHAUSTED)

    for name in ("sharpness", "preconditioned_sharpness"):
        for module in (ew, follow):
            monkeypatch.setattr(module, name, unconverged(getattr(module, name)))


@pytest.mark.usefixtures("never_converged")
def test_a_row_says_that_a_measurement_did_not_converge():
    names = ("sharpness", "preconditioned_sharpness")
    for row in train(tiny(measure=names, measure_rtol=0.5)).rows:
        assert [row[f"{name}_converged"] for name in names] == [0.0, 0.0]


@pytest.mark.usefixtures("never_converged")
def test_a_rate_in_units_of_an_unknown_sharpness_is_refused():
    with pytest.raises(
        RuntimeError, match="the initial sharpness that sets the learning rate is not known: "
    ) as c:
        train(tiny(optimizer={"lr": 3.0, "lr_unit": "1/sharpness"}))
    assert ew.Status.BUDGET_EXHAUSTED.value in str(c.value)


def test_the_measured_preconditioned_sharpness_is_that_of_the_next_update():
    config = tiny(
        batch_size=24,
        optimizer={"name": "adam", "eps": 1e-3},
        measure=("preconditioned_sharpness",),
        measure_rtol=1e-3,
    )
    rows = train(config).rows
    for step in (0, 3):
        model, batch, optimizer = plain_loop(
            config, lambda p, lr: Adam(p, lr=lr, eps=1e-3, fused=True), until=step
        )
        entries = []
        for p in model.parameters():
            before = optimizer.state[p]["exp_avg_sq"].double() if step else 0.0
            v = (0.999 * before + 0.001 * p.grad.double() ** 2) / (1 - 0.999 ** (step + 1))
            entries.append(((1 - 0.9 ** (step + 1)) * (v.sqrt() + 1e-3)).flatten())
        hessian = dense_hessian(model.double(), loss_function("mse"), [double(batch)])
        expected = float(top(preconditioned(hessian, torch.cat(entries)))[0])
        value, residual = (rows[step][f"preconditioned_sharpness{end}"] for end in ("", "_residual"))
        assert abs(value - expected) <= residual + 1e-5 * expected
        assert rows[step]["preconditioned_sharpness_converged"] == 1.0


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_norms_are_those_of_the_gradient_and_of_what_the_last_update_left(name):
    config = tiny(
        optimizer={"name": name}, batch_size=8, measure=("gradient_norm", "second_moment"), measure_every=2
    )
    rows = train(config).rows
    for step in (0, 2, 4):
        model, _, optimizer = plain_loop(config, until=step)
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert rows[step]["gradient_norm"] == pytest.approx(float(gradients.norm()), rel=1e-5)
        moments = [
            state["exp_avg_sq"].flatten() for state in optimizer.state.values() if "exp_avg_sq" in state
        ]
        expected = float(torch.cat(moments).norm()) if moments else 0.0
        assert rows[step]["second_moment"] == pytest.approx(expected, rel=1e-5)
        assert (expected > 0) is (name == "adam" and step > 0)
    assert "gradient_norm" not in rows[1]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_critical_rate_is_where_the_coming_update_begins_to_raise_its_batch_s_loss(name):
    """Oracle: the update of a plain loop, made at the rate that was found and below it."""
    config = tiny(optimizer={"name": name}, batch_size=8, measure=("critical_lr",), measure_every=2)
    rows = train(config).rows
    assert column(train(replace(config, measure=())), "train_loss") == [row["train_loss"] for row in rows]
    for step in (0, 2, 4):
        found = rows[step]["critical_lr"]
        changes = [loss_after_an_update(config, step, share * found) for share in (1.0, 15 / 16)]
        assert changes[0] > rows[step]["train_loss"] > changes[1]
        assert rows[step]["critical_lr_forwards"] >= 2
    assert "critical_lr" not in rows[1]


def loss_after_an_update(config, step, rate):
    model, batch, optimizer = plain_loop(config, until=step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss_function(config.loss)(model, batch).item()


def test_the_initial_sharpness_is_measured_once_for_all_cells(monkeypatch):
    training.initial_sharpness.cache_clear()
    calls, measure = [], ew.sharpness
    monkeypatch.setattr(ew, "sharpness", lambda *a, **k: calls.append(1) or measure(*a, **k))
    cells = [tiny(optimizer={"lr": lr, "lr_unit": "1/sharpness"}) for lr in (0.5, 1.0)]
    rates = [train(cell).outcome["lr_target"] for cell in (*cells, changed(cells[0], seed=1))]
    assert len(calls) == 2
    assert rates[1] == 2 * rates[0] != rates[2]


def double(batch):
    return batch[0].double() if batch[0].is_floating_point() else batch[0], batch[1]


def test_a_rate_in_units_of_the_inverse_sharpness():
    config = tiny(optimizer={"lr": 3.0, "lr_unit": "1/sharpness"})
    torch.manual_seed(config.seed)
    model = models.build(config.model, DIGITS).double()
    inputs, targets = DIGITS.train_batch()
    parts = [double(part) for part in zip(inputs.split(400), targets.split(400), strict=True)]
    expected = float(top(dense_hessian(model, loss_function("mse"), parts))[0])
    result = train(config)
    assert result.outcome["lr_target"] * expected == pytest.approx(3.0, rel=1e-3)  # the default rtol
    assert column(result, "lr")[2:] == [result.outcome["lr_target"]] * 4
    same = train(tiny(optimizer={"lr": result.outcome["lr_target"]}))
    assert column(same, "train_loss") == column(result, "train_loss")  # measuring λ₀ moved nothing


def test_a_critical_start():
    config = tiny(optimizer={"lr": 20.0}, warmup={"steps": 4, "lr_init": "critical"})
    rates = column(train(config), "lr")
    torch.manual_seed(config.seed)
    model = models.build(config.model, DIGITS)
    loss_fn, batch = loss_function("mse"), DIGITS.train_batch()
    found = ew.critical_lr(model, SGD(model.parameters(), lr=20.0), loss_fn, batch)
    assert found.status is ew.Status.FOUND
    assert 0.9 * found.bracket[0] <= rates[0] <= 1.1 * found.bracket[1]
    assert rates[1] - rates[0] == pytest.approx(20.0 / 4, rel=1e-9)
    assert rates[-1] <= 20.0


def test_catapults_and_what_their_warmup_reports():
    config = tiny(optimizer={"lr": 0.3}, warmup={"kind": "catapult", "decay": "cosine"}, num_steps=80)
    result = train(config)
    rates, report = column(result, "lr"), result.outcome["warmup"]
    assert report["warmup"] == "CatapultWarmup"
    assert 0 < report["num_catapults"] < report["num_forwards"]
    assert report["finished"]
    assert rates[0] == pytest.approx(report["lr_start"])
    assert rates.index(0.3) == report["steps_to_target"]
    last = max(step for step, rate in enumerate(rates) if rate == 0.3)
    assert rates[last:] == sorted(rates[last:], reverse=True)
    assert rates[-1] == pytest.approx(0.03)  # a tenth, at the end of the run whatever the length was


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "warmup", [{"kind": "catapult"}, {"lr_init": "critical"}], ids=["catapult", "critical"]
)
def test_warmups_that_look_find_a_start_for_every_optimizer(name, warmup):
    config = tiny(optimizer={"name": name, "lr": 10.0}, warmup=warmup)
    result = train(config)
    assert result.outcome["warmup"]["fallback"] is None
    assert 0 < column(result, "lr")[0] < 10.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_catapults_train_without_a_length_where_no_warmup_diverges(seed):
    sharp = {"lr": 32.0, "lr_unit": "1/sharpness"}
    without, linear, catapults = (
        train(
            tiny(model={"depth": 3, "width": 48}, optimizer=sharp, warmup=warmup, num_steps=80, seed=seed)
        ).outcome
        for warmup in ({"steps": 1}, {"steps": 60}, {"kind": "catapult", "steps": 1})
    )
    assert without["diverged"]
    assert not linear["diverged"]
    assert not catapults["diverged"]
    assert catapults["train_loss"] < 0.2  # the best constant output has 0.45
    assert catapults["warmup"]["steps_to_target"] < 10
    assert catapults["warmup"]["fallback"] is None


@pytest.mark.parametrize("measure", [(), ("sharpness",)])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_divergence_is_an_outcome(name, measure):
    config = tiny(
        optimizer={"name": name, "lr": 1e12 if name == "sgd" else 1e30},
        warmup={"steps": 1}, num_steps=50, measure=measure,
    )  # fmt: skip
    steps = []
    result = train(config, steps.append)
    outcome, losses = result.outcome, column(result, "train_loss")
    assert outcome["diverged"]
    assert 1 <= outcome["num_steps"] == len(losses) - 1 < 49  # updates made: none follows the last loss
    assert all(map(math.isfinite, losses[:-1]))
    assert not math.isfinite(losses[-1])
    assert math.isnan(outcome["train_loss"]) or outcome["train_loss"] == losses[-1]
    assert steps == list(range(1, outcome["num_steps"] + 1))
    assert all(math.isfinite(row["lr"]) for row in result.rows)
    for name_ in ("lr_target", "guess_loss", "test_accuracy", "seconds"):
        assert math.isfinite(outcome[name_])
    assert 0 <= outcome["test_accuracy"] <= 1
    measured = [row["step"] for row in result.rows if "sharpness" in row]
    assert measured[:1] == ([0] if measure else [])
    assert len(measured) < len(losses)  # a curvature far out means nothing and is not measured


def test_a_run_that_ends_finite_is_not_diverged():
    outcome = train(TINY).outcome
    assert outcome["diverged"] is False
    assert outcome["num_steps"] == 6
    assert outcome["num_classes"] == 10
    assert outcome["lr_target"] == 0.05


def test_a_run_whose_last_step_breaks_the_model_is_diverged():
    outcome = train(tiny(optimizer={"lr": 1e30}, warmup={"steps": 1}, num_steps=1)).outcome
    assert math.isfinite(outcome["train_loss"])
    assert outcome["diverged"]
    assert outcome["num_steps"] == 1


def test_the_outcome_is_measured_on_the_test_samples_after_the_last_step(monkeypatch):
    built = []
    real = models.build
    monkeypatch.setattr(models, "build", lambda *args: built.append(real(*args)) or built[-1])
    outcome = train(TINY).outcome
    outputs, targets = built[0](DIGITS.test_inputs).detach(), DIGITS.test_targets
    assert outcome["test_loss"] == pytest.approx(float(half_squares(outputs, targets).mean()), rel=1e-5)
    accuracy = float((outputs.argmax(1) == targets).double().mean())
    assert outcome["test_accuracy"] == pytest.approx(accuracy, rel=1e-5)


def test_looking_at_test_data_on_the_way_finds_the_best_accuracy_and_changes_nothing():
    """A cell whose accuracy is best on the way: what it has after so many steps is what shorter runs end with."""
    config = tiny(optimizer={"lr": 2.0}, warmup={"steps": 1}, num_steps=24, loss="xent")
    ends = [train(replace(config, num_steps=steps)).outcome["test_accuracy"] for steps in (5, 10, 15, 20, 24)]
    assert max(ends) > ends[-1]
    plain, looked = train(config), train(replace(config, evaluate_every=5))
    assert looked.rows == plain.rows
    assert looked.outcome["best_test_accuracy"] == max(ends)
    counts = torch.bincount(DIGITS.test_targets)
    assert looked.outcome["guess_accuracy"] == max(counts.tolist()) / counts.sum()
    assert looked.outcome["test_accuracy"] == plain.outcome["test_accuracy"] == ends[-1]
    assert "best_test_accuracy" not in plain.outcome


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "3"])
def test_looks_at_test_data_are_whole_numbers_of_steps_apart(every):
    with pytest.raises((TypeError, ValueError), match="evaluate_every"):
        tiny(evaluate_every=every)


def half_squares(outputs, targets):
    return 0.5 * (outputs - F.one_hot(targets, 10)).square().sum(1)


@pytest.mark.parametrize("size", [1, 7, 359, 360, 1000])
@pytest.mark.parametrize("loss", ["mse", "xent"])
def test_evaluating_in_parts_is_evaluating_at_once(monkeypatch, loss, size):
    model = models.build(TINY.model, DIGITS)
    inputs, targets = DIGITS.test_batch()
    outputs = model(inputs).detach()
    losses = (
        half_squares(outputs, targets)
        if loss == "mse"
        else F.cross_entropy(outputs, targets, reduction="none")
    )
    monkeypatch.setattr(training.outcome, "_EVALUATION_SIZE", size)
    found = evaluate(model, loss, (inputs, targets))
    assert found == pytest.approx(
        (float(losses.double().mean()), float((outputs.argmax(1) == targets).double().mean())), rel=1e-5
    )


def test_batch_norm_is_evaluated_by_its_running_statistics_and_left_as_it_was():
    model = models.build(TINY_CNN.model, DIGITS)
    model(DIGITS.train_inputs[:64])  # moves them
    frozen = model.layers[1].norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = evaluate(model, "xent", DIGITS.test_batch())
    assert [m.training for m in model.modules() if m is not frozen] == [True] * (
        len(list(model.modules())) - 1
    )
    assert not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    outputs = model.eval()(DIGITS.test_inputs).detach()
    accuracy = float((outputs.argmax(1) == DIGITS.test_targets).double().mean())
    assert found == pytest.approx((float(F.cross_entropy(outputs, DIGITS.test_targets)), accuracy), rel=1e-5)


def test_modes_are_put_back_when_evaluating_fails():
    model = models.build(TINY_CNN.model, DIGITS)
    with pytest.raises(RuntimeError):
        evaluate(model, "xent", (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)))
    assert all(module.training for module in model.modules())


def test_the_initial_sharpness_of_batch_norm_is_that_of_training():
    torch.manual_seed(0)
    model = models.build(TINY_CNN.model, DIGITS)
    expected = ew.sharpness(model.train(), loss_function("xent"), [DIGITS.train_batch(slice(512))])
    found = training.initial_sharpness(TINY_CNN.data, TINY_CNN.model, "xent", 0)
    assert found == pytest.approx(expected.value, rel=1e-5)
    assert ew.sharpness(
        model.eval(), loss_function("xent"), [DIGITS.train_batch(slice(512))]
    ).value != pytest.approx(found, rel=0.05)


def test_the_initial_sharpness_of_a_residual_network_keeps_so_much_at_most(monkeypatch):
    wrn = ModelConfig(name="wrn", depth=10, width=1, parameterization="sp")
    training.initial_sharpness.cache_clear()
    whole = training.initial_sharpness(DataConfig(name="digits"), wrn, "xent", 0)
    torch.manual_seed(0)
    model = models.build(wrn, DIGITS)
    plain = ew.sharpness(model, loss_function("xent"), [DIGITS.train_batch(slice(512))])
    assert whole == plain.value  # what fits is measured as if there were no budget
    training.initial_sharpness.cache_clear()
    monkeypatch.setattr(training.loop, "_MAX_GRAPH_BYTES", 10 * 10**6)
    sizes, xent = [], loss_function("xent")

    def noting(model, batch):
        sizes.append(len(batch[1]))
        return xent(model, batch)

    monkeypatch.setattr(training.loop, "loss_function", lambda name: noting)
    assert training.initial_sharpness(DataConfig(name="digits"), wrn, "xent", 0) == pytest.approx(
        whole, rel=1e-3
    )
    in_parts = [
        size for size in sizes if 64 < size < 256
    ]  # the others are probes, of a few samples and of all
    assert sum(in_parts) >= 512
    training.initial_sharpness.cache_clear()


def test_the_initial_sharpness_of_a_text_is_that_of_samples_from_all_of_it():
    config = replace(TINY_LM.data, num_samples=600)
    text = data.load(config)
    torch.manual_seed(0)
    model = models.build(TINY_LM.model, text)
    all_over = (np.arange(64) * 599 // 63).tolist()  # 512 targets, 8 of a sample
    expected = ew.sharpness(model, loss_function("xent"), [text.train_batch(torch.tensor(all_over))])
    found = training.initial_sharpness(config, TINY_LM.model, "xent", 0)
    assert found == pytest.approx(expected.value, rel=1e-5)
    beginning = ew.sharpness(model, loss_function("xent"), [text.train_batch(slice(64))])
    assert beginning.value != pytest.approx(found, rel=0.05)


def test_guessing_costs_the_entropy_of_the_class_frequencies():
    counts = np.bincount(DIGITS.train_targets.numpy(), minlength=10) + 1.0
    p = counts / counts.sum()
    q = np.bincount(DIGITS.test_targets.numpy(), minlength=10) / len(DIGITS.test_targets)
    assert guess_loss("xent", DIGITS) == pytest.approx(-(q * np.log(p)).sum(), rel=1e-5)
    assert guess_loss("mse", DIGITS) == pytest.approx(0.5 * (p @ p + 1 - 2 * q @ p), rel=1e-5)
    for constant in (np.full(10, 0.1), np.zeros(10), np.ones(10)):  # no constant is much better
        other = 0.5 * ((constant**2).sum() + 1 - 2 * q @ constant)
        assert guess_loss("mse", DIGITS) < other + 0.005


def test_guessing_text_is_per_position():
    text = data.load(DataConfig(name="stdlib-text", context=8))
    counts = np.bincount(text.train_targets.numpy().ravel(), minlength=256) + 1.0
    q = np.bincount(text.test_targets.numpy().ravel(), minlength=256) / text.test_targets.numel()
    expected = -(q * np.log(counts / counts.sum())).sum()
    assert guess_loss("xent", text) == pytest.approx(expected, rel=1e-4)
    assert 2.5 < expected < 3.5  # nats a byte of Python


def test_batches_are_drawn_by_seed():
    same = [column(train(tiny(batch_size=8, seed=seed)), "train_loss") for seed in (1, 1, 2)]
    assert same[0] == same[1]
    assert same[0] != same[2]


def test_a_full_batch_is_the_same_at_each_step():
    config = tiny(optimizer={"lr": 1e-12})
    losses = column(train(config), "train_loss")
    assert max(losses) - min(losses) < 1e-6 * losses[0]
    batches = column(train(tiny(optimizer={"lr": 1e-12}, batch_size=8)), "train_loss")
    assert max(batches) - min(batches) > 1e-3 * batches[0]


def test_training_is_deterministic_whatever_was_drawn_before():
    torch.manual_seed(99)
    one = train(TINY_LM)
    torch.manual_seed(100)
    two = train(TINY_LM)
    assert one.rows == two.rows
    differing = {k for k in one.outcome if one.outcome[k] != two.outcome[k]}
    assert differing <= {"seconds"}


def test_steps_are_reported_as_they_finish():
    steps = []
    train(TINY, steps.append)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_losses_are_means_over_samples_and_positions():
    outputs, targets = torch.randn(3, 4, 5), torch.randint(0, 5, (3, 4))
    f, hot = outputs.double().numpy(), np.eye(5)[targets.numpy()]
    squares = 0.5 * ((f - hot) ** 2).sum(-1)
    assert float(training.half_squared_error(outputs, targets)) == pytest.approx(squares.mean(), rel=1e-5)
    entropies = np.log(np.exp(f).sum(-1)) - (f * hot).sum(-1)
    assert float(training.cross_entropy(outputs, targets)) == pytest.approx(entropies.mean(), rel=1e-5)


def test_training_needs_no_library_of_a_single_optimizer():
    """Machines without installs train all the others: benchmarks/gpu.py."""
    code = "import sys; sys.modules['lion_pytorch'] = None; import edgewise.lab.engines.batched_training"
    subprocess.run([sys.executable, "-c", code], check=True)
