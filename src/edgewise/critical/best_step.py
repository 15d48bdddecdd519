"""How far one update lowers the loss most: the scale of a rate, found from above by forwards."""

import math
from collections.abc import Callable, Collection

from torch import Tensor
from torch.optim import Optimizer

from edgewise.critical.along import along_update
from edgewise.critical.methods import Line, Trace, check_gradient
from edgewise.critical.results import BestStepResult
from edgewise.optimizers.update import Update
from edgewise.status import Status

_FACTOR = 4.0  # between the rates that are tried
# How often a rate is lowered whose update changes a matrix too much, and the interval halved that it is in then.
_MOST_LOWERED, _HALVINGS = 64, 6


def search_best_step(
    optimizer: Optimizer,
    closure: Callable[[], Tensor],
    *,
    max_lr: float,
    max_change: float,
    max_forwards: int,
    share: float = 1.0,
    known: float | None = None,
    matrices: Collection[Tensor] | None = None,
) -> BestStepResult:
    """Find the rate at which one update lowers the loss most, of those not above `max_lr` that change little.

        η* = argmin over 0 < η ≤ η_max, aη‖u_W(aη)‖ ≤ c‖W‖ for each matrix W ≠ 0 of θ, of L(θ + ηu)

    On a quadratic η* is half the critical learning rate; for an update of signs it can be a tenth. The rates η_max/4ᵏ
    are tried from above, down to the first that lowers the loss less than the one before; η* is the minimum of the
    parabola in log η through the three around it. A loss that is not finite counts as raised.

    Args:
        optimizer: any whose step needs no closure; unchanged afterwards.
        closure: returns the loss on the batch of the gradients as they stand.
        max_lr: η_max > 0, in rates of the first parameter group.
        max_change: c > 0. Where no matrix but zeros is among the parameters, all entries together count; if they are
            zero, there is no limit.
        share: a, of the rate, that the update which may change so much has: 1 for the rate itself.
        max_forwards: budget of loss evaluations, ≥ 4.
        known: the loss, as an earlier evaluation had it: saves a forward where the closure gives the same.
        matrices: the W, where not all count.

    Raises:
        ValueError: no parameter has a gradient.
        LossError: the loss at the current parameters is not a finite scalar, or is another one again.
    """
    with along_update(optimizer, closure, first=max_lr, known=known) as (loss, update, slope_at):
        slope = slope_at(max_lr)
        if not -math.inf < slope < 0:
            lr, status = 0.0, Status.NOT_A_DESCENT_DIRECTION
        else:
            loss.check_repeats()
            longest = _longest(update, max_lr, max_change, share, matrices)
            slope = slope_at(longest)  # where steps are capped, that of a longer one is too small
            line = Line(
                slope=slope, resolution=loss.resolution, max_forwards=max_forwards - loss.num_forwards
            )
            trace = Trace(lambda lr: loss.change(update.at(lr), lr), line)
            lr, status = _descend(trace, longest)
            fault = check_gradient(trace)
            lr, status = (lr, status) if fault is None else (0.0, fault)
        return BestStepResult(
            lr=lr,
            status=status,
            num_forwards=loss.num_forwards,
            loss=loss.base,
            slope=slope,
            resolution=loss.resolution,
        )


def _longest(
    update: Update, max_lr: float, max_change: float, share: float, matrices: Collection[Tensor] | None
) -> float:
    """Return the largest rate of which `share` changes no matrix by more than `max_change` of its norm, from above.

    Where updates are not in proportion to the rate, as those of Adafactor that are capped, by halving intervals of it.
    """

    def change(lr: float) -> float:
        return share * lr * update.relative_length(share * lr, matrices)

    most = change(max_lr)
    if not most > max_change:
        return max_lr
    if update.is_linear:
        return max_lr * (max_change / most)
    within = max_lr
    for _ in range(_MOST_LOWERED):
        if change(within) <= max_change:
            break
        within /= _FACTOR
    beyond = _FACTOR * within
    for _ in range(_HALVINGS):
        middle = math.sqrt(within * beyond)
        within, beyond = (middle, beyond) if change(middle) <= max_change else (within, middle)
    return within


def _descend(trace: Trace, max_lr: float) -> tuple[float, Status]:
    """Return the rate with the largest fall of the loss, from above, and how the search ended."""
    lr = max_lr
    trace.rises(lr)
    while len(trace.seen) < trace.line.max_forwards:
        lr /= _FACTOR
        if lr < trace.line.smallest:
            return 0.0, Status.BELOW_RESOLUTION
        trace.rises(lr)
        *above, middle, below = trace.seen.values()
        if middle < min(0.0, below):
            if not above:
                return max_lr, Status.ABOVE_MAX_LR
            return _FACTOR * lr * _FACTOR ** _place(above[-1], middle, below), Status.FOUND
    return 0.0, Status.BUDGET_EXHAUSTED


def _place(above: float, middle: float, below: float) -> float:
    """Return where the parabola through heights at 1, 0, −1 has its minimum; 0 where a height is infinite.

    >>> _place(1.0, 0.0, 1.0), round(_place(1.0, 0.0, 3.0), 2)
    (0.0, 0.25)
    """
    if not math.isfinite(above + below):
        return 0.0
    return 0.5 * (below - above) / (below - 2 * middle + above)
