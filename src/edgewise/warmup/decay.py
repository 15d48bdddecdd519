"""What follows a warmup whose length is not known beforehand: a factor that ends at a given update."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.arguments import a_function, known_name, nonnegative_number
from edgewise.optimizers.groups import like_rates, rates, set_rates
from edgewise.warmup.schedules import cosine_decay, linear_decay
from edgewise.warmup.state import Saved

DecayName: TypeAlias = Literal["cosine", "linear"]
DecayFactor: TypeAlias = DecayName | Callable[[int, int], float]

_NAMED = {"cosine": cosine_decay, "linear": linear_decay}
_TAKES = '(update, warmup_length) that returns the share of the rate, or "cosine" or "linear"'


class Decay(LRScheduler):
    """The rates a warmup has come to × a factor of the update, counted from the run's start, and the warmup's length.

    Until it begins it writes nothing new. Its own steps count from the warmup's end, as those of any follower.

    Args:
        optimizer: of the warmup.
        factor: a name, or a function of update and length.

    Attributes:
        num_steps: the update at which a named factor is 0; `None` while it is not known.
    """

    def __init__(self, optimizer: Optimizer, factor: DecayFactor) -> None:
        self.num_steps: int | None = None
        self.factor: DecayFactor = factor
        self.length: int | None = None  # of the warmup, once it is over
        super().__init__(optimizer)

    def try_factor(self, length: int, num_steps: int) -> None:
        """Raise where the factor's first value, after so many updates of warmup, is none.

        Not before the end is known: a function may have to know it, too.
        """
        factor_of(self.factor, length, length, num_steps)

    def begin(self, length: int) -> None:
        """Take in how many updates the warmup had, before the first that this is of."""
        if self.num_steps is None:
            raise ValueError(
                f"the warmup is over after {length} updates, and the decay that follows has no end: then_until() got "
                "num_steps=None. Set schedule.num_steps to the number of updates of the run before the warmup is over."
            )
        self.length = length

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the coming update, one a group."""
        if self.length is None or self.num_steps is None:
            return rates(self.optimizer)
        factor = factor_of(self.factor, self.length + self.last_epoch, self.length, self.num_steps)
        return [base * factor for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Write the rates of the next update; whether the optimizer has made one, the warmup knows."""
        self.last_epoch += 1
        set_rates(self.optimizer, self.get_lr())
        self._last_lr = rates(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers and the name of the factor; a function is not stored."""
        return {
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_epoch": self.last_epoch,
            "last_lr": [float(lr) for lr in self.get_last_lr()],
            "length": self.length,
            "num_steps": self.num_steps,
            "factor": self._name,
        }

    def check_state(self, saved: Saved) -> None:
        """Raise `ValueError` unless a state is one of this decay; the end may be another."""
        saved.count("last_epoch")
        for name in ("length", "num_steps"):
            saved.count_or_none(name)
        saved.check_rates("last_lr", len(self.base_lrs))
        if saved["factor"] != self._name:
            theirs, ours = (name or "a function" for name in (saved["factor"], self._name))
            raise ValueError(
                f"the saved decay has factor {theirs!r}, this one {ours!r}: "
                "pass the saved one to then_until() to resume."
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved decay stood, towards this one's end; what `check_state` has let pass."""
        self.base_lrs = like_rates(self.optimizer.param_groups, state_dict["base_lrs"])
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = list(state_dict["last_lr"])
        self.length = state_dict["length"]

    @property
    def _name(self) -> str | None:
        return self.factor if isinstance(self.factor, str) else None


def a_decay_factor(value: object) -> DecayFactor:
    """Return the argument `factor`, or raise: it must be a name or a function of two arguments."""
    if isinstance(value, str):
        known_name("factor", value, get_args(DecayName))
        return value  # type: ignore[return-value]
    return a_function("factor", value, _TAKES, count=2)


def factor_of(factor: DecayFactor, update: int, length: int, num_steps: int) -> float:
    """Return the factor of an update, from 0 for the run's first, at least `length`; or raise if it is no share."""
    if isinstance(factor, str):
        return _NAMED[factor](update, warmup_steps=length, num_steps=num_steps)
    return nonnegative_number(f"factor({update}, {length})", factor(update, length))
