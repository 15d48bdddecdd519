"""What an inspection says, and that it leaves no trace.

Ladder: closed forms on quadratics (H = XᵀX/n is known, SGD's limit is 2, GI-Adam's first step √(1 − β₂) of Adam's); the
same measurements by hand; odd things that are planted. Cannot see: whether advice is good; benchmarks/advice.py does.
"""

import json
import math
from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew
from cases import BY_NAME, OPT, OnceOnly, ids, train_step
from edgewise.advice.findings import QUESTIONS, Finding
from edgewise.advice.result import InspectionResult

FEWEST = 20  # updates


def mse(model, batch):
    x, y = batch
    return 0.5 * (model(x) - y).square().mean()


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def inspected(model, optimizer, loss_fn, batches, **options):
    return ew.inspect(model, optimizer, loss_fn, batches, **{"max_updates": FEWEST} | options)


def line(result, name):
    (found,) = [finding for finding in result.findings if finding.name == name]
    return found


def regression(number=6):
    """A line through the origin, ½·mean((x·w − y)²): H = E x xᵀ, here diag(4, 1); four batches that are the same."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.tensor([[math.sqrt(8.0), 0.0], [0.0, math.sqrt(2.0)]])
    return model, [(x, torch.zeros(2, 1))] * number


def digits(**options):
    """A small network with dropout and BatchNorm, and a loader that shuffles."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))
    return model, DataLoader(data, batch_size=16, shuffle=True, **options)


OPTIMIZERS = [OPT[name] for name in ("sgd-momentum", "adamw", "gi-adamw", "rmsprop")]


@pytest.mark.parametrize("opt", OPTIMIZERS, ids=ids(OPTIMIZERS))
@pytest.mark.parametrize("steps", [0, 3])
def test_nothing_is_changed(opt, steps):
    model, loader = digits()
    optimizer = opt.make(model)
    for _, batch in zip(range(steps), loader, strict=False):
        train_step(model, optimizer, cross_entropy, batch)
    found = ew.assert_no_side_effects(
        model, optimizer, lambda: inspected(model, optimizer, cross_entropy, loader)
    )
    assert found.num_updates > 0


def test_training_goes_on_as_if_nothing_had_been_asked():
    losses = []
    for asks in (False, True):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(7)
        model, loader = digits(generator=generator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        if asks:
            inspected(model, optimizer, cross_entropy, loader)
        losses.append([])
        for batch in loader:
            losses[-1].append(train_step(model, optimizer, cross_entropy, batch))
            scheduler.step()
    assert losses[0] == losses[1]


def test_the_edge_of_a_quadratic():
    model, batches = regression()
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.1), mse, batches)
    found = line(result, "rate × preconditioned sharpness")
    assert found.value == pytest.approx(0.4, rel=0.02)  # 0.1 · 4
    assert found.evidence["limit"] == pytest.approx(2)
    assert found.evidence["lr_at_edge"] == pytest.approx(0.5, rel=0.02)
    assert (found.level, found.advice) == ("good", "")
    shares = line(result, "parameters that hold the top eigenvector").evidence["shares"]
    assert shares == {"weight": pytest.approx(1)}


@pytest.mark.parametrize(("steps", "limit"), [(0, 20), (3, 38)])  # 2/(1 − β₁), and 2(1 + β₁)/(1 − β₁)
def test_the_limit_is_that_of_the_coming_update(steps, limit):
    model, batches = BY_NAME["tanh-mlp-mse"].build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        train_step(model, optimizer, mse, batches[0])
    evidence = line(inspected(model, optimizer, mse, batches), "rate × preconditioned sharpness").evidence
    assert evidence["share"] == pytest.approx(1e-3 * evidence["sharpness"] / limit)


def test_a_sharpness_that_has_not_converged_is_no_number(monkeypatch):
    monkeypatch.setattr("edgewise.advice.stability.MOST_PRODUCTS", 1)
    model, batches = BY_NAME["tanh-mlp-mse"].build()
    result = inspected(model, torch.optim.Adam(model.parameters(), lr=1e-3), mse, batches)
    found = line(result, "rate × preconditioned sharpness")
    assert (found.ok, found.value, found.advice) == (False, None, "")
    assert "BUDGET_EXHAUSTED" in found.meaning
    assert "sharpness" in found.evidence  # all the same


