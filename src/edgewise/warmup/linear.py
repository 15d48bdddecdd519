"""Linear warmup, from a given rate or from the critical learning rate."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from edgewise.critical import CriticalLRResult, check_steps_alone, search_critical_lr
from edgewise.errors import Status, nonnegative_number, positive_count
from edgewise.warmup.scheduler import Warmup, targets
from edgewise.warmup.schedules import linear, linear_from, steps_to_target


class LinearWarmup(Warmup):
    """Raise the learning rate linearly to the rate the optimizer was made with.

        η_t = η_init + (η_trgt − η_init)·min(1, t/T_wrm),  t = 1, 2, …

    No update ever runs at rate 0. With `lr_init="critical"` the first update runs at the critical learning
    rate η_c of its own batch, measured by `observe`, and the rate grows from there by η_trgt/T_wrm an update:
    the target is reached after T_wrm(1 − η_c/η_trgt) updates (`steps_to_target`) and held until T_wrm, so that
    a schedule that follows ends where it was planned to. Where η_c is above the target, as for Adam and GI-Adam at
    initialization with usual rates, training starts at the target: `start` says so. If `observe` is never
    called, or finds no critical rate (a warning says why), this is plain linear warmup from 0.

    Args:
        optimizer: any; its groups' rates are the targets, and their ratios are kept.
        warmup_steps: T_wrm ≥ 1, in optimizer steps; 1 is a constant rate.
        lr_init: η_init of the first group, between 0 and its target, or "critical".

    Attributes:
        start: the `CriticalLRResult` the warmup started from, if it was measured.

    Raises:
        TypeError: an argument has the wrong type (a bool is not a number).
        ValueError: an argument is out of range, `lr_init` above the target, or a target that is not positive.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> warmup = LinearWarmup(optimizer, warmup_steps=4)
        >>> seen = []
        >>> for _ in range(5):
        ...     seen.append(warmup.get_last_lr()[0])
        ...     optimizer.step()
        ...     warmup.step()
        >>> seen
        [0.25, 0.5, 0.75, 1.0, 1.0]

    Reference: arXiv 2406.09405, sections 2 and 5.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        lr_init: float | Literal["critical"] = 0.0,
    ) -> None:
        self.warmup_steps = positive_count("warmup_steps", warmup_steps)
        self.lr_init = lr_init
        self.start: CriticalLRResult | None = None
        self._start_factor: float | None = None  # of the first update, once measured
        if lr_init == "critical":
            check_steps_alone(optimizer)
        elif isinstance(lr_init, str):
            raise ValueError(f'lr_init must be a number or "critical", got {lr_init!r}.')
        else:
            _check_below_target(optimizer, nonnegative_number("lr_init", lr_init))
        super().__init__(optimizer)

    def factor(self) -> float:
        """Return the factor on the target rates for the coming update."""
        if self._start_factor is not None:
            return linear_from(self.last_epoch, warmup_steps=self.warmup_steps, start=self._start_factor)
        init = 0.0 if isinstance(self.lr_init, str) else self.lr_init / float(self.base_lrs[0])
        return linear(self.last_epoch, warmup_steps=self.warmup_steps, init=init)

    @property
    def finished(self) -> bool:
        """Whether `warmup_steps` updates are done; the target may have been reached before."""
        return self.last_epoch >= self.warmup_steps

    @property
    def steps_to_target(self) -> int:
        """T_reach: the number of the first update, from 0, at the target rate; plainly `warmup_steps` − 1."""
        if self._start_factor is not None:
            return steps_to_target(warmup_steps=self.warmup_steps, start=self._start_factor)
        return 0 if self.lr_init == float(self.base_lrs[0]) else self.warmup_steps - 1

    def observe(self, closure: Callable[[], Tensor]) -> None:
        """Measure η_c before the first update, if `lr_init="critical"`; otherwise do nothing.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward.

        Raises:
            ValueError: no parameter has a gradient yet.
            LossError: the closure does not return a finite scalar tensor.
        """
        if self.lr_init != "critical" or self.last_epoch > 0 or self._measured:
            return
        target = float(self.base_lrs[0])
        self.start = search_critical_lr(self.optimizer, closure, max_lr=target)
        if self.start.status in (Status.FOUND, Status.ABOVE_MAX_LR):
            self._start_factor = min(1.0, self.start.lr / target)
            self._apply()
        else:
            warnings.warn(
                f"no critical learning rate to start from, using linear warmup from 0: {self.start.status.value}.",
                stacklevel=2,
            )

    @property
    def _measured(self) -> bool:
        return self.start is not None or self._start_factor is not None  # the latter when resumed

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings."""
        return {
            "warmup": type(self).__name__,
            "warmup_steps": self.warmup_steps,
            "lr_init": self.lr_init,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "start_factor": self._start_factor,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved warmup stood; writes its rates to the optimizer.

        Raises:
            ValueError: the state is that of another warmup, length or start.
        """
        for name, ours in (
            ("warmup", type(self).__name__),
            ("warmup_steps", self.warmup_steps),
            ("lr_init", self.lr_init),
        ):
            if state_dict.get(name) != ours:
                raise ValueError(
                    f"the saved state has {name} = {state_dict.get(name)!r}, this warmup has {ours!r}: "
                    "construct it with the saved values to resume."
                )
        self.base_lrs = list(state_dict["base_lrs"])
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["step_count"]
        self._start_factor = state_dict["start_factor"]
        self._apply()


def _check_below_target(optimizer: Optimizer, lr_init: float) -> None:
    target = targets(optimizer)[0]
    if lr_init > target:
        raise ValueError(
            f"lr_init must be at most the target, the optimizer's rate {target:g}; got {lr_init:g}: "
            "raise the optimizer's lr or lower lr_init."
        )
