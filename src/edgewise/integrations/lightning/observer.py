"""What both callbacks share: the micro-batches of an update, and the moment before it is made."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from edgewise.integrations.lightning.checks import check_module, check_optimizer
from edgewise.integrations.lightning.clipping import AfterClipping
from edgewise.integrations.lightning.step import without_trace
from edgewise.loss.batches import with_own_containers
from edgewise.loss.update_loss import UpdateLoss
from edgewise.ranks import ranks_of


class UpdateObserver(Callback):
    """Collects the micro-batches of each update, and looks at them after clipping, before the optimizer's step.

    What it puts into the module, and hooks of its own, are gone when `fit` ends, also by an exception.

    Args:
        prefix: of the names that are logged.
    """

    _first = False  # whether to observe before the other callbacks of edgewise

    def __init__(self, prefix: str) -> None:
        super().__init__()
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, such as 'edgewise/', got {prefix!r}.")
        self.prefix = prefix
        self._update_loss: UpdateLoss | None = None
        self._micro_batch: tuple[Any, int] | None = None  # the current one, and its index
        self._undo: list[Callable[[], None]] = []

    @abstractmethod
    def _begin(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        """Make what observes, or raise."""

    @abstractmethod
    def _loss(self, trainer: Trainer, module: LightningModule, micro_batch: tuple[Any, int]) -> Tensor:
        """Return the loss that `backward()` gets for a micro-batch."""

    @abstractmethod
    def _observe(self, trainer: Trainer, update_loss: UpdateLoss) -> None:
        """Look at the coming update."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be observed."""
        if stage == "fit":
            self._let_go()
            check_module(self, trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, after the strategy's setup and before a checkpoint's optimizer and schedulers are loaded."""
        optimizer = check_optimizer(self, trainer, pl_module)
        ranks_of(trainer.strategy.model)  # raises what it has to say now
        self._begin(trainer, pl_module, optimizer)
        self._update_loss = update_loss = UpdateLoss(
            trainer.strategy.model,
            lambda model, micro_batch: self._loss(trainer, pl_module, micro_batch),
            evaluating=lambda: without_trace(trainer, pl_module),
        )

        def observe() -> None:
            if update_loss.batches:  # none where training_step has returned None
                self._observe(trainer, update_loss)

        self._undo.append(AfterClipping.of(pl_module).tell(observe, first=self._first))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the micro-batch."""
        self._micro_batch = (with_own_containers(batch), batch_idx)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Begin another update, also where the latest was given up: its gradients are about to go."""
        if self._update_loss is not None and self._update_loss.batches:
            self._update_loss.observed()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Take the micro-batch's loss."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        value = loss.detach() if scaler is None else loss.detach() / scaler.get_scale()
        assert self._update_loss is not None
        self._update_loss.add(self._micro_batch, value, share=1.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hold the micro-batch no longer than the update."""
        self._micro_batch = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the module."""
        self._let_go()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        self._let_go()

    def _log(self, trainer: Trainer, metrics: dict[str, float | int]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _let_go(self) -> None:
        for undo in self._undo:
            undo()
        self._undo = []
        self._update_loss = self._micro_batch = None
