"""An optimizer's parameter groups: their parameters, and their learning rates, first and now, and in proportion."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import learning_rate, positive_number


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups, in their order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def rates(optimizer: Optimizer) -> list[float | Tensor]:
    """Return copies of the groups' current learning rates."""
    return [g["lr"].clone() if isinstance(g["lr"], Tensor) else g["lr"] for g in optimizer.param_groups]


def floats(optimizer: Optimizer) -> list[float]:
    """Return the groups' current learning rates as numbers."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def initial_rates(optimizer: Optimizer) -> list[float]:
    """Return the rates that the first scheduler on the optimizer found, as torch's schedulers keep them."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def targets(optimizer: Optimizer) -> list[float]:
    """Return the groups' rates, or raise if one is not positive."""
    return [target_of(optimizer, i) for i in range(len(optimizer.param_groups))]


def target_of(optimizer: Optimizer, index: int) -> float:
    """Return the rate of one group, or raise if it is not positive; of a schedule that ended at 0, its first."""
    group = optimizer.param_groups[index]
    lr = group["lr"] if group["lr"] != 0 else group.get("initial_lr", group["lr"])
    return positive_number(
        f"the learning rate of parameter group {index}", lr.item() if isinstance(lr, Tensor) else lr
    )


def measured_rates(optimizer: Optimizer) -> list[float]:
    """Return the rates that a measurement is for: where a schedule has taken all to zero, those it started from.

    They are 1 where all are zero and there was no schedule.

    Raises:
        ValueError: a rate is negative or not finite, or the first group's is zero, so that it is no unit.
    """
    current = [learning_rate(group, i) for i, group in enumerate(optimizer.param_groups)]
    if not any(current):
        current = [float(group.get("initial_lr", 1.0)) for group in optimizer.param_groups]
    if current[0] == 0:
        raise ValueError(
            "the first parameter group has learning rate 0: set the rate to measure in units of, "
            "for example the target of the warmup."
        )
    return current


def rate_ratios(optimizer: Optimizer) -> list[float]:
    """Return each group's rate over the first group's, of `measured_rates`, or raise what that raises."""
    measured = measured_rates(optimizer)
    return [rate / measured[0] for rate in measured]


def check_minimizes(optimizer: Optimizer) -> None:
    """Raise `ValueError` if a group maximizes: its updates raise the loss, which is measured as one that falls."""
    for i, group in enumerate(optimizer.param_groups):
        if group.get("maximize", False):
            raise ValueError(
                f"parameter group {i} has maximize=True: negate the loss instead and leave maximize=False."
            )


def like_rates(groups: Sequence[dict[str, Any]], values: Sequence[float | Tensor]) -> list[float | Tensor]:
    """Return values as tensors where the groups' rates are."""
    return [
        group["lr"].new_tensor(float(value)) if isinstance(group["lr"], Tensor) else float(value)
        for group, value in zip(groups, values, strict=True)
    ]


def set_rates(optimizer: Optimizer, values: Sequence[float | Tensor]) -> None:
    """Write the groups' learning rates; a tensor is filled in place, so that compiled steps see it."""
    for group, value in zip(optimizer.param_groups, values, strict=True):
        set_rate(group, value)


def set_rate(group: dict[str, Any], value: float | Tensor) -> None:
    """Write the learning rate of one group, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(float(value))
    else:
        group["lr"] = float(value)