def test_a_rate_beyond_the_edge_is_told():
    model, batches = regression()
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.8), mse, batches)
    found = line(result, "rate × preconditioned sharpness")
    assert found.level == "notice"
    assert "beyond the edge, 0.5" in found.meaning
    assert "warm up" in found.advice


def test_the_critical_rate_of_a_quadratic():
    model, batches = regression()
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.7), mse, batches)
    found = line(result, "critical rate of the coming update")
    low, high = found.evidence["bracket"]
    exact = 2 * (16 + 1) / (64 + 1)  # 2 g·g / gᵀHg with g = (4, 1)
    assert low <= exact <= high
    assert found.evidence["num_batches"] == 4
    assert found.level == "bad"  # 0.7 is above
    assert found.advice


@pytest.mark.parametrize(("cls", "twin"), [(torch.optim.AdamW, ew.GIAdamW), (torch.optim.Adam, ew.GIAdam)])
@pytest.mark.parametrize("beta2", [0.99, 0.999])
def test_gi_adam_divides_the_first_sharpness_by_a_known_factor(cls, twin, beta2):
    model, batches = BY_NAME["tanh-mlp-mse"].build()
    loss_fn = BY_NAME["tanh-mlp-mse"].loss_fn
    values = []
    for kind in (cls, twin):
        optimizer = kind(model.parameters(), lr=1e-3, betas=(0.9, beta2), eps=1e-30)
        evidence = line(
            inspected(model, optimizer, loss_fn, batches), "preconditioned sharpness of a first step"
        ).evidence
        assert evidence["v0_gradient"] / evidence["v0_zero"] == pytest.approx(math.sqrt(1 - beta2), rel=0.03)
        values.append(evidence["v0_zero"])
    by_hand = ew.preconditioned_sharpness(
        model, loss_fn, batches[:1], cls(model.parameters(), lr=1e-3, betas=(0.9, beta2), eps=1e-30)
    )
    assert values == pytest.approx([by_hand.value] * 2, rel=0.03)


def test_gi_adam_is_advised_where_it_makes_a_first_step_stable():
    model, batches = BY_NAME["tanh-mlp-mse"].build()
    loss_fn, name = BY_NAME["tanh-mlp-mse"].loss_fn, "preconditioned sharpness of a first step"
    plain = line(inspected(model, torch.optim.AdamW(model.parameters(), lr=1e-6), loss_fn, batches), name)
    assert plain.advice == ""
    between = (
        2 * plain.evidence["limit_at_first_step"] / plain.evidence["v0_zero"]
    )  # twice the limit with v₀ = 0
    told = line(inspected(model, torch.optim.AdamW(model.parameters(), lr=between), loss_fn, batches), name)
    assert "Try ew.GIAdamW in the place of torch.optim.AdamW" in told.advice
    has = line(inspected(model, ew.GIAdamW(model.parameters(), lr=between), loss_fn, batches), name)
    assert has.advice == ""
    assert "You use it already" in has.meaning
    optimizer = torch.optim.AdamW(model.parameters(), lr=between)
    train_step(model, optimizer, loss_fn, batches[0])
    assert line(inspected(model, optimizer, loss_fn, batches), name).advice == ""


def test_gi_adam_is_no_question_of_other_optimizers():
    model, batches = regression()
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.1), mse, batches)
    assert {found.question for found in result.findings} == set(QUESTIONS) - {"gi_adam"}


def test_an_optimizer_without_a_limit_is_not_judged_by_one():
    model = nn.Sequential(nn.Linear(2, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))
    batches = [(torch.randn(16, 2), torch.randn(16, 1)) for _ in range(5)]
    result = inspected(model, torch.optim.Adafactor(model.parameters(), lr=1e-2), mse, batches)
    found = line(result, "rate × preconditioned sharpness")
    assert (found.ok, found.value, found.advice) == (False, None, "")
    assert "Adafactor" in found.meaning
    assert line(result, "critical rate of the coming update").ok  # which knows any optimizer


