"""The callbacks for Lightning.

Ladder: the same training as a plain loop of torch that observes by hand, bit for bit; a run without the callback, where
observing must change nothing; `ew.sharpness` on the same samples. Cannot see: GPUs, and what Lightning does elsewhere.
"""

import copy
import functools
import math
import pickle
import types

import pytest
import torch

import edgewise as ew

L = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint  # noqa: E402
from lightning.pytorch.loggers import CSVLogger  # noqa: E402
from lightning.pytorch.loggers.logger import Logger  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy  # noqa: E402
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau  # noqa: E402

from edgewise.integrations.lightning import EdgeWarmupCallback, MonitorCallback  # noqa: E402
from edgewise.integrations.lightning.checks import check_module  # noqa: E402
from integrations import lightning_runs as runs  # noqa: E402
from integrations.lightning_runs import Net, assert_equal, fit, plain  # noqa: E402

NUM = 3 * runs.NUM_BATCHES  # updates of a run without accumulation


class Lines(Logger):
    """Keeps what is logged."""

    name, version = "lines", 0

    def __init__(self):
        super().__init__()
        self.lines, self.experiment = [], types.SimpleNamespace()

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass

    def values(self, name):
        return {step: metrics[name] for step, metrics in self.lines if name in metrics}


def edge(num_steps):
    return functools.partial(ew.EdgeWarmup, num_steps=num_steps)


def cosine(optimizer):
    return {"scheduler": CosineAnnealingLR(optimizer, T_max=10), "interval": "step"}


@pytest.mark.parametrize(
    ("make_optimizer", "options", "settings"),
    [
        (runs.adamw, {}, {}),
        (runs.gi_adamw, {}, {}),
        (runs.sgd, {}, {}),
        (runs.adamw, {"accumulate_grad_batches": 2}, {"accumulate": 2}),
        (runs.adamw, {"accumulate_grad_batches": 3}, {"accumulate": 3}),  # the last of an epoch has two
        (
            runs.sgd,
            {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
            {"accumulate": 2, "clip": 0.1},
        ),
        (
            runs.gi_adamw,
            {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
            {"autocast": True, "accumulate": 2},
        ),
    ],
)
def test_rates_and_losses_are_those_of_a_plain_loop(make_optimizer, options, settings):
    callback = EdgeWarmupCallback()
    found = fit(Net(make_optimizer), callback, **options)
    num = 3 * math.ceil(runs.NUM_BATCHES / settings.get("accumulate", 1))
    expected = plain(Net(make_optimizer), edge(num), **settings)
    assert_equal(found, expected)
    assert callback.warmup.num_forwards == expected.num_forwards  # the loss given is that of the closure
    assert callback.warmup.fallback is None
    assert callback.warmup.found.ok
    assert found.rates[0] < 0.3


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(ew.LinearWarmup, warmup_steps=10),
        functools.partial(ew.LinearWarmup, warmup_steps=10, lr_init="critical"),
        ew.CatapultWarmup,
        edge(60),
    ],
)
def test_any_warmup_may_be_asked_for(make):
    callback = EdgeWarmupCallback(warmup=make)
    assert_equal(fit(Net(runs.slow_sgd), callback), plain(Net(runs.slow_sgd), make))


def test_the_scheduler_of_the_module_follows_the_warmup():
    warmup = functools.partial(ew.LinearWarmup, warmup_steps=6)
    found = fit(Net(scheduler=cosine), EdgeWarmupCallback(warmup))
    follow = lambda warmup: warmup.then(CosineAnnealingLR(warmup.optimizer, T_max=10))
    assert_equal(found, plain(Net(), warmup, follow=follow))
    assert found.rates[5] == found.rates[6] == 0.3
    assert found.rates[16] == 0


