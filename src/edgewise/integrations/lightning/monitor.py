"""A callback that follows the sharpness of a Lightning run."""

import inspect
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import known_name
from edgewise.integrations.lightning.observer import UpdateObserver
from edgewise.integrations.lightning.step import training_loss, without_trace
from edgewise.loss.update_loss import UpdateLoss
from edgewise.monitor.monitor import Monitor
from edgewise.monitor.regime import MonitorRow

_OPTIONS = [name for name, p in inspect.signature(Monitor).parameters.items() if p.kind is p.KEYWORD_ONLY]


class MonitorCallback(UpdateObserver):
    """Follow sharpness and its distance to the edge along a Lightning run, without changing it, bit for bit.

    Measured is the loss of `training_step` over the micro-batches of an update, after clipping and at the rate that the
    update is made with. It is without autocast, as all curvature is, and leaves no trace in loggers, metrics and
    attributes of the module. Each row goes to the trainer's loggers by `MonitorRow.metrics`.

    Args:
        prefix: of the names that are logged; two of these callbacks in one trainer must have different ones.
        options: those of `Monitor` by name, such as `every`, `max_overhead` or `measure`. `batches` are as the loader
            yields them.

    Attributes:
        monitor: the `Monitor` of the run under way, or the latest; `None` before.
        row: its latest row, or `None`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an option is not one of `Monitor`'s; or, as `fit` begins, is out of range. Or then: manual
            optimization, several optimizers, another strategy.

    Examples:
        >>> import torch, lightning.pytorch as L, warnings
        >>> class Square(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.line = nn.Linear(1, 1, bias=False)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.line(batch).square().mean()  # sharpness 2, where the batch is 1
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> callback = MonitorCallback(every=5)
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = L.Trainer(
        ...     max_epochs=1, accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet
        ... )
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # Lightning would have more workers
        ...     trainer.fit(Square(), torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=1))
        >>> callback.row.step, round(callback.row.sharpness, 3), round(callback.row.fraction, 3)  # 0.1 × 2 / 2
        (5, 2.0, 0.1)
    """

    def __init__(self, *, prefix: str = "edgewise/", **options: Any) -> None:
        super().__init__(prefix)
        for name in options:
            known_name("option of Monitor", name, _OPTIONS)
        self._options = options
        self._saved: dict[str, Any] | None = None  # loaded before, or after, the monitor is made
        self.monitor: Monitor | None = None
        self.row: MonitorRow | None = None

    @property
    def state_key(self) -> str:
        """The name of its state in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be observed."""
        super().setup(trainer, pl_module, stage)
        self._saved = None  # of another run

    def _begin(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self.row = None
        model: nn.Module = trainer.strategy.model

        def loss_fn(model: nn.Module, batch: Any) -> Tensor:
            """Return the loss on one of the batches given as an option."""
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            with without_trace(trainer, module):
                return training_loss(module, batch, 0)

        self.monitor = Monitor(model, optimizer, loss_fn, **self._options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where a checkpoint stood."""
        if self._saved is not None and self.monitor is not None:
            self.monitor.load_state_dict(self._saved)

    def _loss(self, trainer: Trainer, module: LightningModule, micro_batch: tuple[Any, int]) -> Tensor:
        return training_loss(module, *micro_batch) / trainer.accumulate_grad_batches

    def _observe(self, trainer: Trainer, update_loss: UpdateLoss) -> None:
        assert self.monitor is not None
        row = self.monitor.observe(update_loss)
        if row is not None:
            self.row = row
            self._log(trainer, row.metrics(self.prefix))

    def state_dict(self) -> dict[str, Any]:
        """Return the monitor's state, as plain numbers and strings."""
        return {} if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the monitor's state, for when training starts."""
        self._saved = state_dict