def test_what_was_not_measured_advises_nothing():
    model, batches = regression()

    def restless(model, batch):
        return mse(model, batch) * (1 + 0.1 * next(counter))

    counter = iter(range(10**6))
    result = inspected(model, torch.optim.AdamW(model.parameters(), lr=0.1), restless, batches)
    unknown = [found for found in result.findings if not found.ok]
    assert {"stability", "gi_adam"} <= {found.question for found in unknown}
    assert all(
        found.value is None and found.advice == "" and found.shown == "not measured" for found in unknown
    )
    odd = line(result, "variation of the loss at one point")
    assert odd.level == "notice"
    assert "does not repeat" in odd.meaning


def test_a_result_is_plain_data_and_prints():
    model, batches = regression()
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.1), mse, batches)
    read = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert read["lr"] == 0.1
    assert read["lr_suggested"] == pytest.approx(result.lr_suggested)
    assert read["subject"]["optimizer"] == "SGD"
    assert len(read["trial"]["path"]["lr"]) > 0
    assert list(read["questions"]) == list(QUESTIONS)
    assert "\n" not in str(result)
    assert all(question in result.summary() for question in QUESTIONS.values())
    assert all(found.meaning.rstrip().endswith(".") for found in result.findings)
    assert all(found.advice.endswith(".") for found in result.findings if found.advice)


@pytest.mark.parametrize(
    ("is_bound", "words"), [(True, "over at least 40 updates"), (False, "over 40 updates")]
)
def test_a_length_that_is_a_bound_prints_as_one(is_bound, words):
    length = Finding(
        question="warmup", name="length", value=40, shown="", meaning="", evidence={"is_bound": is_bound}
    )
    result = InspectionResult(
        lr=0.1,
        lr_suggested=0.2,
        lr_largest=1.0,
        warmup_steps=40,
        findings=(length,),
        trial={},
        subject={},
        num_updates=50,
        seconds=1.0,
    )
    assert f"; warmup {words} (" in str(result)


def test_progress_goes_forward_to_its_end():
    model, batches = regression()
    seen = []
    inspected(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        mse,
        batches,
        on_progress=lambda *state: seen.append(state),
    )
    done = [state[0] for state in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert [state[2] for state in seen if state[0] == 0][:1] == ["losses and gradients"]
    assert seen[-1][2] == "trial"


def test_a_loss_that_differentiates_itself():
    """As of physics-informed networks."""
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def residual(model, batch):
        x = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope - batch).square().mean()

    batches = list(torch.randn(8, 16, 1))
    result = inspected(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), residual, batches, max_updates=100
    )
    assert {found.question for found in result.findings if found.ok} == set(QUESTIONS)


def test_a_loss_without_data():
    model, _ = regression()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    result = inspected(model, sgd, lambda model, batch: model.weight.square().sum(), [(), ()])
    assert line(result, "rate × preconditioned sharpness").value == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_loss_may_take_entries_out_of_its_batch(kind):
    model, batches = regression()
    batches = [kind(inputs=x, labels=y) for x, y in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = inspected(
        model, optimizer, lambda model, b: mse(model, (b.pop("inputs"), b.pop("labels"))), batches
    )
    assert result.ok
    assert all(len(batch) == 2 for batch in batches)


def test_batches_that_run_out_are_read_again_and_that_is_told():
    model, batches = regression(number=3)
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.1), mse, batches)
    assert result.trial["num_passes"] > 1
    assert "ran out" in line(result, "suggested rate").meaning


def bad(change):
    """Arguments that are good but for one."""
    model, batches = regression()
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": lambda model, batch: pytest.fail("the loss was computed"),
        "batches": batches,
    }
    return change(given) or given


def frozen(given):
    given["model"].requires_grad_(False)


