"""Warmup at the edge: the learning rate climbs while its updates fall short, and creeps on while the loss falls."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.arguments import a_flag, an_optimizer, positive_count
from edgewise.critical import BestStepResult
from edgewise.errors import warn
from edgewise.optimizers.groups import parameters, rates
from edgewise.status import Status
from edgewise.warmup.adaptive import AdaptiveWarmup, fallback_length, latest_end
from edgewise.warmup.all_or_nothing import all_or_nothing
from edgewise.warmup.climb import Climb, forgetting
from edgewise.warmup.copies import are_saved
from edgewise.warmup.creep import creep_growth
from edgewise.warmup.observation import closure_and_loss
from edgewise.warmup.position import steps_running
from edgewise.warmup.rate_table import STEP_BACK
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.settling import CHANGE, Settling
from edgewise.warmup.start import Start
from edgewise.warmup.state import Saved
from edgewise.warmup.watch import LossWatch

# One set for every optimizer, here and in the parts; docs/edge-warmup.md has what each does at its extremes.
_SHORTEST_RUN = 400  # updates that a run is taken to have at least


class EdgeWarmup(AdaptiveWarmup):
    """Raise the learning rate as fast as training allows, and no further than it allows: no length, nothing to set.

    First it *climbs*, by what the gradients say, then it *creeps* on, by what the losses say, never above the target:

        climb:  η ← η·exp(ρ(1 − ζ/0.6)),  ζ = ½(1 + Σ g_{t+1}·Δθ_t / Σ |g_t·Δθ_t|),  until ζ > 0.6
        creep:  η ← η·exp(2s/t),  s = −(z + 1)/2 ∈ [−1, 1]

    ζ is the share of the critical rate that the updates Δθ take, from the slopes at both ends of each. ρ is 1 − β under
    momentum β, at most 0.3, and half of that under Adam and its kin. z is the slope of the loss over log t in the last
    eighth of the updates, over its standard error. So s is 1 where the loss falls beyond doubt, and negative
    where chance explains it; there the climb stands still. Of losses only differences count. The page
    docs/edge-warmup.md says how this works, and what each constant is for.

    - *Start:* a quarter of the rate at which the first update lowers the loss most, found by about four forwards, or
      less: no first update of more than 1 % of the norm of any matrix. Updates that say nothing are waited out.
    - *Losses* are those that `loss` gives, at no cost. Without, `observe` evaluates the closure, one forward each, at
      the updates that the budget allows: first at all of them, later at one in twelve. Unseen, the rate does not rise.
    - *Halved* is the rate where the loss has risen for good, two of the first 20 surge beyond all before, three in a
      row are not finite, or an update was made on one that is not. This goes on for four times the length of the
      warmup, and halves what follows by `then` as well.
    - *Held back* are single updates on batches whose loss stands out, and those after them, for as long as `observe` is
      called. Neither a scheduler that follows nor `export` sees that share of the rate.
    - *End:* at once where it starts at the target; at the target, once the rate has stood there for a third of the
      updates, and for 50 at least; below it at half of the run. If that is not known, also where the rate has settled
      below, and after five times the length of the climb, or 200 updates, at the latest. `status` says AT_TARGET or
      HELD_BELOW_TARGET, and `lr_held` at which rate, also where it was halved since. What follows by `then` starts
      from there.
    - *Fallback:* where nothing can be measured, it is linear warmup, once, with a warning that names the reason: over a
      tenth of `num_steps`; if that is not known, over 2/(1 − β₂) updates or, without a β₂, 200.

    While it climbs, blocks of the parameters are kept.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        num_steps: length of the run; give it if it is known: without, a rate may be held too early or too late. The
            warmup then ends at half of it at the latest. A saved state may be loaded where it is another.
        max_overhead: share of the training's cost that `observe` may add, counted in forwards, of which an update is
            three; the run is taken to have `num_steps` updates, or 400 if that is not known. `None` for no limit.
        saves_copies: whether `state_dict` holds these blocks, so that a run resumed in the climb has the same rates
            bit for bit. False: plain numbers; the climb then goes on from the next update. `None`: True, unless
            parameters are sharded (FSDP2), where one rank alone may save.

    Attributes:
        found: the `BestStepResult` of the first batch, or `None`.
        fallback: why it goes on as linear warmup, or `None`.

    Raises:
        TypeError: an argument has the wrong type, or the optimizer's step needs a closure.
        ValueError: an argument is out of range, a target is not positive, or a group maximizes.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        >>> warmup = EdgeWarmup(optimizer)
        >>> loss_fn = lambda: model.weight.square().square().sum()  # falls most near 0.25
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = loss_fn()
        ...     loss.backward()
        ...     warmup.observe(loss_fn, loss=loss)
        ...     optimizer.step()
        ...     warmup.step()
        >>> round(warmup.report().lr_start, 4), warmup.status.name, optimizer.param_groups[0]["lr"]
        (0.0025, 'AT_TARGET', 0.2)

    Reference: the parameter-free warmup that arXiv 2406.09405 leaves as future work.
    """

    _argument_names = _may_differ = ("num_steps",)
    _scales_follower = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        num_steps: int | None = None,
        max_overhead: float | None = 0.03,
        saves_copies: bool | None = None,
    ) -> None:
        optimizer = an_optimizer("optimizer", optimizer, has_rates=True)
        self.saves_copies = None if saves_copies is None else a_flag("saves_copies", saves_copies)
        self.num_steps = None if num_steps is None else positive_count("num_steps", num_steps)
        self._start, self._climb, self._settling = Start(), Climb(), Settling()
        self._watch = LossWatch()
        length = fallback_length(optimizer, self.num_steps)
        super().__init__(optimizer, fallback_length=length, max_overhead=max_overhead)

    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Find the start at the first update; let the rate grow by gradients and losses; guard all along.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping, at every update. Where
        several ranks train the model, they must all call it. Once the warmup is over it calls the closure no more,
        guards the update, and halves the rate if the loss rises for good. A loss that rises because the data become
        harder looks the same: give none from there on, if they do.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward; or an
                `UpdateLoss`, to which the micro-batches of the update have been added, and which knows their loss.
            loss: the value that was just computed for `backward()`: it saves forwards, and alone watches what follows.

        Raises:
            TypeError: `closure` is not a function without arguments, or `loss` is not a number.
            ValueError: no parameter has a gradient; an `UpdateLoss` is empty, of another model, or given with a `loss`.
            LossError: the closure does not return a finite scalar tensor, `loss` is a tensor of another kind, or no
                share explains the losses of an `UpdateLoss`.
        """
        closure, loss = closure_and_loss(closure, loss, self.optimizer)
        self._gradients.forget()
        self._step_share.spend()
        if self._observes():
            self._see(closure, loss)

    @all_or_nothing
    def _see(self, closure: Callable[[], Tensor], loss: Tensor | float | None) -> None:
        rises = False
        value = self._loss(closure, loss)
        if value is not None:
            self._watch.add(value, self._updates.made, recovery=forgetting(self.optimizer))
            self._step_share.share = self._watch.share
            rises = self._watch.rises
        under_way = self._end is None
        if under_way:
            self._warm_up(closure, value)
        if rises and self._table.linear is None and self._watch.lasts(self._end, self._updates.made):
            self._step_back()
        if under_way:
            self._apply()
        if steps_running(self.optimizer):  # observed by the closure of the step, whose rates have been taken
            self._step_share.take()

    @property
    def found(self) -> BestStepResult | None:
        """What the search on the first batch found."""
        return self._start.found

    @property
    def status(self) -> Status:
        """UNDER_WAY, AT_TARGET, HELD_BELOW_TARGET or FELL_BACK."""
        if self.fallback is not None:
            return Status.FELL_BACK
        if self._end is None:
            return Status.UNDER_WAY
        return Status.HELD_BELOW_TARGET if self.lr_held is not None else Status.AT_TARGET

    def report(self) -> WarmupReport:
        """Return what has happened so far."""
        return self._report(
            steps_to_target=self._table.reached,
            num_step_backs=self._table.num_step_backs,
            num_spikes=self._watch.guard.num_spikes,
            lr_held=self.lr_held,
        )

    def _loss(self, closure: Callable[[], Tensor], given: Tensor | float | None) -> float | None:
        """Return the loss of the coming update: as it is given, else by a forward, while a warmup can pay for it."""
        if given is not None:
            return self._observation.given_loss(closure, given)
        if self._end is not None or self.found is None:
            return None
        run = max(self._updates.made, self.num_steps or _SHORTEST_RUN)
        if self._observation.affordable(closure, self.max_overhead, updates=run) < 1:
            return None
        return self._observation.loss(closure)

    def _warm_up(self, closure: Callable[[], Tensor], value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            if self.found is None:
                self._wait()
        elif self.found is None:
            self._begin(closure, value)
        elif self._updates.made > self._table.rates[-1][0]:  # a step that was skipped is no progress
            if self._start.idle:
                self._begin_again(closure, value)
            if self._end is not None:
                return
            if self._climb.is_on:
                self._climb_on(closure)
            else:
                trend = self._watch.trend.value
                self._grow(creep_growth(trend if value is not None else min(0.0, trend), self._updates.made))
            self._settle()

    def _begin(self, closure: Callable[[], Tensor], value: float | None) -> None:
        if not self._observation.has_gradient(closure):
            self._wait()
            return
        target = float(self.base_lrs[0])
        found = self._search(
            closure, lambda: self._start.search(self.optimizer, closure, target=target, known=value)
        )
        if found is None:
            return
        if not math.isfinite(found.slope):
            self._wait()
            return
        self._start.begin(found, parameters(self.optimizer), self._observation.ranks(closure))
        if found.lr == 0:
            self._fall_back(f"the first update shows no scale for the rate, {found.status.value}")
            return
        self._table.begin(self._updates.made, self._start.factor(found, target))
        if self._factor == 1.0 and not self._start.idle:  # no warmup is needed
            self._finish()
        else:
            self._settling.begin(self._updates.made, self._factor)
            self._climb.go_on(parameters(self.optimizer))

    def _begin_again(self, closure: Callable[[], Tensor], value: float | None) -> None:
        """Lower the start where matrices that had no gradient before would be overwritten."""
        ranks = self._observation.ranks(closure)
        if not self._observation.has_gradient(closure):
            return
        awake = self._start.awake(self._updates.made, parameters(self.optimizer), ranks)
        if not awake:
            return
        target = float(self.base_lrs[0])
        found = self._search(
            closure,
            lambda: self._start.search(self.optimizer, closure, target=target, known=value, matrices=awake),
        )
        if found is None:
            return
        if found.lr == 0:
            self._fall_back(
                f"{len(awake)} matrices that had no gradient at first show no scale, {found.status.value}"
            )
        elif self._start.factor(found, target) < self._factor:
            self._table.begin(self._updates.made, self._start.factor(found, target))
            self._settling.begin(self._updates.made, self._factor)
        elif self._factor == 1.0 and not self._start.idle:  # no warmup is needed
            self._finish()

    def _climb_on(self, closure: Callable[[], Tensor]) -> None:
        self._climb.add(parameters(self.optimizer), self._observation.ranks(closure))
        self._gradients.note()
        growth = self._climb.growth(self.optimizer)
        if growth is None:
            return
        self._grow(growth if self._watch.trend.value >= 0 else 0.0)
        if (self._climb.is_high or self._factor == 1.0) and not self._start.idle:
            self._start_to_creep()
        else:
            self._climb.go_on(parameters(self.optimizer))

    def _start_to_creep(self) -> None:
        self._climb.end(self._updates.made)
        self._table.set(self._updates.made, self._factor)  # it grows from here on, also where it has stood
        self._settling.begin(self._updates.made, self._factor)

    def _step_back(self) -> None:
        """Halve the rate; once the warmup is over, that of the scheduler that follows, which learns of it in `step`."""
        if self.found is None:
            return
        if not self._table.is_lowest(self._updates.made):
            self._table.step_back(self._updates.made)
            if self._end is not None:
                self._written.write([STEP_BACK * rate for rate in rates(self.optimizer)])
            elif self._climb.is_on:
                self._start_to_creep()
        elif self._end is None:
            warn(
                f"EdgeWarmup holds the rate at {self._factor * float(self.base_lrs[0]):.3g}: the loss rises, or is not "
                "finite, although the rate has been halved again and again, so that something else raises the loss."
            )
            self._finish()

    def _grow(self, speed: float) -> None:
        """Let the rate grow exponentially, but not where it is not the one that was measured."""
        self._table.grow(self._updates.made, speed if self._watch.share == 1 else min(0.0, speed))

    def _settle(self) -> None:
        """See whether the rate still grows: if not, stop climbing, or finish."""
        self._settling.add(self._updates.made, self._factor)
        latest = self._climb.latest_end if self.num_steps is None else self.num_steps // 2
        settles = self._settling.value and (self.num_steps is None or self._factor == 1.0)
        if self._updates.made >= latest or (settles and not self._climb.is_on):
            if self._factor * CHANGE >= 1:  # as near to the target as a rate that has settled may vary
                self._table.set(self._updates.made, 1.0)
            self._finish()
        elif self._settling.value and self._climb.is_on:
            self._start_to_creep()

    def _plan(self, num_steps: int) -> None:
        self.num_steps, self._latest_end = num_steps, latest_end(num_steps)
        self._table.plan(self._updates.made, fallback_length(self.optimizer, num_steps))

    @property
    def _copies(self) -> Climb:
        return self._climb

    @property
    def _unmeasured(self) -> bool:
        return self.found is None and self._end is None and self._updates.made > self._waits_until

    def _seen(self) -> dict[str, Any]:
        copies = are_saved(self.saves_copies, parameters(self.optimizer))
        return {
            **self._start.state_dict(),
            **self._climb.state_dict(copies=copies),
            **self._settling.state_dict(),
            **self._watch.state_dict(),
        }

    def _read_seen(self, saved: Saved) -> dict[str, Any]:
        saved.count_or_none("num_steps")
        climb = Climb()
        parts: dict[str, Start | Climb | Settling | LossWatch]
        parts = {"_start": Start(), "_climb": climb, "_settling": Settling(), "_watch": LossWatch()}
        for part in parts.values():
            part.load_state_dict(saved)
        if not are_saved(self.saves_copies, parameters(self.optimizer)):  # a state may hold another rank's
            climb.slopes.give_up_copies()
        return dict(parts)
