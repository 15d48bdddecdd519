"""What all warmups share: torch's scheduler interface, `observe`, `then`, and a state of plain numbers."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from edgewise.errors import positive_number


class Warmup(LRScheduler):
    """A schedule of factors, at most 1, on the rates the optimizer was made with: its targets.

    Subclasses say the factor of the coming update, when the target is reached, and what `observe` does.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._follower: LRScheduler | None = None
        targets(optimizer)
        super().__init__(optimizer)

    @abstractmethod
    def factor(self) -> float:
        """Return the factor on the target rates for the coming update, in (0, 1]."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the updates so far include the whole warmup."""

    @abstractmethod
    def observe(self, closure: Callable[[], Tensor]) -> None:
        """Look at the loss, between `loss.backward()` and `optimizer.step()`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, loadable with `weights_only=True`."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved warmup stood."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, one a group."""
        factor = self.factor()
        return [base * factor for base in self.base_lrs]

    def then(self, scheduler: LRScheduler) -> "WarmupThen":
        """Return a scheduler that runs this warmup and then `scheduler`, from its step 0 on.

        The rates are those of torch's `SequentialLR` with one milestone at the end of the warmup.

        Args:
            scheduler: a fresh scheduler on the same optimizer; its lengths do not count the warmup.

        Raises:
            ValueError: another optimizer, a scheduler or warmup already under way, or called twice.
            TypeError: the scheduler needs a metric, or is made of several.
        """
        compound = (ReduceLROnPlateau, SequentialLR, ChainedScheduler)
        if isinstance(scheduler, compound) or not isinstance(scheduler, LRScheduler):
            raise TypeError(
                "then() takes a single LRScheduler whose step() needs no metric, got "
                f"{type(scheduler).__name__}: write compound schedules as one LambdaLR."
            )
        if scheduler.optimizer is not self.optimizer:
            raise ValueError("then() takes a scheduler on the same optimizer, got one on another.")
        if self._follower is not None:
            raise ValueError(
                "then() was already called on this warmup: write what follows as one scheduler, e.g. LambdaLR."
            )
        if self.last_epoch > 0 or scheduler.last_epoch > 0:
            raise ValueError(
                "then() must be called before the first step of the warmup and of the scheduler."
            )
        self._follower = scheduler
        return WarmupThen(self, scheduler)

    def _apply(self) -> None:
        """Write the current rates to the optimizer, in place where they are tensors."""
        set_rates(self.optimizer, self.get_lr())
        self._last_lr = rates(self.optimizer)


class WarmupThen(LRScheduler):
    """A warmup followed by another scheduler: made by `Warmup.then`."""

    def __init__(self, warmup: Warmup, follower: LRScheduler) -> None:
        # As torch's SequentialLR: the parts have made their first step already, so super().__init__ is not called.
        self.optimizer = warmup.optimizer
        self.warmup, self.follower = warmup, follower
        self.base_lrs = warmup.base_lrs
        self.handed_over = False
        self.last_epoch = 0
        warmup._apply()  # the follower's constructor may have written its own rates

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, also right after `observe` has raised them."""
        return rates(self.optimizer)

    def step(self, epoch: int | None = None) -> None:
        """Advance by one update; `epoch` is torch's deprecated argument and must be left out."""
        self.last_epoch += 1
        if self.handed_over:
            self.follower.step()
        else:
            self.warmup.step()
            if self.warmup.finished:
                self._hand_over()

    def _hand_over(self) -> None:
        # Chainable schedulers compute from the current rate: give them their base rate first.
        self.handed_over = True
        set_rates(self.optimizer, self.follower.base_lrs)
        self.follower._update_lr(0)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {
            "last_epoch": self.last_epoch,
            "handed_over": self.handed_over,
            "warmup": self.warmup.state_dict(),
            "follower": self.follower.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved schedule stood, with the rates it had."""
        self.warmup.load_state_dict(state_dict["warmup"])
        self.follower.load_state_dict(state_dict["follower"])
        self.last_epoch, self.handed_over = state_dict["last_epoch"], state_dict["handed_over"]
        if self.handed_over:
            set_rates(self.optimizer, self.follower.get_last_lr())


def targets(optimizer: Optimizer) -> list[float]:
    """Return the rates the optimizer was made with, one a group, or raise if one is not positive."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    made_with = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    return [
        positive_number(
            f"the learning rate of parameter group {i}", lr.item() if isinstance(lr, Tensor) else lr
        )
        for i, lr in enumerate(made_with)
    ]


def rates(optimizer: Optimizer) -> list[float | Tensor]:
    """Return copies of the groups' current learning rates."""
    return [g["lr"].clone() if isinstance(g["lr"], Tensor) else g["lr"] for g in optimizer.param_groups]


def set_rates(optimizer: Optimizer, values: list[float | Tensor]) -> None:
    """Write the groups' learning rates; a tensor is filled in place, so that compiled steps see it."""
    for group, value in zip(optimizer.param_groups, values, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(float(value))
        else:
            group["lr"] = float(value)