def at_rate_0(given):
    torch.optim.lr_scheduler.LambdaLR(given["optimizer"], float)


BAD = {
    "model": (lambda given: given | {"model": "gpt2"}, TypeError, r"model must be a torch.nn.Module, got 'gpt2'"),
    "swapped": (
        lambda given: given | {"model": given["optimizer"], "optimizer": given["model"]},
        TypeError,
        r"are arguments swapped\?",
    ),
    "no gradient": (frozen, ValueError, r"none of the model's 1 parameters requires a gradient: unfreeze"),
    "another model's": (
        lambda given: given | {"optimizer": torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)},
        ValueError,
        r"the optimizer holds 2 parameters, of which 2 are not the model's",
    ),
    "rate 0": (at_rate_0, ValueError, r"group 0 is 0, where a scheduler has put it \(it started from 0.1\)"),
    "maximize": (
        lambda given: given | {"optimizer": torch.optim.SGD(given["model"].parameters(), lr=0.1, maximize=True)},
        ValueError,
        r"group 0 has maximize=True",
    ),
    "closure": (
        lambda given: given | {"optimizer": torch.optim.LBFGS(given["model"].parameters())},
        TypeError,
        r"LBFGS evaluates the loss inside its step",
    ),
    "loss": (lambda given: given | {"loss_fn": nn.MSELoss()}, TypeError, r"loss_fn must be a function of"),
    "one tensor": (lambda given: given | {"batches": torch.ones(2)}, TypeError, r"write \[batch\] for a single one"),
    "iterator": (lambda given: given | {"batches": iter([1])}, TypeError, r"read only once"),
    "empty": (lambda given: given | {"batches": []}, ValueError, r"batches is empty"),
    "updates": (lambda given: given | {"max_updates": 19}, ValueError, r"max_updates must be 20 or greater, got 19"),
    "seed": (lambda given: given | {"seed": -1}, ValueError, r"seed must be 0 or greater"),
    "progress": (lambda given: given | {"on_progress": 1}, TypeError, r"on_progress must be a function"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_any_compute(name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        ew.inspect(**bad(change))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("edgewise.advice.subject.ranks_of", lambda model: SimpleNamespace(num=2))
    with pytest.raises(ValueError, match="trained by 2 processes, inspect works in one"):
        ew.inspect(**bad(dict))


def test_a_loss_that_is_not_finite_here_is_an_error():
    model, batches = regression()
    with pytest.raises(ew.LossError, match="is nan"):
        inspected(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            lambda model, batch: mse(model, batch) * math.nan,
            batches,
        )


# What is odd


def of_first(name, model, optimizer, loss_fn=mse, batches=None):
    return line(inspected(model, optimizer, loss_fn, batches or regression()[1]), name)


def test_a_loss_in_bfloat16_is_too_coarse():
    model, _ = regression()
    name, sgd = "resolution of the loss", torch.optim.SGD(model.parameters(), lr=1e-5)
    found = of_first(name, model, sgd, lambda model, batch: mse(model, batch).bfloat16() + 100)
    assert found.value == pytest.approx(2.0**-7 * 102, rel=0.05)
    assert "float32" in found.advice
    assert of_first(name, model, sgd).advice == ""


def test_updates_that_rounding_takes_are_counted():
    model = nn.Linear(2, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0]]))  # the second entry moves however short the step
    batches = [(torch.ones(2, 2, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16))] * 4
    found = of_first(
        "updates lost to rounding", model, torch.optim.SGD(model.parameters(), lr=1e-4), mse, batches
    )
    assert found.value == 0.5
    assert "float32" in found.advice


def test_small_second_moments_are_counted():
    model, batches = regression()
    name = "second moments below ε"
    large = of_first(name, model, torch.optim.AdamW(model.parameters(), lr=1e-3, eps=2.0), mse, batches)
    assert large.value == 0.5  # the gradient is (4, 1)
    assert "Lower eps" in large.advice
    assert of_first(name, model, torch.optim.AdamW(model.parameters(), lr=1e-3)).advice == ""


