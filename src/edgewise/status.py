"""How a measurement ended, in words."""

import enum


class Status(enum.Enum):
    """How a measurement ended. The value of a member is its explanation.

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
        "the loss of fresh batches did not fall better at higher rates: the rate is held below its target"
    )
    FELL_BACK = "nothing could be measured: the rate rises as in linear warmup"

    # Shared: sharpness and the critical learning rate
    BUDGET_EXHAUSTED = "the budget ran out before the tolerance was met: the number is provisional"
