"""The optimizers and warmups of the catalogue, made: a constructor each."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import edgewise as ew
from edgewise.lab.configs import OptimizerConfig, WarmupConfig
from edgewise.lab.models.parameterization import parameter_groups
from edgewise.lab.training.ri_adam import RIAdam
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.schedules import cosine


def make_optimizer(config: OptimizerConfig, model: nn.Module, lr: float) -> Optimizer:
    """Return the optimizer with target rate `lr`, and with μP's groups where it is adaptive."""
    groups = parameter_groups(model, lr=lr, adaptive=config.traits.adaptive)
    options = {name: getattr(config, name) for name in config.traits.options}
    return OPTIMIZERS[config.name](groups, lr=lr, **options)


def _lion(groups: list[dict[str, Any]], **options: Any) -> Optimizer:
    from lion_pytorch import Lion  # noqa: PLC0415 - the other optimizers need torch and NumPy alone

    return Lion(groups, **options)


OPTIMIZERS: dict[
    str, Callable[..., Optimizer]
] = {  # as called with groups, lr and the options of the catalogue
    "sgd": SGD,
    "adam": partial(Adam, fused=True),
    "adamw": partial(AdamW, fused=True),
    "gi-adam": partial(ew.GIAdam, fused=True),
    "gi-adamw": partial(ew.GIAdamW, fused=True),
    "ri-adam": partial(RIAdam, fused=True),
    "radam": RAdam,
    "nadam": NAdam,
    "lion": _lion,
}
WARMUPS: dict[str, Callable[[Optimizer, WarmupConfig, int], Warmup]] = {  # the last: steps of the whole run
    "linear": lambda optimizer, config, num_steps: ew.LinearWarmup(
        optimizer, warmup_steps=config.steps, lr_init=config.lr_init
    ),
    "catapult": lambda optimizer, config, num_steps: ew.CatapultWarmup(optimizer),
    "edge": lambda optimizer, config, num_steps: ew.EdgeWarmup(optimizer, num_steps=num_steps),
}


def make_schedule(config: WarmupConfig, optimizer: Optimizer, num_steps: int) -> tuple[Warmup, LRScheduler]:
    """Return the warmup, which observes, and the whole schedule, which steps."""
    warmup = WARMUPS[config.kind](optimizer, config, num_steps)
    if config.decay == "none":
        return warmup, warmup

    # CosineAnnealingLR has one eta_min for all groups; μP's groups each go to a tenth of their own rate.
    def decay(update: int) -> float:
        return cosine(update, num_steps=num_steps - warmup.length, final=0.1)

    return warmup, warmup.then(LambdaLR(optimizer, decay))
