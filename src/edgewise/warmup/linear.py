"""Linear warmup, from a given rate or from the critical learning rate."""

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import an_optimizer, nonnegative_number, positive_count
from edgewise.critical import FEWEST_FORWARDS, CriticalLRResult, Searching, search_critical_lr
from edgewise.optimizers.groups import check_minimizes, initial_rates, targets
from edgewise.optimizers.update import check_steps_alone
from edgewise.parameters import check_real_groups
from edgewise.status import Status
from edgewise.warmup.all_or_nothing import all_or_nothing
from edgewise.warmup.copies import NoCopies
from edgewise.warmup.observation import closure_and_loss
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.schedules import linear, linear_from, steps_to_target
from edgewise.warmup.state import Saved, as_plain


class LinearWarmup(Warmup):
    """Raise the learning rate linearly to the rate the optimizer was made with.

        η_t = η_init + (η_trgt − η_init)·min(1, t/T_wrm),  t = 1, 2, …

    No update ever runs at rate 0. With `lr_init="critical"` the first update runs at the critical learning
    rate η_c of its own batch, measured by `observe`, and the rate grows from there by η_trgt/T_wrm an update.
    The target is reached after T_wrm(1 − η_c/η_trgt) updates (`steps_to_target`) and held until T_wrm, so that
    a schedule that follows ends where it was planned to. Where η_c is above the target, as for Adam and GI-Adam at
    initialization with usual rates, training starts at the target: `start` says so. If `observe` is not
    called in time, or finds no critical rate, this is plain linear warmup from 0; a warning and `fallback` say why.

    Args:
        optimizer: any; its groups' rates are the targets, and their ratios are kept.
        warmup_steps: T_wrm ≥ 1, in optimizer steps; 1 is a constant rate.
        lr_init: η_init of the first group, between 0 and its target, or "critical".
        max_overhead: share of the cost of `warmup_steps` updates, of three forwards each, that measuring η_c may
            add, above 0 and at most 1; no limit if not given. A search takes 4 forwards or more: where fewer are left,
            nothing is measured.

    Attributes:
        start: the `CriticalLRResult` of the first batch, if it was measured.
        fallback: why there is no critical rate to start from, or `None`.

    Raises:
        TypeError: an argument has the wrong type (a bool is not a number).
        ValueError: an argument is out of range, `lr_init` above the target, a target that is not positive, or a group
            that maximizes, where the start is to be "critical".

    Examples:
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

    _argument_names = ("warmup_steps", "lr_init")
    _since_format = ("_since", "_waits_until")
    _copies = NoCopies()

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        lr_init: float | Literal["critical"] = 0.0,
        max_overhead: float | None = None,
    ) -> None:
        optimizer = an_optimizer("optimizer", optimizer, has_rates=True)
        self.warmup_steps = self._end = positive_count("warmup_steps", warmup_steps)
        self.lr_init: float | str = lr_init
        self._measures = lr_init == "critical"
        self.start: CriticalLRResult | None = None
        self._since = 0  # the update that is the first of the warmup: those before had nothing to measure
        if isinstance(lr_init, str) and lr_init == "critical":
            check_steps_alone(optimizer)
            check_real_groups(optimizer)
            check_minimizes(optimizer)
        elif isinstance(lr_init, str):
            raise ValueError(f'lr_init must be a number or "critical", got {lr_init!r}.')
        else:
            self.lr_init = nonnegative_number("lr_init", lr_init)
            _check_below_target(optimizer, self.lr_init)
        super().__init__(optimizer, max_overhead=max_overhead)

    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""
        start = self._start_factor
        update = max(0, update - self._since)
        if start is not None:
            return linear_from(update, warmup_steps=self.warmup_steps, start=start)
        init = 0.0 if isinstance(self.lr_init, str) else min(1.0, self.lr_init / float(self.base_lrs[0]))
        return linear(update, warmup_steps=self.warmup_steps, init=init)

    @property
    def steps_to_target(self) -> int:
        """T_reach: the number of the first update, from 0, at the target rate; plainly `warmup_steps` − 1."""
        if self._start_factor is not None:
            return self._since + steps_to_target(warmup_steps=self.warmup_steps, start=self._start_factor)
        return 0 if self.lr_init == float(self.base_lrs[0]) else self._since + self.warmup_steps - 1

    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Measure η_c before the first update, if `lr_init="critical"`; otherwise do nothing.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping. Gradients that are all
        zero or not finite are passed over, for 200 updates at most: the warmup begins with the first update
        that can be measured, at the first rate of plain warmup until then.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward; or an
                `UpdateLoss`, to which the micro-batches of the update have been added, and which knows their loss.
            loss: the value that was just computed for `backward()`: saves a forward where the closure gives it again.

        Raises:
            TypeError: `closure` is not a function without arguments, or `loss` is not a number.
            ValueError: no parameter has a gradient; an `UpdateLoss` is empty, of another model, or given with a `loss`.
            LossError: the closure does not return a finite scalar tensor, `loss` is a tensor of another kind, or no
                share explains the losses of an `UpdateLoss`.
        """
        closure, loss = closure_and_loss(closure, loss, self.optimizer)
        self._gradients.forget()
        seeks = self.lr_init == "critical" and self.start is None and self.fallback is None
        if self._observes(looks=seeks) and seeks and self._updates.made <= self._waits_until:
            self._see(closure, loss)

    @all_or_nothing
    def _see(self, closure: Callable[[], Tensor], loss: Tensor | float | None) -> None:
        affordable = self._observation.affordable(closure, self.max_overhead, updates=self.warmup_steps)
        if affordable < FEWEST_FORWARDS:
            left = {0: "no forward", 1: "1 forward"}.get(affordable, f"{affordable} forwards")
            self._fall_back(
                f"max_overhead = {self.max_overhead:g} leaves {left} to search with, which takes {FEWEST_FORWARDS}"
            )
            return
        if not self._observation.has_gradient(closure):
            self._postpone()
            return
        known = math.nan if loss is None else self._observation.given_loss(closure, loss)
        asked = Searching(max_lr=float(self.base_lrs[0]), max_forwards=affordable)
        given = known if math.isfinite(known) else None
        found = self._search(closure, lambda: search_critical_lr(self.optimizer, closure, asked, known=given))
        if found is not None and not math.isfinite(found.slope):
            self._postpone()
            return
        self.start = found
        self._begin_at(self._updates.made)
        if found is not None and self._start_factor is None:
            self._fall_back(f"no critical learning rate to start from, {found.status.value}")
        self._apply()

    def report(self) -> WarmupReport:
        """Return what has happened so far.

        T_save = T_wrm·η_c/η_trgt − T_fp/2, with T_fp the forwards of the search (arXiv 2406.09405, section 5).
        """
        start = self._start_factor
        saved = None if start is None else self.warmup_steps * start - self.num_forwards / 2
        return self._report(steps_to_target=self.steps_to_target, steps_saved=saved)

    @property
    def _start_factor(self) -> float | None:
        """The factor of the first update, if it was measured."""
        return _factor_of(self.start, float(self.base_lrs[0]))

    @property
    def _unmeasured(self) -> bool:
        unknown = self.lr_init == "critical" and self.start is None and self.fallback is None
        return unknown and self._updates.made > self._waits_until

    def _plan(self, num_steps: int) -> None:
        if self.warmup_steps >= num_steps:
            raise ValueError(
                f"num_steps must be more than warmup_steps = {self.warmup_steps}, got {num_steps}: nothing would be "
                "left to decay in; make the warmup shorter or the run longer."
            )
        self._latest_end = num_steps  # a start that was waited for moves the end

    def _end_early(self) -> None:
        """The rate rises on below what follows."""

    def _begin_at(self, update: int) -> None:
        self._since, self._end = update, update + self._num_updates(self._start_factor)

    def _num_updates(self, start: float | None) -> int:
        """Return how many updates it takes: T_wrm, and one more from below the rate that plain warmup begins with."""
        if start is None:
            return self.warmup_steps
        return max(self.warmup_steps, steps_to_target(warmup_steps=self.warmup_steps, start=start) + 1)

    def _postpone(self) -> None:
        self._begin_at(self._updates.made + 1)
        self._wait()

    def _go_linear(self, start: float | None) -> None:
        """Linear is what it is."""

    def _progress(self) -> dict[str, Any]:
        return {"start": as_plain(self.start), "_since": self._since, "_waits_until": self._waits_until}

    def _read(self, saved: Saved) -> dict[str, Any]:
        since, waits = (saved.count(name) if name in saved else 0 for name in self._since_format)
        start = saved.result("start", CriticalLRResult)
        target, *_ = saved.numbers("base_lrs", len(self.optimizer.param_groups))
        return {
            "start": start,
            "_since": since,
            "_end": since + self._num_updates(_factor_of(start, target)),
            "_waits_until": waits,
        }


def _factor_of(start: CriticalLRResult | None, target: float) -> float | None:
    """Return the factor of the first update, if its critical rate was measured."""
    if start is None or start.status not in (Status.FOUND, Status.ABOVE_MAX_LR):
        return None
    return min(1.0, start.lr / target)


def _check_below_target(optimizer: Optimizer, lr_init: float) -> None:
    # An optimizer's saved state brings the rate amid a schedule; the warmup's own then brings the target.
    target = max(targets(optimizer)[0], initial_rates(optimizer)[0])
    if lr_init > target:
        raise ValueError(
            f"lr_init must be at most the target, the optimizer's rate {target:g}; got {lr_init:g}: "
            "raise the optimizer's lr or lower lr_init."
        )
