"""edgewise in the `Trainer` of Hugging Face's transformers and in those of TRL: two callbacks."""

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.arguments import an_optimizer, described
from edgewise.errors import warn
from edgewise.loss.update_loss import UpdateLoss
from edgewise.monitor.monitor import Monitor
from edgewise.warmup import EdgeWarmup
from edgewise.warmup.followed import WarmupThenUntil
from edgewise.warmup.scheduler import Warmup

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "edgewise.integrations.transformers needs transformers and accelerate: pip install 'edgewise[transformers]'"
    ) from error

from edgewise.integrations.transformers_schedule import check_engine, own_factor, stepping_optimizer
from edgewise.integrations.transformers_updates import UpdateCallback


class EdgeWarmupCallback(UpdateCallback):
    """Warm up the rate in a `Trainer`, of transformers or TRL, and go on with the schedule that its arguments name.

        η(update) = target × warmup's factor, then target × found × schedule(update, warmup_steps=length, max_steps)

    The target is the rate that the optimizer was made with, by the trainer at `learning_rate`. The schedule is that of
    `lr_scheduler_type`, as if `warmup_steps` had been the length found, and ends at `max_steps`; found is the share of
    the target at which the warmup ended. Updates are observed after clipping, by the trainer's own `training_step`
    without its backward: its counts, metrics and logs stay as they are. What the warmup says is in the rows that the
    trainer logs, as `edgewise/…`. Its state is in the checkpoints, so that `resume_from_checkpoint` goes on exactly.

    Each call of `train` begins a warmup at the rates that the optimizer was made with, as the trainer's own schedule
    does. Methods of the trainer are replaced while it trains, and are its own again when that ends or raises.

    Args:
        trainer: the trainer that it is added to, made with `optimizers=(optimizer, None)` or without optimizers.
        warmup: makes the warmup of the trainer's optimizer, such as
            `lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=100)`. An `EdgeWarmup` without `num_steps` gets
            the trainer's.

    Attributes:
        warmup: that of the run under way or of the last one, or `None`.

    Raises:
        TypeError: an argument has the wrong type, or `lr_scheduler_type` names a schedule that needs a metric.
        ValueError: the trainer has a scheduler or an `EdgeWarmupCallback`, or trains under DeepSpeed, FSDP1, or
            tensor, context or sequence parallelism.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from transformers import PrinterCallback, TrainingArguments
        >>> class Regression(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(2, 1)
        ...     def forward(self, x, labels):
        ...         return {"loss": (self.linear(x) - labels).square().mean()}
        >>> arguments = TrainingArguments(tempfile.mkdtemp(), learning_rate=0.1, save_strategy="no", report_to="none",
        ...     disable_tqdm=True, use_cpu=True)
        >>> dataset = [{"x": torch.ones(2), "labels": torch.ones(1)}] * 64
        >>> trainer = Trainer(Regression(), arguments, train_dataset=dataset)
        >>> trainer.remove_callback(PrinterCallback)
        >>> callback = EdgeWarmupCallback(trainer)
        >>> trainer.add_callback(callback)
        >>> trainer.train().global_step, callback.warmup.finished, callback.warmup.fallback
        (24, True, None)
    """

    sets_rates = True

    def __init__(self, trainer: Trainer, warmup: Callable[[Optimizer], Warmup] = EdgeWarmup) -> None:
        super().__init__(trainer)
        if not callable(warmup):
            raise TypeError(
                f"warmup must be a function of the optimizer that returns a warmup, got {described(warmup)}: write "
                "warmup=lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=100), e.g."
            )
        check_engine(trainer, "EdgeWarmupCallback")
        if "create_scheduler" in self.updates.replacements:
            raise ValueError(
                "the trainer has an EdgeWarmupCallback already: one optimizer has one warmup. Use one of them, and "
                "close() what is left out."
            )
        self._check_scheduler()
        own_factor(trainer.args, trainer.args.learning_rate, 1)
        if trainer.args.warmup_steps > 0:
            warn(
                f"warmup_steps={trainer.args.warmup_steps:g} of the arguments is not used: the length of the warmup is "
                "that of EdgeWarmupCallback's. Leave it out, or pass warmup=lambda optimizer: "
                "ew.LinearWarmup(optimizer, warmup_steps=...)."
            )
        self.warmup: Warmup | None = None
        self._make = warmup
        self._schedule: WarmupThenUntil[Warmup] | None = None
        self.updates.replacements |= {"create_scheduler": self._create_scheduler, "log": self._log}

    def begin(self) -> None:
        """Check that the warmup sets the rates, before anything is computed."""
        if self._schedule is None or self.trainer.lr_scheduler is not self._schedule:
            raise ValueError(
                f"the rates are set by a {type(self.trainer.lr_scheduler).__name__}, not by this EdgeWarmupCallback, "
                "which was closed, or whose scheduler was replaced: remove it from the trainer by remove_callback, or "
                "make another."
            )

    def observe(self, update_loss: UpdateLoss) -> None:
        """Let the warmup look at an update."""
        assert self.warmup is not None
        self.warmup.observe(update_loss)

    def close(self) -> None:
        """Let go of the trainer: it makes its own scheduler again. Not while it trains."""
        for name in ("create_scheduler", "log"):
            self.updates.replacements.pop(name, None)

    def _create_scheduler(
        self, own: object, num_training_steps: int, optimizer: object = None
    ) -> LRScheduler:
        """Make the warmup and what follows, in the place of the trainer's own method, before anything is computed."""
        trainer = self.trainer
        if self not in trainer.callback_handler.callbacks:
            raise ValueError(
                "an EdgeWarmupCallback was made for this trainer, but is not among its callbacks: add it by "
                "trainer.add_callback(callback), or leave it out by callback.close()."
            )
        self._check_scheduler()
        if self._schedule is not None:  # of a training that had too little memory, and begins again
            self._schedule.close()
        inner = stepping_optimizer(trainer)
        lr = float(inner.defaults.get("lr", inner.param_groups[0]["lr"]))
        factor = own_factor(trainer.args, lr, num_training_steps)
        warmup = self._make(inner)
        _check_made(warmup, inner)
        schedule = warmup.then_until(num_training_steps, factor)
        self.updates.undo.callback(schedule.close)
        self.warmup, self._schedule = warmup, schedule
        trainer.lr_scheduler, trainer._created_lr_scheduler = schedule, True
        return schedule

    def _log(self, log: Callable[..., None], logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Put what the warmup says into the rows that have the rate."""
        if "learning_rate" in logs and self.warmup is not None:
            logs = logs | self.warmup.metrics()
        log(logs, *args, **kwargs)

    def _check_scheduler(self) -> None:
        """Raise where something else sets the rates, or what is to follow cannot."""
        trainer = self.trainer
        own = trainer.lr_scheduler if not trainer._created_lr_scheduler else None
        if own is not None or type(trainer).create_scheduler is not Trainer.create_scheduler:
            given = f"that {type(trainer).__name__} makes" if own is None else f"a {type(own).__name__}"
            raise ValueError(
                f"EdgeWarmupCallback sets the rates by itself, but the trainer has a scheduler of its own, {given}: "
                "pass optimizers=(optimizer, None), and name what follows the warmup by lr_scheduler_type in the "
                "arguments."
            )


class MonitorCallback(UpdateCallback):
    """Follow sharpness and its distance to the edge in a `Trainer`, of transformers or TRL, without changing the run.

    It measures on the micro-batches of the coming update, with the loss as the trainer scales it, after clipping. Rows
    are logged by the trainer, as `edgewise/…`, at the step that they are of. After `resume_from_checkpoint` steps go
    on; the share of the time and the regime are those since then.

    Args:
        trainer: the trainer that it is added to.
        **options: of `Monitor`, such as `max_overhead=0.02` or `every=100`, but for `batches`.

    Attributes:
        monitor: that of the run under way or of the last one, or `None`.

    Raises:
        TypeError: an argument has the wrong type, or an option is none of `Monitor`'s.
        ValueError: the trainer trains under DeepSpeed, FSDP1, or tensor, context or sequence parallelism.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from transformers import PrinterCallback, TrainingArguments
        >>> class Regression(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(2, 1)
        ...     def forward(self, x, labels):
        ...         return {"loss": (self.linear(x) - labels).square().mean()}
        >>> arguments = TrainingArguments(tempfile.mkdtemp(), learning_rate=0.1, save_strategy="no", report_to="none",
        ...     disable_tqdm=True, use_cpu=True)
        >>> dataset = [{"x": torch.ones(2), "labels": torch.ones(1)}] * 64
        >>> trainer = Trainer(Regression(), arguments, train_dataset=dataset)
        >>> trainer.remove_callback(PrinterCallback)
        >>> trainer.add_callback(MonitorCallback(trainer, every=12))
        >>> _ = trainer.train()
        >>> rows = [row for row in trainer.state.log_history if "edgewise/sharpness" in row]
        >>> [(row["step"], round(row["edgewise/sharpness"], 3)) for row in rows]
        [(0, 6.0), (12, 6.0)]
    """

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        super().__init__(trainer)
        if "batches" in options:
            raise TypeError(
                "MonitorCallback measures on the micro-batches of each update, whose loss the trainer scales, got "
                "batches=: leave it out."
            )
        inspect.signature(Monitor).bind(None, None, None, **options)  # TypeError where one is unknown
        check_engine(trainer, "MonitorCallback")
        self.monitor: Monitor | None = None
        self._options = options

    def begin(self) -> None:
        """Make the monitor, before anything is computed."""
        loss = self.updates.loss
        optimizer = an_optimizer("the trainer's optimizer", self.trainer.optimizer)
        self.monitor = Monitor(loss.model, optimizer, loss.loss_fn, **self._options)
        self.monitor.load_state_dict(self.monitor.state_dict() | {"step": self.trainer.state.global_step})

    def observe(self, update_loss: UpdateLoss) -> None:
        """Let the monitor look at an update."""
        assert self.monitor is not None
        row = self.monitor.observe(update_loss)
        if row is not None:
            self.updates.log(row.metrics())


def _check_made(warmup: object, optimizer: Optimizer) -> None:
    if not isinstance(warmup, Warmup):
        raise TypeError(
            f"warmup must return an EdgeWarmup, LinearWarmup or CatapultWarmup, got {described(warmup)}: what follows "
            "is the schedule of the trainer's arguments, which is added to it."
        )
    if warmup.optimizer is not optimizer:
        raise ValueError(
            "warmup must return a warmup of the optimizer that it is given, got one of another optimizer: write "
            "warmup=lambda optimizer: ew.EdgeWarmup(optimizer), e.g."
        )