def test_parameters_that_do_not_train_are_named():
    model, batches = regression()
    model.unused = nn.Parameter(torch.ones(3))
    model.forgotten = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([model.weight, model.unused], lr=0.1)
    result = inspected(model, optimizer, mse, batches)
    assert line(result, "parameters without gradient").evidence["without"] == ["unused"]
    assert line(result, "parameters that the optimizer leaves out").evidence["names"] == ["forgotten"]
    assert line(result, "rate × preconditioned sharpness").ok


def test_a_gradient_that_is_zero_at_first_is_told_apart_from_none():
    class Adapted(nn.Linear):  # as LoRA begins: down has no gradient until up has moved
        def forward(self, x):
            return super().forward(x) + x @ self.down @ self.up

    model = Adapted(2, 1, bias=False)
    model.down, model.up = nn.Parameter(torch.ones(2, 1)), nn.Parameter(torch.zeros(1, 1))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    found = of_first("parameters without gradient", model, sgd)
    assert found.evidence["zero"] == ["down"]
    assert "LoRA" in found.advice
    assert "do not train" not in found.meaning
    assert "Freeze" not in found.advice
    model.unused = nn.Parameter(torch.ones(3))
    sgd.add_param_group({"params": [model.unused]})
    both = of_first("parameters without gradient", model, sgd)
    assert "does not depend on 1 of them" in both.meaning
    assert "The gradient of 1 of them is zero" in both.meaning


@pytest.mark.parametrize("schedule", [ew.EdgeWarmup, torch.optim.lr_scheduler.LinearLR])
def test_a_rate_that_a_scheduler_has_lowered_is_told(schedule):
    model, batches = regression()
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule(adam)
    found = of_first("rate as a scheduler has left it", model, adam)
    assert (found.level, found.evidence["initial_lr"]) == ("notice", 0.1)
    train_step(model, adam, mse, batches[0])
    assert all(found.name != other.name for other in inspected(model, adam, mse, batches).findings)


def test_no_direction_is_named_where_nothing_curves_upwards():
    model, _ = regression()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    found = of_first("parameters that hold the top eigenvector", model, sgd, lambda m, batch: -mse(m, batch))
    assert (found.ok, found.value) == (False, None)


def test_a_group_at_rate_0_is_named():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.0}], lr=0.1)
    found = of_first("groups at rate 0", model, optimizer)
    assert (found.value, found.level) == (1, "notice")
    assert "1 of 2: 1" in found.shown


def test_a_model_in_eval_mode_is_told():
    model, loader = digits()
    model.eval()
    found = of_first(
        "modules in eval mode", model, torch.optim.SGD(model.parameters(), lr=0.1), cross_entropy, loader
    )
    assert found.value == 6
    assert "model.train()" in found.advice


def test_the_noise_of_gradients_is_an_unbiased_variance():
    model = nn.Linear(1, 1, bias=False)
    gradients = torch.tensor([1.0, 2.0, 3.0, 6.0])
    result = inspected(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model, batch: (model.weight * batch).sum() + 0 * model.weight.square().sum(),
        [gradient.reshape(1, 1) for gradient in gradients],
    )
    evidence = line(result, "noise of a batch's gradient").evidence
    assert evidence["noise"] == pytest.approx(float(gradients.var()))
    assert evidence["signal"] == pytest.approx(9 - float(gradients.var()) / 4)


def test_one_batch_says_nothing_of_noise():
    model, batches = regression(number=1)
    result = inspected(model, torch.optim.SGD(model.parameters(), lr=0.1), mse, batches)
    assert not line(result, "noise of a batch's gradient").ok


def test_the_route_of_the_second_derivative_is_told():
    model = nn.Linear(2, 1, bias=False)
    result = inspected(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model, batch: OnceOnly.apply(model(batch[0])).square().mean(),
        regression()[1],
    )
    found = line(result, "route of the second derivative")
    assert found.evidence["hvp"] == "difference"
    assert found.evidence["error"] > 0
    assert "once_differentiable" in found.meaning
