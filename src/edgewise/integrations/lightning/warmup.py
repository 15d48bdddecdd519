"""A callback that makes the warmup of a Lightning run, and observes each update."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.arguments import a_function
from edgewise.arguments.words import described
from edgewise.integrations.lightning.following import check_following, plan, put_in_place
from edgewise.integrations.lightning.observer import UpdateObserver
from edgewise.integrations.lightning.step import training_loss
from edgewise.loss.update_loss import UpdateLoss
from edgewise.warmup.decay import DecayFactor, a_decay_factor
from edgewise.warmup.edge import EdgeWarmup
from edgewise.warmup.scheduler import Warmup


class EdgeWarmupCallback(UpdateObserver):
    """Warm up at the edge of stability, with automatic optimization, on one device, with DDP or with `fully_shard`.

    The targets are the rates of the optimizer that `configure_optimizers` returns. The scheduler that it returns, if it
    returns one, follows the warmup, from its step 0 on; its interval must be "step". Each update is observed after
    clipping, as the sum of its micro-batches' losses, with the precision of the training. Meanwhile `training_step`
    logs nothing and counts nothing in metrics and attributes of the module, so that observing changes nothing but the
    rates.

    Logged every `log_every_n_steps` are the rate that the update used, as "lr", and `warmup.metrics()`. Checkpoints
    hold the warmup with what follows, as any scheduler of Lightning's.

    Args:
        warmup: a function of the optimizer that returns the warmup, such as
            `lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=500)`. `EdgeWarmup` gets the number of updates of
            the run, where it is finite and not given.
        decay: what follows where `configure_optimizers` returns no scheduler: "cosine", "linear" or a function of
            (update, warmup_length), which ends at the run's last update (`Warmup.then_until`). Without it, the rate
            that was found is held.
        prefix: of the names that are logged.

    Attributes:
        warmup: what was made for the run under way, or the latest; `None` before.
        schedule: the warmup with what follows.

    Raises:
        TypeError: an argument has the wrong type, or `warmup` returns no warmup of that optimizer.
        ValueError: as `fit` begins: manual optimization, several optimizers or callbacks of this class, a scheduler
            that cannot follow, another strategy, nothing left to train, or a checkpoint without a warmup.

    Examples:
        >>> import torch, lightning.pytorch as L, warnings
        >>> class Line(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.line = torch.nn.Linear(2, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         return (self.line(batch) - 1).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameters(), lr=0.1)
        >>> callback = EdgeWarmupCallback(decay="cosine")
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = L.Trainer(
        ...     max_epochs=2, accelerator="cpu", callbacks=[callback], enable_model_summary=False, **quiet
        ... )
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # Lightning would have more workers
        ...     trainer.fit(Line(), torch.utils.data.DataLoader(torch.randn(40, 2), batch_size=4))
        >>> callback.warmup.found.ok, callback.schedule.num_steps, callback.schedule.get_last_lr()
        (True, 20, [0.0])
    """

    _first = True  # a Monitor reports the rate that the update is made with

    def __init__(
        self,
        warmup: Callable[[Optimizer], Warmup] = EdgeWarmup,
        *,
        decay: DecayFactor | None = None,
        prefix: str = "edgewise/",
    ) -> None:
        super().__init__(prefix)
        takes = "the optimizer that returns a warmup, such as lambda optimizer: ew.EdgeWarmup(optimizer)"
        self._make = warmup if isinstance(warmup, type) else a_function("warmup", warmup, takes, count=1)
        self._decay = None if decay is None else a_decay_factor(decay)
        self.warmup: Warmup | None = None
        self.schedule: LRScheduler | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be observed, and a second callback of this kind."""
        super().setup(trainer, pl_module, stage)
        num = sum(isinstance(callback, EdgeWarmupCallback) for callback in trainer.callbacks)
        if stage == "fit" and num > 1:
            raise ValueError(
                f"the trainer has {num} EdgeWarmupCallbacks, and each would write the optimizer's rates: keep one."
            )

    def _begin(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        _check_not_done(trainer)
        check_following(trainer, self._decay)
        # Before the warmup's own hooks, which give back a share of the rate that a single update has taken.
        hook = optimizer.register_step_post_hook(lambda *_: self._log_update(trainer, optimizer))
        self._undo.append(hook.remove)
        self.warmup = self._make(optimizer)
        if not isinstance(self.warmup, Warmup) or self.warmup.optimizer is not optimizer:
            raise TypeError(
                "warmup must return a warmup of the optimizer that it is given, such as ew.EdgeWarmup(optimizer), got "
                f"{described(self.warmup)}."
            )
        self.schedule = put_in_place(trainer, self.warmup, self._decay)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan for the number of updates, which is known now, as is what a checkpoint held."""
        assert self.warmup is not None
        assert self.schedule is not None
        if trainer.ckpt_path is not None and trainer.global_step > 0 and self.warmup.last_epoch == 0:
            raise ValueError(
                f"{trainer.ckpt_path} holds no state of a warmup, which would begin anew at update "
                f"{trainer.global_step}: resume without EdgeWarmupCallback; or load the weights alone, by "
                f"{type(pl_module).__name__}.load_from_checkpoint, and call fit() without ckpt_path."
            )
        plan(trainer, self.warmup, self.schedule)

    def _loss(self, trainer: Trainer, module: LightningModule, micro_batch: tuple[Any, int]) -> Tensor:
        with trainer.precision_plugin.train_step_context():
            loss = training_loss(module, *micro_batch)
        return loss / trainer.accumulate_grad_batches

    def _observe(self, trainer: Trainer, update_loss: UpdateLoss) -> None:
        assert self.warmup is not None
        self.warmup.observe(update_loss)

    def _log_update(self, trainer: Trainer, optimizer: Optimizer) -> None:
        every = trainer.log_every_n_steps
        if self.warmup is not None and every and (trainer.global_step + 1) % every == 0:
            used = {f"{self.prefix}lr": float(optimizer.param_groups[0]["lr"])}
            self._log(trainer, used | self.warmup.metrics(self.prefix))


def _check_not_done(trainer: Trainer) -> None:
    loop = trainer.fit_loop
    done_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    done_epochs = loop.max_epochs not in (None, -1) and trainer.current_epoch >= loop.max_epochs
    if trainer.ckpt_path is None and trainer.global_step > 0 and (done_steps or done_epochs):
        raise ValueError(
            f"this trainer has made its {trainer.global_step} updates already, so that fit() would train nothing: make "
            "a new Trainer, or raise trainer.fit_loop.max_epochs, or max_steps of trainer.fit_loop.epoch_loop."
        )
