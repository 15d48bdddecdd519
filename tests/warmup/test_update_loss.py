"""Warmups that observe an UpdateLoss: the rates of a closure over the same micro-batches, at no further cost.

Ladder: the same run with a plain closure and the loss given, bit for bit → the same run on batches that are not split,
to rounding. Cannot see: what a framework's loss_fn does beside returning the loss.
"""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import edgewise as ew
from edgewise import CatapultWarmup, EdgeWarmup, LinearWarmup, UpdateLoss

WARMUPS = {
    "critical": lambda o: LinearWarmup(o, warmup_steps=12, lr_init="critical"),
    "catapult": lambda o: CatapultWarmup(o, patience=25),
    "edge": lambda o: EdgeWarmup(o, num_steps=60, max_overhead=None),
}
every_warmup = pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS.keys())
FACTORS = {
    "undivided": lambda size, sizes: 1.0,
    "by their number": lambda size, sizes: 1 / len(sizes),
    "by their sizes": lambda size, sizes: size / sum(sizes),
    "by four, always": lambda size, sizes: 1 / 4,
}
every_factor = pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS.keys())
UPDATES = 24


def micro_batches(step, *, even=False):
    """Four of them; at the end of an epoch of eight updates, three and a smaller one, or two."""
    generator = torch.Generator().manual_seed(step)
    sizes = {6: (8, 8, 8, 4), 7: (8, 8)}.get(step % 8, (8, 8, 8, 8)) if not even else (8, 8, 8, 8)
    inputs = torch.randn(sum(sizes), 4, dtype=torch.float64, generator=generator)
    return list(zip(inputs.split(sizes), inputs.sum(1, keepdim=True).tanh().split(sizes), strict=True))


class Run:
    """Least squares on micro-batches, whose losses are multiplied by a factor before backward()."""

    def __init__(self, make, factor, *, optimizer_class=SGD, lr=0.5, dropout=0.0):
        torch.manual_seed(0)
        layers = [nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)]
        self.model = nn.Sequential(*layers).double()
        self.optimizer = optimizer_class(self.model.parameters(), lr=lr)
        self.warmup, self.factor, self.calls = make(self.optimizer), factor, 0
        self.update_loss = UpdateLoss(self.model, self.loss_fn)

    def loss_fn(self, model, batch):
        self.calls += 1
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def plainly(self, batches):
        """The update's loss, as a user writes it."""
        sizes = [len(batch[0]) for batch in batches]
        total = 0.0
        for batch in batches:
            total = total + self.loss_fn(self.model, batch) * self.factor(len(batch[0]), sizes)
        return total

    def train(self, how, *, inside=False, share=False, skipped=(), steps=range(UPDATES), split=micro_batches):
        """Return the rate and the loss of each update."""
        rows = []
        for step in steps:
            batches = split(step)
            sizes = [len(batch[0]) for batch in batches]

            def closure(batches=batches, sizes=sizes):
                self.optimizer.zero_grad()
                total = 0.0
                for batch in batches:
                    factor = self.factor(len(batch[0]), sizes)
                    loss = self.loss_fn(self.model, batch) * factor
                    loss.backward()
                    total = total + loss.detach()
                    if how != "closure":
                        self.update_loss.add(batch, loss, share=factor if share else None)
                if how == "closure":
                    self.warmup.observe(lambda: self.plainly(batches), loss=total)
                else:
                    self.warmup.observe(self.update_loss)
                rows.append((self.optimizer.param_groups[0]["lr"], total.item()))
                return total

            if inside:
                self.optimizer.step(closure)
            else:
                closure()
                if step not in skipped:
                    self.optimizer.step()
        return rows

    @property
    def weights(self):
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


@every_factor
@every_warmup
@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_shares_that_are_given_give_the_rates_of_a_closure_bit_for_bit(make, factor, optimizer_class):
    lr = 0.5 if optimizer_class is SGD else 0.05
    plain, run = (Run(make, factor, optimizer_class=optimizer_class, lr=lr) for _ in range(2))
    assert run.train("update loss", share=True) == plain.train("closure")
    assert torch.equal(run.weights, plain.weights)
    assert run.warmup.report() == plain.warmup.report()
    assert run.calls == plain.calls


@every_factor
@every_warmup
def test_shares_that_are_found_give_them_at_a_forward_for_each_new_tuple_of_sizes(make, factor):
    plain, run = Run(make, factor), Run(make, factor)
    assert run.train("update loss") == plain.train("closure")
    assert torch.equal(run.weights, plain.weights)
    extra = run.warmup.num_forwards - plain.warmup.num_forwards
    assert 1 <= extra <= 3  # there are three tuples of sizes
    assert (run.calls - plain.calls) in {4, 8, 6, 10}
    assert run.warmup.num_searches == plain.warmup.num_searches