@pytest.mark.parametrize("decay", ["cosine", "linear", lambda update, length: 0.5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_decay_ends_with_the_run(decay, accumulate):
    callback = EdgeWarmupCallback(decay=decay)
    found = fit(Net(), callback, accumulate_grad_batches=accumulate)
    num = NUM // accumulate
    follow = lambda warmup: warmup.then_until(num, decay)
    assert_equal(found, plain(Net(), accumulate=accumulate, follow=follow))
    assert callback.schedule.num_steps == num
    assert len(found.rates) == num
    if isinstance(decay, str):
        assert callback.schedule.get_last_lr() == [0.0]
        assert max(found.rates) > found.rates[-1] > 0


def test_a_decay_ends_at_max_steps_without_a_last_epoch():
    callback = EdgeWarmupCallback(decay="linear")
    found = fit(Net(), callback, max_epochs=-1, max_steps=13)
    assert len(found.rates) == callback.schedule.num_steps == 13
    assert callback.schedule.get_last_lr() == [0.0]


@pytest.mark.parametrize("first_scale", [2.0**10, 2.0**40])  # the second: some steps are skipped
def test_losses_are_those_before_a_gradient_scaler(first_scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=first_scale)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    logger, callback = Lines(), EdgeWarmupCallback()
    seen = []
    observe = ew.EdgeWarmup.observe

    class Watched(ew.EdgeWarmup):
        def observe(self, closure, *, loss=None):
            seen.append((float(closure.value), float(closure().detach())))
            observe(self, closure, loss=loss)

    callback = EdgeWarmupCallback(Watched)
    found = fit(Net(), callback, plugins=[precision], logger=logger, log_every_n_steps=1)
    assert all(given == again for given, again in seen)
    assert len(seen) == NUM
    assert len(found.rates) == callback.warmup.report().updates
    assert (len(found.rates) < NUM) == (first_scale > 2.0**20)
    assert callback.warmup.fallback is None


def test_a_module_logs_counts_and_keeps_each_batch_once():
    class Logs(Net):
        def training_step(self, batch, batch_idx):
            self.logger.log_metrics({"calls": self.calls}, step=self.trainer.global_step)
            self.logger.experiment.add_histogram("weights", self.net[0].weight)
            return super().training_step(batch, batch_idx)

    logger, module = Lines(), Logs()
    logger.experiment.add_histogram = lambda name, values: histograms.append(name)
    histograms = []
    found = fit(module, EdgeWarmupCallback(), MonitorCallback(every=4), logger=logger, log_every_n_steps=1)
    assert module.calls == NUM == len(histograms)
    assert [m["calls"] for _, m in logger.lines if "calls" in m] == [*range(NUM)]
    assert module.kept == [*range(runs.NUM_BATCHES)] * 3
    losses = torch.tensor(found.losses)
    assert [*logger.values("loss_step").values()] == found.losses
    of_epochs = torch.tensor([*logger.values("error_epoch").values()])
    assert of_epochs == pytest.approx(losses.reshape(3, -1).mean(1), rel=1e-5)


def test_a_training_step_may_take_its_batch_apart(monkeypatch):
    inputs, targets = runs.data()
    rows = [{"left": x, "inputs": [x], "targets": y} for x, y in zip(inputs, targets, strict=True)]
    monkeypatch.setattr(runs, "loader", lambda: torch.utils.data.DataLoader(rows, batch_size=8))

    class TakesApart(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["inputs"].pop(), batch.pop("targets")), batch_idx)

    found = fit(TakesApart(), EdgeWarmupCallback(), MonitorCallback(every=9), accumulate_grad_batches=2)
    assert_equal(found, plain(Net(), edge(NUM // 2), accumulate=2))


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}])
def test_a_monitor_changes_nothing(options):
    logged, found = [], []
    for monitors in ([], [MonitorCallback(every=3)]):
        logger = Lines()
        module = Net(dropout=0.3)
        options |= {"logger": logger, "log_every_n_steps": 1}
        found.append(fit(module, *monitors, EdgeWarmupCallback(), **options))
        logged.append([(step, m) for step, m in logger.lines if "edgewise/sharpness" not in m])
        assert len(logger.values("edgewise/sharpness")) == (len(found[-1].rates) // 3 if monitors else 0)
    assert_equal(*found)
    assert logged[0] == logged[1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_monitor_measures_the_update(accumulate):
    callback = MonitorCallback(every=10**6, rtol=1e-4)
    module = Net()
    model = copy.deepcopy(module.net)
    fit(module, callback, accumulate_grad_batches=accumulate)
    samples = tuple(tensor[: 8 * accumulate] for tensor in runs.data())
    expected = ew.sharpness(model, lambda m, b: runs.mse_loss(m(b[0]), b[1]), [samples], rtol=1e-4)
    assert callback.row.sharpness == pytest.approx(expected.value, rel=1e-3)
    assert callback.row.step == 0


def test_a_monitor_may_have_batches_of_its_own():
    callback = MonitorCallback(every=10**6, rtol=1e-4, batches=[[t[:20] for t in runs.data()]])
    module = Net()
    model = copy.deepcopy(module.net)
    fit(module, callback)
    samples = tuple(tensor[:20] for tensor in runs.data())
    expected = ew.sharpness(model, lambda m, b: runs.mse_loss(m(b[0]), b[1]), [samples], rtol=1e-4)
    assert callback.row.sharpness == pytest.approx(expected.value, rel=1e-3)
    assert module.calls == NUM


@pytest.mark.parametrize("order", [1, -1])
def test_the_rate_that_the_update_used_is_logged(order):
    logger = Lines()
    callbacks = [EdgeWarmupCallback(), MonitorCallback(every=2, prefix="monitor/")]
    found = fit(Net(), *callbacks[::order], logger=logger, log_every_n_steps=1)
    assert logger.values("edgewise/lr") == dict(enumerate(found.rates))
    assert [*logger.values("monitor/lr").values()] == found.rates[::2]
    assert len(set(found.rates[::2])) > 3
    assert logger.values("edgewise/warmup/status")[0] == ew.Status.UNDER_WAY.code
    assert logger.values("loss_step").keys() == set(range(NUM))  # the same steps as the module's own


def test_a_share_that_a_single_update_takes_is_the_rate_logged():
    logger, callback = Lines(), EdgeWarmupCallback(edge(NUM))

    class Spiky(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * 100 if self.trainer.global_step == 22 else loss

    found = fit(Spiky(), callback, logger=logger, log_every_n_steps=1)
    assert found.rates[22] < 0.9 * found.rates[21]
    assert logger.values("edgewise/lr")[22] == found.rates[22]
    assert callback.warmup.report().num_spikes == 1


def test_rates_are_logged_as_often_as_the_trainer_asks(tmp_path):
    logger = Lines()
    options = {"logger": [logger, CSVLogger(tmp_path)], "log_every_n_steps": 5}
    fit(Net(), EdgeWarmupCallback(prefix="lr/"), **options)
    assert [*logger.values("lr/lr")] == [4, 9, 14, 19]
    [table] = tmp_path.rglob("metrics.csv")
    assert "lr/warmup/lr" in table.read_text().splitlines()[0]
    quiet = Lines()
    fit(Net(), EdgeWarmupCallback(), logger=quiet, log_every_n_steps=0)
    assert quiet.values("edgewise/lr") == {}


# Checkpoints


class Stateful(torch.utils.data.DataLoader):
    """A loader that goes on within an epoch."""

    given = 0

    def __iter__(self):
        start = self.given % len(self)
        for index, batch in enumerate(super().__iter__()):
            if index >= start:
                self.given = index + 1
                yield batch

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.given = state["given"]


@pytest.fixture
def stateful(monkeypatch):
    dataset = torch.utils.data.TensorDataset(*runs.data())
    monkeypatch.setattr(runs, "loader", lambda: Stateful(dataset, batch_size=8))


RESUMED = {
    "held": ({}, {}),
    "cosine": ({}, {"decay": "cosine"}),
    "scheduler": ({"scheduler": cosine}, {"warmup": functools.partial(ew.LinearWarmup, warmup_steps=4)}),
}


@pytest.mark.usefixtures("stateful")
@pytest.mark.parametrize("what", RESUMED)
def test_a_resumed_run_is_the_same_bit_for_bit(what, tmp_path):
    of_module, of_callback = RESUMED[what]
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "max_epochs": 4}

    def callbacks():
        keep = ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
        )
        return EdgeWarmupCallback(**of_callback), MonitorCallback(every=5), keep

    whole = fit(Net(**of_module), *callbacks(), enable_checkpointing=True, **options)
    for step in (3, 6, 11):  # within an epoch of four updates
        parts = callbacks()
        rest = fit(Net(**of_module), *parts[:2], ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert rest.rates == whole.rates[step:]
        assert rest.losses == whole.losses[2 * step :]
        assert all(torch.equal(a, b) for a, b in zip(rest.parameters, whole.parameters, strict=True))
        assert parts[1].row.step == 15
    if what == "cosine":
        assert len(set(whole.rates)) > 10


def test_a_decay_goes_to_the_new_end_of_a_longer_run(tmp_path):
    callback = EdgeWarmupCallback(decay="linear")
    trainer = runs.trainer_of(callback)
    runs.train(trainer, Net())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    longer = EdgeWarmupCallback(decay="linear")
    rest = fit(Net(), longer, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert longer.schedule.num_steps == 5 * runs.NUM_BATCHES
    assert len(rest.rates) == 2 * runs.NUM_BATCHES
    assert rest.rates == sorted(rest.rates, reverse=True)
    assert rest.rates[-1] > 0
    assert longer.schedule.get_last_lr() == [0.0]


def test_a_checkpoint_without_a_warmup_is_refused(tmp_path):
    trainer = runs.trainer_of(max_epochs=1)
    runs.train(trainer, Net())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    module = Net()
    with pytest.raises(
        ValueError, match=r"plain.ckpt holds no state of a warmup, .* fit\(\) without ckpt_path"
    ):
        fit(module, EdgeWarmupCallback(), ckpt_path=tmp_path / "plain.ckpt")
    assert module.calls == 0


def test_a_state_from_a_test_is_not_taken_for_that_of_the_next_run(tmp_path):
    callback = MonitorCallback(every=1)
    trainer = runs.trainer_of(callback, max_epochs=1)
    module = Net()
    runs.train(trainer, module)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trainer.fit_loop.max_epochs = 2
    with runs.without_advice():
        trainer.validate(module, runs.loader(), ckpt_path=tmp_path / "one.ckpt", verbose=False)
    runs.train(trainer, module)
    assert callback.row.step == runs.NUM_BATCHES - 1


# What is left behind


def left(module):
    return {name: value for name, value in vars(module).items() if "clip" in name or name.startswith("log")}


def test_nothing_is_left_in_the_module_and_the_trainer():
    module, logger = Net(), Lines()
    before = left(module)
    trainer = runs.trainer_of(EdgeWarmupCallback(), MonitorCallback(every=5), logger=logger)
    runs.train(trainer, module, validate=True)
    assert left(module) == before
    assert trainer.loggers == [logger]
    assert all(callback._update_loss is None for callback in trainer.callbacks[:2])


@pytest.mark.parametrize(("error", "raised"), [(OSError("disk"), OSError), (KeyboardInterrupt(), SystemExit)])
def test_nothing_is_left_after_an_exception(error, raised):
    module = Net(fails=error)
    before = left(module)
    trainer = runs.trainer_of(MonitorCallback(every=1), EdgeWarmupCallback())
    with pytest.raises(raised):
        runs.train(trainer, module)
    assert module.calls == 5
    assert left(module) == before
    module.fails = None
    again = runs.trainer_of(EdgeWarmupCallback())
    runs.train(again, module)
    assert again.global_step == NUM


def test_nothing_is_left_after_an_exception_while_observing():
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            if not torch.is_grad_enabled():
                raise OSError("disk")
            return super().training_step(batch, batch_idx)

    module, logger = Fails(), Lines()
    before = left(module)
    trainer = runs.trainer_of(EdgeWarmupCallback(), logger=logger)
    with pytest.raises(OSError, match="disk"):
        runs.train(trainer, module)
    assert left(module) == before
    assert trainer.loggers == [logger]
    assert module.calls == 1


def test_a_clipping_of_the_module_s_own_comes_back():
    module, calls = Net(), []
    module.configure_gradient_clipping = own = lambda *args, **kwargs: calls.append(1)
    trainer = runs.trainer_of(EdgeWarmupCallback(), MonitorCallback(every=9))
    runs.train(trainer, module)
    assert module.configure_gradient_clipping is own
    assert len(calls) == NUM


class Bare(L.LightningModule):
    """Without a metric, which cannot be copied while it holds a graph."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 1)

    def training_step(self, batch):
        return runs.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return runs.adamw(self.parameters())


def test_copies_of_a_module_under_way_have_clipping_of_their_own():
    copies = []

    class Copies(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module._trainer, held = None, pl_module._trainer
            copies.extend([copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))])
            pl_module._trainer = held

    fit(Bare(), EdgeWarmupCallback(), Copies(), max_steps=1)
    assert len(copies) == 2
    for other in copies:
        assert other.configure_gradient_clipping.__self__ is other
        assert other.configure_gradient_clipping.__func__ is L.LightningModule.configure_gradient_clipping


def test_short_runs_and_overfitting():
    for options in ({"fast_dev_run": True}, {"overfit_batches": 1}, {"limit_train_batches": 2}):
        module = Net()
        before = left(module)
        callback = EdgeWarmupCallback(decay="cosine")
        found = fit(module, callback, MonitorCallback(), validate=True, **options)
        assert callback.schedule.num_steps == len(found.rates) > 0
        assert callback.warmup.fallback is None
        assert left(module) == before


def test_validation_in_between_changes_nothing():
    one, other = (
        fit(Net(), EdgeWarmupCallback(), MonitorCallback(every=4), validate=validate, val_check_interval=3)
        for validate in (False, True)
    )
    assert_equal(one, other)


def test_a_trainer_may_go_on():
    callback = EdgeWarmupCallback(decay="linear")
    recorder = runs.Recorder()
    trainer = runs.trainer_of(recorder, callback)
    module = Net()
    runs.train(trainer, module)
    with pytest.raises(ValueError, match="has made its 24 updates already"):
        runs.train(trainer, module)
    trainer.fit_loop.max_epochs = 5
    recorder.run.rates.clear()
    runs.train(trainer, module)
    assert callback.schedule.num_steps == len(recorder.run.rates) == 2 * runs.NUM_BATCHES
    assert callback.schedule.get_last_lr() == [0.0]


def test_updates_that_lack_a_loss_are_left_out():
    class Skips(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (2, 5) else super().training_step(batch, batch_idx)

    class Recorded(Skips):
        seen = ()

        def on_before_optimizer_step(self, optimizer):
            self.seen += (len(callback._update_loss.batches),)

    module, callback = Recorded(), EdgeWarmupCallback()
    trainer = runs.trainer_of(callback, max_epochs=1, accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="returned `None`"):
        runs.train(trainer, module)
    assert module.seen == (2, 1, 1, 2)
    assert callback.warmup.fallback is None


def test_an_update_that_is_given_up_is_no_part_of_the_next():
    class GivesUp(Net):
        seen = ()

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 5 and self.trainer.current_epoch == 0 else None

        def on_before_optimizer_step(self, optimizer):
            self.seen += (len(callback._update_loss.batches),)

    module, callback = GivesUp(), EdgeWarmupCallback()
    runs.train(runs.trainer_of(callback, max_epochs=2, accumulate_grad_batches=4), module)
    assert module.seen == (4, 4, 4)
    assert callback.warmup.fallback is None


# What is refused


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Fetches(Net):
    def training_step(self, dataloader_iter):
        raise AssertionError


class Two(Net):
    def configure_optimizers(self):
        optimizer = runs.sgd(self.parameters())
        made = [LambdaLR(optimizer, lambda update: 1.0) for _ in range(2)]
        return [optimizer], [{"scheduler": scheduler, "interval": "step"} for scheduler in made]


class Foreign(Net):
    def configure_optimizers(self):
        return runs.sgd(torch.nn.Linear(2, 1).parameters())


class Without(Net):
    def configure_optimizers(self):
        return None


class Frozen(Net):
    def configure_optimizers(self):
        self.requires_grad_(False)
        return runs.sgd(self.parameters())


def scheduled(scheduler, **config):
    return lambda: Net(scheduler=lambda optimizer: {"scheduler": scheduler(optimizer), **config})


def constant(optimizer):
    return LambdaLR(optimizer, lambda update: 1.0)


REFUSED = [
    (Manual, {}, {}, "needs automatic optimization, .* call warmup.observe"),
    (Fetches, {}, {}, r"fetches its own from dataloader_iter: let it take \(batch, batch_idx\)"),
    (Two, {}, {}, "configure_optimizers returns 2: write them as one LambdaLR"),
    (Foreign, {}, {}, "no parameter of Foreign .* return one of self.parameters"),
    (Without, {}, {}, "no parameter of Without"),
    (Frozen, {}, {}, "no parameter of Frozen"),
    (scheduled(constant), {}, {}, "interval='epoch', Lightning's default, and must have 'step': return {"),
    (scheduled(constant, interval="step", frequency=2), {}, {}, "frequency=2, and must have 1"),
    (scheduled(constant, interval="step"), {"decay": "cosine"}, {}, "leave one of them out"),
    (scheduled(ew.EdgeWarmup, interval="step"), {}, {}, "returns a EdgeWarmup already"),
    (
        scheduled(ReduceLROnPlateau, interval="step", monitor="loss"),
        {},
        {},
        "ReduceLROnPlateau cannot follow the warmup",
    ),
    (Net, {"decay": "linear"}, {"max_epochs": -1}, "neither max_steps nor max_epochs"),
    (Net, {"decay": "linear"}, {"callbacks": "accumulation"}, "the same accumulate_grad_batches throughout"),
    (Net, {"warmup": constant}, {}, "warmup must return a warmup"),
    (
        Net,
        {"warmup": lambda optimizer: ew.EdgeWarmup(runs.adamw([torch.ones(1)]))},
        {},
        "must return a warmup",
    ),
]


@pytest.mark.parametrize(("module", "settings", "options", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_any_compute(module, settings, options, message):
    module, callbacks, options = module(), [EdgeWarmupCallback(**settings)], dict(options)
    if options.pop("callbacks", None):
        callbacks.append(GradientAccumulationScheduler({0: 1, 1: 2}))
    before = left(module)
    trainer = runs.trainer_of(*callbacks, **options)
    with pytest.raises((ValueError, TypeError), match=message):
        runs.train(trainer, module)
    assert module.calls == 0
    assert left(module) == before


def test_two_optimizers_are_refused():
    """By Lightning itself, where optimization is automatic."""

    class TwoOptimizers(Net):
        def configure_optimizers(self):
            return [runs.sgd(self.net[0].parameters()), runs.sgd(self.net[3].parameters())]

    with pytest.raises(RuntimeError, match="multiple optimizers is only supported with manual"):
        fit(TwoOptimizers(), EdgeWarmupCallback())


def test_two_callbacks_are_refused():
    with pytest.raises(ValueError, match="the trainer has 2 EdgeWarmupCallbacks"):
        fit(Net(), EdgeWarmupCallback(), EdgeWarmupCallback())
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        runs.trainer_of(MonitorCallback(), MonitorCallback(every=3))
    runs.trainer_of(MonitorCallback(), MonitorCallback(prefix="head/", params="net.3.*"))


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy])
@pytest.mark.parametrize("callback", [EdgeWarmupCallback, MonitorCallback])
def test_strategies_that_hide_the_update_are_refused(strategy, callback):
    trainer = types.SimpleNamespace(strategy=strategy.__new__(strategy))
    with pytest.raises(ValueError, match=rf"under {strategy.__name__}.* take warmup.export\(\)"):
        check_module(callback(), trainer, Net())


def test_a_fused_optimizer_that_unscales_for_itself_is_refused():
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    module = Net(lambda parameters: torch.optim.AdamW(parameters, lr=0.3, fused=True))
    with pytest.raises(ValueError, match=r"gradients at their own scale, .* fused=False"):
        fit(module, EdgeWarmupCallback(), plugins=[precision])
    assert module.calls == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeWarmupCallback(3), "warmup must be a function"),
        (lambda: EdgeWarmupCallback(decay="cosin"), "cosine"),
        (lambda: EdgeWarmupCallback(prefix=None), "prefix must be a str"),
        (lambda: MonitorCallback(max_overhed=0.1), "max_overhead"),
    ],
)
def test_arguments_are_checked_at_once(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_monitor_options_are_checked_before_any_compute():
    module = Net()
    with pytest.raises(ValueError, match="every"):
        fit(module, MonitorCallback(every=0))
    assert module.calls == 0
