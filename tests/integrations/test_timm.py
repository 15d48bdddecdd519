"""timm's optimizers and its order of calls. Ladder: the same loop without timm's calls, whose rates are the same bits.

Cannot see: timm's train.py itself, which no package holds; its calls are those of version 1.0.31.
"""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import edgewise as ew

timm = pytest.importorskip("timm")
from timm.optim import Lookahead, create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402

from edgewise.integrations.timm import TimmScheduler  # noqa: E402

EPOCHS, PER_EPOCH = 3, 4
OPTIMIZERS = ("adamw", "sgd", "lamb", "muon")
WARMUPS = {
    "edge": ew.EdgeWarmup,
    "catapult": ew.CatapultWarmup,
    "linear": lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=4),
}


class Run:
    """A network of timm's, trained by one of its optimizers."""

    def __init__(self, opt="adamw", make=ew.EdgeWarmup, **options):
        torch.manual_seed(0)
        self.model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=8,
            patch_size=4,
            embed_dim=16,
            num_heads=2,
            depth=1,
            num_classes=3,
        )
        self.follow(create_optimizer_v2(self.model, opt=opt, lr=0.01, weight_decay=0.05, **options), make)
        data = torch.Generator().manual_seed(1)
        self.batches = [
            (torch.randn(6, 3, 8, 8, generator=data), torch.arange(6) % 3) for _ in range(EPOCHS * PER_EPOCH)
        ]

    def follow(self, optimizer, make=ew.EdgeWarmup, *, scaled=False):
        """Train by another optimizer, whose rates are `scaled` as the error says."""
        for group in optimizer.param_groups if scaled else ():
            group["lr"] *= group.pop("lr_scale")
        self.optimizer, self.warmup = optimizer, make(optimizer)
        self.schedule = self.warmup.then_until(EPOCHS * PER_EPOCH, "cosine")

    def loss(self, batch):
        return cross_entropy(self.model(batch[0]), batch[1])

    def update(self, number):
        """Make an update; return its rates and loss."""
        self.optimizer.zero_grad()
        batch = self.batches[number]
        loss = self.loss(batch)
        loss.backward()
        self.warmup.observe(lambda: self.loss(batch), loss=loss)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.step()
        return [*rates, loss.item()]

    def plain(self):
        rows = []
        for number in range(len(self.batches)):
            rows.append(self.update(number))
            self.schedule.step()
        return rows

    def as_timm_does(self, scheduler, epochs=range(EPOCHS)):
        """Train as its train.py does: the number of updates is counted from the epoch's."""
        rows = []
        if epochs.start > 0:
            scheduler.step_update(epochs.start * PER_EPOCH)
        for epoch in epochs:
            num_updates = epoch * PER_EPOCH
            for _ in range(PER_EPOCH):
                rows.append(self.update(num_updates))
                num_updates += 1
                scheduler.step_update(num_updates=num_updates, metric=rows[-1][-1])
            scheduler.step(epoch + 1, rows[-1][-1])
        return rows


@pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_rates_and_losses_are_those_of_a_plain_loop(opt, make):
    run = Run(opt, make)
    rows = run.as_timm_does(TimmScheduler(run.schedule))
    assert rows == Run(opt, make).plain()
    assert len({rate for rate, *_ in rows}) > 3
    assert run.optimizer.param_groups[0]["lr"] == 0.0  # the decay has ended with the run


def test_a_resumed_run_has_the_same_rates():
    whole = Run()
    expected = whole.as_timm_does(TimmScheduler(whole.schedule))
    first = Run()
    scheduler = TimmScheduler(first.schedule)
    rows = first.as_timm_does(scheduler, range(1))
    saved = copy.deepcopy([part.state_dict() for part in (first.model, first.optimizer, scheduler)])
    second = Run()
    resumed = TimmScheduler(second.schedule)
    for part, state in zip((second.model, second.optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    assert rows + second.as_timm_does(resumed, range(1, EPOCHS)) == expected


def test_layer_decay_is_scaled_before_the_warmup_or_refused():
    run = Run(layer_decay=0.5)
    with pytest.raises(ValueError, match=r"lr_scale \(layer_decay\).*group\.pop\('lr_scale'\)"):
        TimmScheduler(run.schedule)
    run.follow(create_optimizer_v2(run.model, opt="adamw", lr=0.01, layer_decay=0.5), scaled=True)
    for *rates, _ in run.as_timm_does(TimmScheduler(run.schedule)):
        assert {round(math.log2(rate / max(rates)), 6) for rate in rates} == {0.0, -1.0, -2.0}


def test_lookahead_warms_up_by_the_optimizer_inside():
    run = Run()
    inner = create_optimizer_v2(run.model, opt="adamw", lr=0.01)
    run.follow(inner)
    run.optimizer = Lookahead(inner)
    with pytest.raises(
        TypeError, match=r"steps of Lookahead cannot be followed.*pass the optimizer inside it"
    ):
        ew.EdgeWarmup(run.optimizer)
    rows = run.as_timm_does(TimmScheduler(run.schedule))
    assert run.warmup.found.ok
    assert run.warmup.report().updates == len(rows)
    assert run.optimizer.param_groups[0]["lr"] == 0.0


def test_schedulers_of_others_are_refused():
    optimizer = Run().optimizer
    theirs, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=3)
    for other in (theirs, torch.optim.lr_scheduler.StepLR(optimizer, 1), None, optimizer):
        with pytest.raises(TypeError, match="scheduler must be a warmup, or what its then"):
            TimmScheduler(other)


def test_a_schedule_of_timm_s_besides_is_said():
    """It has written its first rate to the optimizer, which is then the target."""
    run = Run()
    optimizer = create_optimizer_v2(run.model, opt="adamw", lr=0.01)
    create_scheduler_v2(optimizer, sched="cosine", num_epochs=3, warmup_epochs=1, warmup_lr=1e-5)
    warmup = ew.LinearWarmup(optimizer, warmup_steps=2)
    scheduler = TimmScheduler(warmup)
    run.loss(run.batches[0]).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"rates as they stood, \[1e-05.*started from \[0\.01"):
        scheduler.step_update(1)
