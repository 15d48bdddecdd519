"""How a measurement ended, in words, and as a number for trackers."""

import enum
import math
from collections.abc import Mapping


class Status(enum.Enum):
    """How a measurement ended. The value of a member is its explanation.

    Examples:
        >>> Status.CONVERGED.value
        'the residual is within rtol'
    """

    # Sharpness, also preconditioned
    CONVERGED = "the residual is within rtol"
    NOT_FINITE = "the Hessian is not finite here: the value is reported as infinite"

    # The critical learning rate, and the best step
    FOUND = "the bracket holds the critical learning rate"
    MULTIPLE_CROSSINGS = (
        "the loss rises, falls below its value again, and rises: the bracket holds the first rise seen"
    )
    ABOVE_MAX_LR = "the loss does not rise up to max_lr: the critical learning rate lies above"
    NO_CATAPULT = (
        "the loss does not rise at any rate: it levels off, or falls on up to 2^24 times the first rate"
    )
    BELOW_RESOLUTION = (
        "the loss is not precise enough to tell where it starts to rise: the noise floor exceeds rtol"
    )
    NOT_A_DESCENT_DIRECTION = (
        "the update does not point downhill for this loss (slope >= 0): wrong batch, stale or scaled "
        "gradient, one that is zero or not finite, or momentum that dominates"
    )
    SCALED_GRADIENT = (
        "the gradients are a power of two larger than the loss says: unscale them first (GradScaler.unscale_)"
    )
    OTHER_GRADIENT = (
        "the gradients are not this loss's: another batch, stale gradients, or a closure that scales the loss"
    )

    # The stability limit
    EXACT = "at fixed P the update is linear in the gradients: the stability limit is exact"
    NO_LINEAR_LIMIT = (
        "at fixed P the update is not a steady mean of past gradients: the optimizer has no stability limit "
        "of the form lr × preconditioned sharpness"
    )
    NO_PRECONDITIONER = (
        "no diagonal preconditioner is registered for this optimizer, so that its stability limit is in no "
        "known unit"
    )

    # Warmup at the edge
    UNDER_WAY = "the rate is still rising"
    AT_TARGET = "the target rate is reached"
    HELD_BELOW_TARGET = (
        "the loss of fresh batches did not fall better at higher rates, or half of the run was over: the rate is held "
        "below its target"
    )
    FELL_BACK = "nothing could be measured: the rate rises as in linear warmup"

    # Shared: sharpness and the critical learning rate
    BUDGET_EXHAUSTED = "the budget ran out before the tolerance was met: the number is provisional"

    @property
    def code(self) -> int:
        """A number that stays the same in all releases, for trackers that take numbers only.

        Examples:
            >>> Status.CONVERGED.code, Status.AT_TARGET.code
            (10, 41)
        """
        return _CODES[self.name]


_CODES = {
    "CONVERGED": 10,
    "NOT_FINITE": 11,
    "FOUND": 20,
    "MULTIPLE_CROSSINGS": 21,
    "ABOVE_MAX_LR": 22,
    "NO_CATAPULT": 23,
    "BELOW_RESOLUTION": 24,
    "NOT_A_DESCENT_DIRECTION": 25,
    "SCALED_GRADIENT": 26,
    "OTHER_GRADIENT": 27,
    "EXACT": 30,
    "NO_LINEAR_LIMIT": 31,
    "NO_PRECONDITIONER": 32,
    "UNDER_WAY": 40,
    "AT_TARGET": 41,
    "HELD_BELOW_TARGET": 42,
    "FELL_BACK": 43,
    "BUDGET_EXHAUSTED": 50,
}


def flat_metrics(values: Mapping[str, object], prefix: str) -> dict[str, float | int]:
    """Return those values that are numbers, by `prefix` + name: flags as 0 or 1, without NaN, `None` and words.

    >>> flat_metrics({"lr": 0.5, "steps": 3, "finished": False, "lr_held": None, "limit": math.nan}, "w/")
    {'w/lr': 0.5, 'w/steps': 3, 'w/finished': 0}
    """
    if not isinstance(prefix, str):
        raise TypeError(
            f'prefix must be a str, such as "edgewise/", got {prefix!r} of type {type(prefix).__name__}.'
        )
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {
        prefix + name: int(value) if isinstance(value, bool) else value
        for name, value in numbers.items()
        if not math.isnan(value)
    }
