"""What follows the warmup: the trainer's own schedule, as if `warmup_steps` had been the length found."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from edgewise.arguments import an_optimizer
from edgewise.optimizers.groups import initial_rates, set_rates


def own_factor(args: TrainingArguments, lr: float, num_steps: int) -> Callable[[int, int], float]:
    """Return the factor on the rates, by update and length of the warmup, of the schedule that the arguments name.

    Args:
        args: their `lr_scheduler_type` and `lr_scheduler_kwargs` say which.
        lr: the rate that least rates in the arguments are a share of.
        num_steps: at which the schedule ends.

    Raises:
        TypeError: the schedule is not a factor of the update's number, or lacks arguments.
        ValueError: what its own function raises.
    """

    @functools.lru_cache(maxsize=1)
    def of_length(length: int) -> Callable[[int], float]:
        scheduler = get_scheduler(
            args.lr_scheduler_type,
            SGD([torch.zeros(1)], lr=lr),
            num_warmup_steps=length,
            num_training_steps=num_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        if not isinstance(scheduler, LambdaLR):
            raise TypeError(
                f"lr_scheduler_type must be one that is a factor of the update's number, such as 'linear', 'cosine' or "
                f"'constant', got {args.lr_scheduler_type.value!r}, which goes by a metric: it cannot follow a "
                "warmup."
            )
        found: Callable[[int], float] = scheduler.lr_lambdas[0]
        return found

    of_length(0)  # raises what it has to say now
    return lambda update, length: float(of_length(length)(update))


def stepping_optimizer(trainer: Trainer) -> Optimizer:
    """Return the optimizer of the trainer inside accelerate's wrapper, at the rates that its first scheduler found.

    These are what a schedule of the trainer's own starts from, also when `train` is called again.

    Raises:
        TypeError: its steps are made elsewhere.
    """
    optimizer = an_optimizer("the trainer's optimizer", trainer.optimizer, has_rates=True)
    if isinstance(optimizer, LayerWiseDummyOptimizer) or trainer.args.optim in ("lomo", "adalomo"):
        raise TypeError(
            f"optim must name an optimizer whose step() makes the update, got {trainer.args.optim.value!r}, which "
            "makes it layer by layer during backward(): use another."
        )
    set_rates(optimizer, initial_rates(optimizer))
    return optimizer


def check_engine(trainer: Trainer, name: str) -> None:
    """Raise where gradients do not stand between backward and the step as one model's, or as FSDP2's shards.

    Args:
        trainer: that trains.
        name: of the callback that needs them.
    """
    found = _unsupported(trainer)
    if found:
        raise ValueError(
            f"{name} needs the gradients between backward() and the optimizer's step, got a trainer under {found}: "
            "find the warmup on one device or under DDP, and replay what warmup.export() returns as a LambdaLR, by "
            "optimizers=(optimizer, scheduler)."
        )


def _unsupported(trainer: Trainer) -> str:
    if trainer.is_deepspeed_enabled:
        return "DeepSpeed, whose engine makes clipping and step in one"
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if trainer.is_fsdp_enabled and getattr(plugin, "fsdp_version", 1) != 2:
        return "FSDP1, which flattens parameters: set fsdp_version to 2"
    sizes = {
        "tensor": trainer.get_tp_size(),
        "context": trainer.get_cp_size(),
        "sequence": trainer.get_sp_size(),
    }
    return ", ".join(f"{kind} parallelism" for kind, size in sizes.items() if size > 1)
