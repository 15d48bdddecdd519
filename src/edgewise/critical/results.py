"""What a search along an update returns."""

from dataclasses import dataclass

from edgewise.status import Status

BRACKETED = (Status.FOUND, Status.MULTIPLE_CROSSINGS)


@dataclass(frozen=True, kw_only=True)
class CriticalLRResult:
    """The critical learning rate with its bracket; rates are those of the first parameter group.

    Examples:
        >>> print(CriticalLRResult(lr=0.129, bracket=(0.118, 0.129), scale=1.3, status=Status.FOUND, num_forwards=3,
        ...     loss=2.3, rise=1e-3, slope=-0.4, noise_floor=1e-5))
        0.129 in [0.118, 0.129] (FOUND, 3 forwards)
    """

    lr: float  # FOUND: upper end of the bracket, the smallest rate seen to raise the loss; else the lower end
    bracket: tuple[float, float]  # (does not raise the loss or 0, raises it or infinity)
    scale: float  # lr over the current rate: the factor on the rates of all groups
    status: Status
    num_forwards: int  # loss evaluations, each over all batches, beside that of a computed gradient
    loss: float  # at the current parameters
    rise: float  # of the loss at the bracket's upper end; NaN if there is none
    slope: float  # dL/dη at η = 0, as the gradient says; negative for a descent direction
    noise_floor: float  # relative resolution of lr that the loss's precision allows
    exponent: float = 1.0  # q of ΔL(η) = slope·η·(1 − (η/η_c)^q) through the bracket; 1 on a quadratic
    interval: tuple[float, float] | None = None  # 95 % confidence interval of the root, over several batches

    @property
    def ok(self) -> bool:
        """Whether `lr` is the critical rate: a bracket as narrow as asked holds it."""
        return self.status in BRACKETED

    def __str__(self) -> str:
        low, high = self.bracket
        return f"{self.lr:.4g} in [{low:.4g}, {high:.4g}] ({_ended(self.status, self.num_forwards)})"


@dataclass(frozen=True, kw_only=True)
class BestStepResult:
    """The rate of the first parameter group at which one update lowers the loss most."""

    lr: float  # FOUND: the minimum; ABOVE_MAX_LR: the highest rate that was to be tried; else 0
    status: Status
    num_forwards: int
    loss: float  # at the current parameters
    slope: float  # dL/dη at η = 0
    resolution: float = 0.0  # of the loss: smaller differences are rounding

    @property
    def ok(self) -> bool:
        """Whether `lr` is the best of the rates that were allowed."""
        return self.status in (Status.FOUND, Status.ABOVE_MAX_LR)

    def __str__(self) -> str:
        return (
            f"{self.lr:.4g} from loss {self.loss:.4g}, slope {self.slope:.4g} "
            f"({_ended(self.status, self.num_forwards)})"
        )


def _ended(status: Status, num_forwards: int) -> str:
    return f"{status.name}, {num_forwards} forward{'' if num_forwards == 1 else 's'}"
