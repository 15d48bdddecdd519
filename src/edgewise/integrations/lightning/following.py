"""What follows the warmup in a Lightning run: the scheduler of the configuration, or a decay that ends on time."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim.lr_scheduler import LRScheduler

from edgewise.warmup.decay import DecayFactor
from edgewise.warmup.edge import EdgeWarmup
from edgewise.warmup.followed import WarmupThenUntil
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.then import WarmupSequence

_STEPWISE = '{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}'


def check_following(trainer: Trainer, decay: DecayFactor | None) -> None:
    """Raise where the trainer's schedulers cannot follow a warmup, or a decay would not know its end."""
    configs = trainer.strategy.lr_scheduler_configs
    if configs and decay is not None:
        raise ValueError(
            f"EdgeWarmupCallback got decay={decay!r}, and configure_optimizers returns a "
            f"{type(configs[0].scheduler).__name__}: leave one of them out."
        )
    if len(configs) > 1:
        raise ValueError(
            f"EdgeWarmupCallback needs one scheduler to follow the warmup, and configure_optimizers returns "
            f"{len(configs)}: write them as one LambdaLR."
        )
    for config in configs:
        _check_config(config)
    if decay is not None and trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError(
            f"decay={decay!r} needs the number of updates, and the trainer has neither max_steps nor max_epochs: "
            "give one to the Trainer."
        )


def _check_config(config: LRSchedulerConfig) -> None:
    kind = type(config.scheduler).__name__
    if isinstance(config.scheduler, Warmup | WarmupSequence):
        raise ValueError(
            f"configure_optimizers returns a {kind} already, and EdgeWarmupCallback makes one: return the optimizer, "
            "with what follows the warmup, if anything does, and pass the warmup as EdgeWarmupCallback(warmup=...)."
        )
    if config.reduce_on_plateau:
        raise ValueError(
            f"{kind} cannot follow the warmup, as its rates come from a metric: return another scheduler, such as "
            'CosineAnnealingLR, or none and pass EdgeWarmupCallback(decay="cosine").'
        )
    if config.interval != "step":
        raise ValueError(
            f"the scheduler that follows the warmup, {kind}, has interval={config.interval!r}, Lightning's default, "
            f"and must have 'step': return {_STEPWISE} with its lengths in updates, or no scheduler and pass "
            'EdgeWarmupCallback(decay="cosine").'
        )
    if config.frequency != 1:
        raise ValueError(
            f"the scheduler that follows the warmup, {kind}, has frequency={config.frequency}, and must have 1, as it "
            "steps with each update: make its lengths longer by that factor."
        )


def put_in_place(trainer: Trainer, warmup: Warmup, decay: DecayFactor | None) -> LRScheduler:
    """Let the trainer step and save the warmup with what follows, and return that."""
    configs = trainer.strategy.lr_scheduler_configs
    if configs:
        schedule: LRScheduler = warmup.then(configs[0].scheduler)
        configs[0].scheduler = schedule
        return schedule
    schedule = warmup if decay is None else warmup.then_until(None, decay)
    configs.append(LRSchedulerConfig(schedule, interval="step"))
    return schedule


def plan(trainer: Trainer, warmup: Warmup, schedule: LRScheduler) -> None:
    """Tell the warmup and the decay how many updates the run has, counted from the warmup's first.

    Once training starts: to ask before would load the data, which a checkpoint's state of the loader comes too late
    for.

    Raises:
        ValueError: the decay has to know, and it cannot be told.
    """
    num_steps = _num_steps(trainer, begun=warmup.last_epoch)
    if isinstance(schedule, WarmupThenUntil):
        if num_steps is None:
            raise ValueError(
                f"decay={schedule.follower.factor!r} needs the number of updates, and it cannot be told from loaders "
                "without a length or an accumulation that changes: give max_steps to the Trainer, and the same "
                "accumulate_grad_batches throughout."
            )
        schedule.num_steps = num_steps
    elif num_steps is not None and isinstance(warmup, EdgeWarmup) and warmup.num_steps is None:
        warmup._plan(num_steps)


def _num_steps(trainer: Trainer, *, begun: int) -> int | None:
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        return None
    total = trainer.estimated_stepping_batches
    if not 0 < total < math.inf:
        return None
    return begun + max(1, int(total) - trainer.global_step)