@every_warmup
def test_micro_batches_have_the_rates_of_the_batch_they_make_up(make):
    whole, run = (Run(make, FACTORS["by their number"]) for _ in range(2))

    def joined(step):
        return [tuple(torch.cat(parts) for parts in zip(*micro_batches(step, even=True), strict=True))]

    expected = whole.train("closure", split=joined)
    rows = run.train("update loss", split=lambda step: micro_batches(step, even=True))
    for row, one in zip(rows, expected, strict=True):
        assert row == pytest.approx(one, rel=1e-6)


@every_warmup
def test_it_is_observed_inside_the_step_as_before_it(make):
    before, inside = (Run(make, FACTORS["by their number"]) for _ in range(2))
    losses = [
        [loss for _, loss in run.train("update loss", inside=run is inside)] for run in (before, inside)
    ]
    assert losses[0] == losses[1]
    assert inside.warmup.report() == before.warmup.report()


@every_warmup
def test_dropout_does_not_hide_the_shares(make):
    run = Run(make, FACTORS["by their number"], dropout=0.05)
    run.train("update loss", split=lambda step: micro_batches(step, even=True), steps=range(6))
    assert run.warmup.fallback is None


@every_warmup
def test_observing_leaves_no_trace(make):
    run = Run(make, FACTORS["by their number"], dropout=0.05)
    for batch in micro_batches(0):
        loss = run.loss_fn(run.model, batch) / 4
        loss.backward()
        run.update_loss.add(batch, loss)

    def observe():
        rates = [group["lr"] for group in run.optimizer.param_groups]
        run.warmup.observe(run.update_loss)
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # which is what a warmup is for

    ew.assert_no_side_effects(run.model, run.optimizer, observe)
    assert run.warmup.num_forwards > 4


@every_warmup
def test_a_compiled_loss_leaves_the_buffers_of_the_model_that_it_is_given_alone(make):
    """What is compiled runs no hook of the module's that could tell."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()
    optimizer = SGD(model.parameters(), lr=0.5)
    loss_fn = torch.compile(
        lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]), backend="eager"
    )
    update_loss, warmup = UpdateLoss(model, loss_fn), make(optimizer)
    for batch in micro_batches(0):
        loss = loss_fn(model, batch) / 4
        loss.backward()
        update_loss.add(batch, loss, share=1 / 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    warmup.observe(update_loss)
    assert warmup.num_forwards > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@every_warmup
def test_scheduler_step_may_be_left_out_or_repeated(make):
    plain, often = (Run(make, FACTORS["by their number"]) for _ in range(2))
    expected = plain.train("update loss")
    rows = []
    for step in range(UPDATES):
        rows += often.train("update loss", steps=[step])
        for _ in range(step % 4):
            often.warmup.step()
    assert rows == expected


@pytest.mark.parametrize(
    ("max_overhead", "searches"), [(0.14, 1), (0.12, 0)], ids=["5 forwards", "4 forwards"]
)
@pytest.mark.filterwarnings("ignore:LinearWarmup goes on as plain linear warmup")
def test_the_forward_that_finds_shares_is_part_of_the_budget(max_overhead, searches):
    """A search takes 4, of what is left."""
    make = lambda o: LinearWarmup(o, warmup_steps=12, lr_init="critical", max_overhead=max_overhead)
    run = Run(make, FACTORS["undivided"])
    run.train("update loss", steps=range(1))
    assert run.warmup.num_searches == searches
    assert run.warmup.num_forwards <= max_overhead * 3 * 12
    assert run.calls == 4 * (1 + run.warmup.num_forwards)


@every_warmup
@pytest.mark.parametrize(
    ("spoil", "given", "message"),
    [
        (lambda one: None, {"loss": 1.0}, r"loss must be left out with an UpdateLoss"),
        (lambda one: one.clear(), {}, r"holds no micro-batch: call add\(batch, loss\) after each forward"),
        (
            lambda one: setattr(one, "model", nn.Linear(4, 1)),
            {},
            "UpdateLoss is of another model than the warmup",
        ),
    ],
)
def test_what_cannot_be_observed_is_refused_before_any_compute(make, spoil, given, message):
    run = Run(make, FACTORS["undivided"])
    batch = micro_batches(0)[0]
    run.loss_fn(run.model, batch).backward()
    run.update_loss.add(batch, 1.0)
    spoil(run.update_loss)
    with pytest.raises(ValueError, match=message):
        run.warmup.observe(run.update_loss, **given)
    assert (run.calls, run.warmup.num_forwards) == (1, 0)


@every_warmup
def test_a_factor_that_nothing_explains_leaves_the_warmup_as_it_was(make):
    run = Run(make, lambda size, sizes: 7.0)
    state = run.warmup.state_dict()
    with pytest.raises(ew.LossError, match="the losses added are 7 7 7 7 times what loss_fn returns"):
        run.train("update loss", steps=range(1))
    assert repr(run.warmup.state_dict()) == repr(state)


@every_warmup
def test_an_update_that_a_scaler_skips_is_no_part_of_the_next(make):
    plain, run = (Run(make, FACTORS["by their number"]) for _ in range(2))
    expected = plain.train("closure", skipped=(0, 3, 9))
    assert run.train("update loss", share=True, skipped=(0, 3, 9)) == expected
    assert torch.equal(run.weights, plain.weights)
