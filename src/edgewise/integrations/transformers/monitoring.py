"""A monitor in a trainer, whose rows go where the trainer's do."""

import inspect
from typing import Any

from transformers import Trainer

from edgewise.arguments import an_optimizer
from edgewise.integrations.transformers.schedule import check_engine
from edgewise.integrations.transformers.updates import UpdateCallback
from edgewise.loss.update_loss import UpdateLoss
from edgewise.monitor.monitor import Monitor


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

    Example:
        >>> trainer.add_callback(MonitorCallback(trainer, max_overhead=0.02))  # doctest: +SKIP
        >>> _ = trainer.train()  # doctest: +SKIP
        >>> rows = [row for row in trainer.state.log_history if "edgewise/sharpness" in row]  # doctest: +SKIP
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the monitor, before anything is computed."""
        super().on_train_begin(args, state, control, **kwargs)
        loss = self.updates.loss
        optimizer = an_optimizer("the trainer's optimizer", self.trainer.optimizer)
        self.monitor = Monitor(loss.model, optimizer, loss.loss_fn, **self._options)
        self.monitor.load_state_dict(self.monitor.state_dict() | {"step": state.global_step})

    def observe(self, update_loss: UpdateLoss) -> None:
        """Let the monitor look at an update."""
        assert self.monitor is not None
        row = self.monitor.observe(update_loss)
        if row is not None:
            self.updates.log(row.metrics())
