"""Warmup at the edge: the learning rate climbs while its updates fall short, and creeps on while the loss falls."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from edgewise.arguments import a_closure, a_loss_value, an_optimizer, positive_count
from edgewise.critical import BestStepResult, closure_loss, search_best_step
from edgewise.errors import Status
from edgewise.isolation.bits import exchanged
from edgewise.optimizers.groups import rates
from edgewise.warmup.adaptive import STEP_BACK, AdaptiveWarmup
from edgewise.warmup.all_or_nothing import all_or_nothing
from edgewise.warmup.averages import heavy_ball, momentum, num_averages
from edgewise.warmup.position import steps_running
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.signals import LossTrend, RateShare, RiseAlarm, SpikeGuard
from edgewise.warmup.state import Saved, as_plain
from edgewise.warmup.step_share import StepShare
from edgewise.warmup.then import RATES_OF_THEIR_OWN
from edgewise.warn import warn

# One set for every optimizer; docs/edge-warmup.md has what each does at its extremes.
_START = 1 / 4  # of the rate at which the first update lowers the loss most
_MOST_CHANGE = 0.01  # of the parameters' norm, that the first update may be
_ENOUGH = 0.6  # share ζ of the critical rate at which climbing ends
_FASTEST_CLIMB = 0.3  # log-growth of the rate an update, without momentum
_FASTEST_CREEP = 0.1  # the same
_POWER = 2.0  # p: while every look finds that the loss has fallen, the rate grows like tᵖ
_SPACING = 1 / 10  # of the updates so far: how many lie between two looks
_SETTLED_CHANGE = 1.2  # a rate that changes by less than this factor …
_SETTLED_TIME = 1.5  # … while the number of updates grows by this one, has settled
_SHORTEST_HOLD = 50  # updates that it must have stood for at least
_WATCHED = 4  # lengths of the warmup, of 50 updates at least, in which a rise of the loss halves the rate
_PATIENCE = 200  # updates of linear warmup, where there is no β₂
_SHORTEST_RUN = 400  # updates that a run is taken to have at least, in the budget of forwards
_MOST_FIRST_FORWARDS = 20  # of the search for the start
_SAME_LOSS = 8.0  # roundings, of float32 at most, up to which the closure's loss is the one given
_FLOAT32 = 2.0**-23  # relative
_PROGRESS = ("_climbing", "_mark", "_next_look", "_loss_is_exact")


class EdgeWarmup(AdaptiveWarmup):
    """Raise the learning rate as fast as training allows, and no further than it allows: no length, nothing to set.

    First it *climbs*, by what the gradients say, then it *creeps* on, by what the loss says, never above the target:

        climb:  η ← η·exp(ρ(1 − ζ/0.6)),  ζ = ½(1 + Σ g_{t+1}·Δθ_t / Σ |g_t·Δθ_t|),  until ζ > 0.6
        creep:  η ← η·exp(2s/t),  s = −Σδ / Σ|δ| ∈ [−1, 1],  δ = ΔL/U

    - ζ is η/η_c on a quadratic, from the slopes at both ends of each update Δθ_t = θ_{t+1} − θ_t, with the gradient of
      the next batch at its end: no forward. ρ is 1 − β under momentum β, at most 0.3: no rate before the last one
      shows. Under Adam and its kin, whose squares are averaged as well, it is half of that.
    - s is 1 while the loss falls, and the rate then grows like t² (linear warmup grows like t); 0 where noise and
      instability eat up the progress, and the rate stays; negative where the loss rises. ΔL is the change of the loss
      over the last k = ⌈t/10⌉ updates on the batch B of the coming one, L_B(θ_t) − L_B(θ_{t−k}), which none of them
      has trained on, and U what losses vary by (`LossTrend`). Σ are moving averages.
    - Of losses only differences count: a constant that is added to the loss changes nothing, nor does a factor.
    - *Start:* a quarter of the rate at which the first update lowers the loss most, found by about four forwards,
      but no update of more than 1 % of the parameters' norm (of 1 − β as much under heavy-ball momentum β, whose first
      update is that share of a long one). η_c of the first update is no such scale.
    - *Looks* cost one forward each (two where `loss` is not given, or is not what the closure returns: autocast,
      dropout). Their number grows like log t. Where `max_overhead` does not allow one, the rate does not rise.
    - *Instability:* where a look finds the loss risen by more than all losses at looks so far lie apart, or the given
      losses have risen above their lowest level by more than chance explains (`RiseAlarm`), the rate is halved. The
      latter goes on for four times the length of the warmup, and halves what follows by `then` as well. A given loss
      that stands out calls for a look at once. Below 1/512 of the rate at its start it is held, with a warning.
    - *Losses and gradients that are not finite* are no event where the update is skipped. Three such losses in a row,
      or one on which an update was made, halve the rate. Before the first measurement they are waited for, as are
      gradients that are all zero, for 200 updates at most.
    - *Spikes:* an update on a batch whose given loss stands out from those before, by more than six mean deviations,
      takes a share of the rate, and so do those after it until momentum has forgotten it (`SpikeGuard`). This costs no
      forward, and goes on when the warmup is over, for as long as `observe` is called. The groups hold that share
      within `optimizer.step()` alone: neither a scheduler that follows nor `export` sees it.
    - *End:* when the rate has settled, at the target or below: it changed by less than a fifth over the last third of
      the updates, and over 50 at least. `status` says whether it is AT_TARGET or HELD_BELOW_TARGET, and `lr_held` at
      which rate, both also where it was halved since. What follows by `then` starts from there, scaled to the rate that
      was found.
    - *Fallback:* where nothing can be measured, it is linear warmup, once, with a warning that names the reason: over a
      tenth of `num_steps`; if that is not known, over 2/(1 − β₂) updates or, without a β₂, 200.

    While it creeps, a copy of the parameters is kept.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        num_steps: length of the run, if it is known: the warmup then ends at half of it at the latest, and its looks
            are paid from the whole run. A saved state may be loaded where it is another.
        max_overhead: share of the training's cost that `observe` may add, counted in forwards, of which an update is
            three; the run is taken to have `num_steps` updates, or 400 if that is not known. `None` for no limit.

    Attributes:
        found: the `BestStepResult` of the first batch, or `None`.
        fallback: why it goes on as linear warmup, or `None`.

    Raises:
        TypeError: an argument has the wrong type, or the optimizer's step needs a closure.
        ValueError: an argument is out of range, or a target is not positive.

    Example:
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

    _may_differ = ("num_steps",)

    def __init__(
        self, optimizer: Optimizer, *, num_steps: int | None = None, max_overhead: float | None = 0.03
    ) -> None:
        optimizer = an_optimizer("optimizer", optimizer, has_rates=True)
        self.num_steps = None if num_steps is None else positive_count("num_steps", num_steps)
        self.found: BestStepResult | None = None
        self._rate_share = RateShare()
        self._trend = LossTrend()
        self._reference: list[Tensor] = []  # the parameters at the last look
        self._climbing = True
        self._mark = (0, 0.0)  # (update, factor) since which the rate has changed by less than a fifth
        self._guard = SpikeGuard()
        self._alarm = RiseAlarm()
        self._next_look = 0
        self._loss_is_exact = False
        length = _fallback_length(optimizer, self.num_steps)
        self._step_share = StepShare(optimizer)
        super().__init__(optimizer, fallback_length=length, max_overhead=max_overhead)

    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Find the start at the first update; let the rate grow, and look at the loss where it is due; guard all along.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping, at every update. Where
        several ranks train the model, they must all call it. Once the warmup is over it calls the closure no more,
        guards the update, and halves the rate if the loss rises for good. A loss that rises because the data become
        harder looks the same: give none from there on, if they do.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward.
            loss: the value that was just computed for `backward()`: saves a forward at each look, and shows spikes and
                rises.

        Raises:
            TypeError: `closure` is not a function without arguments, or `loss` is not a number.
            ValueError: no parameter has a gradient.
            LossError: the closure does not return a finite scalar tensor, or `loss` is a tensor of another kind.
        """
        a_closure(closure)
        a_loss_value("loss", loss)
        self._gradients.forget()
        self._step_share.spend()
        if self._observes():
            self._see(closure, loss)

    @all_or_nothing
    def _see(self, closure: Callable[[], Tensor], loss: Tensor | float | None) -> None:
        rises = False
        value = None if loss is None else self._given_loss(closure, loss)
        if value is not None:
            rises = self._take_in(value)
        under_way = self._end is None
        if under_way:
            self._warm_up(closure, value)
        if rises and self._is_watched:
            self._step_back()
        if under_way:
            self._apply()
        if steps_running(self.optimizer):  # observed by the closure of the step, whose rates have been taken
            self._step_share.take()

    def close(self) -> None:
        """Let go of the optimizer: no update is counted any more, and the rates stay as they are. May be repeated."""
        super().close()
        self._step_share.spend()
        self._give_up_copies()

    @property
    def status(self) -> Status:
        """UNDER_WAY, AT_TARGET, HELD_BELOW_TARGET or FELL_BACK."""
        if self.fallback is not None:
            return Status.FELL_BACK
        if self._end is None:
            return Status.UNDER_WAY
        return Status.HELD_BELOW_TARGET if self.lr_held is not None else Status.AT_TARGET

    @property
    def lr_held(self) -> float | None:
        """The first group's rate that the warmup found below the target; `None` if it reached it."""
        ended_below = self._end is not None and self._linear is None and self._rates[-1][1] < 1.0
        return self._rates[-1][1] * float(self.base_lrs[0]) if ended_below else None

    def report(self) -> WarmupReport:
        """Return what has happened so far."""
        return self._report(
            steps_to_target=self._reached,
            num_step_backs=self._num_step_backs,
            num_spikes=self._guard.num_spikes,
            lr_held=self.lr_held,
        )

    def _check_follower(self, scheduler: LRScheduler) -> None:
        super()._check_follower(scheduler)
        if isinstance(scheduler, RATES_OF_THEIR_OWN):
            raise TypeError(
                f"then() takes a scheduler of the optimizer's rates, got {type(scheduler).__name__}, whose rates are "
                "its own: it would ignore the rate that was found. Use CosineAnnealingLR, StepLR or LambdaLR, e.g."
            )

    def _take_in(self, value: float) -> bool:
        """Add a loss to what is known of them, and guard the update; return whether the rate is to be halved."""
        rises = self._overflows.add(value, self._updates)
        if math.isfinite(value):
            self._guard.add(value, recovery=self._forgetting)
            self._alarm.add(value)
            rises = rises or self._alarm.rings
        self._step_share.share = self._guard.share
        return rises

    def _warm_up(self, closure: Callable[[], Tensor], value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            if self.found is None:
                self._wait()
        elif self.found is None:
            self._begin(closure, value)
        elif self._updates > self._rates[-1][0]:  # a step that was skipped is no progress
            if self._climbing:
                self._climb(closure)
            else:
                self._creep(closure, value)
            self._settle()

    def _begin(self, closure: Callable[[], Tensor], value: float | None) -> None:
        if not self._has_gradient(closure):
            self._wait()
            return
        target = float(self.base_lrs[0])
        found = self._counted(
            lambda: search_best_step(
                self.optimizer,
                closure,
                max_lr=target / _START,
                max_change=_MOST_CHANGE * (1 - heavy_ball(self.optimizer)) / _START,
                max_forwards=_MOST_FIRST_FORWARDS,
                known=value,
            )
        )
        if found is None:
            return
        if not math.isfinite(found.slope):
            self._wait()
            return
        self.found = found
        if found.lr == 0:
            self._fall_back(f"the first update shows no scale for the rate, {found.status.value}")
            return
        self._trend.begin(found.loss)
        rounding = min(found.resolution, _FLOAT32 * abs(found.loss))
        self._loss_is_exact = value is not None and abs(value - found.loss) <= _SAME_LOSS * rounding
        self._set_first_factor(min(1.0, _START * found.lr / target))
        if self._factor == 1.0:  # no warmup is needed
            self._end = self._updates + 1
        else:
            self._mark = (self._updates, self._factor)
            self._rate_share.before_step(self._parameters)

    def _climb(self, closure: Callable[[], Tensor]) -> None:
        share = self._rate_share.measure(self._parameters, self._ranks_of(closure))
        self._watch_gradients()
        if share is None:
            if not self._rate_share.kept:
                self._rate_share.before_step(self._parameters)
            return
        self._grow(self._forgetting / num_averages(self.optimizer) * max(0.0, 1 - share / _ENOUGH))
        if share >= _ENOUGH or self._factor == 1.0:
            self._start_to_creep()
        else:
            self._rate_share.before_step(self._parameters)

    def _start_to_creep(self) -> None:
        self._climbing = False
        self._set_factor(self._factor)  # it grows from here on, also where it has stood
        self._rate_share = RateShare()
        self._mark = (self._updates, self._factor)
        self._take_reference()

    def _creep(self, closure: Callable[[], Tensor], value: float | None) -> None:
        is_due = self._updates >= self._next_look or self._guard.spikes
        steps_back = is_due and self._look(closure, value)
        speed = min(_FASTEST_CREEP, _POWER / (self._updates + 1))
        self._grow(speed * self._trend.value)
        if steps_back:
            self._step_back()

    def _look(self, closure: Callable[[], Tensor], value: float | None) -> bool:
        """Measure how the loss on this fresh batch has changed since the last look; return whether to step back."""
        given = value is not None and self._loss_is_exact
        if self._affordable(max(self._updates, self.num_steps or _SHORTEST_RUN)) < (1 if given else 2):
            self._trend.value = min(self._trend.value, 0.0)  # no growth unseen
            return False
        here = value if given and value is not None else self._closure_loss(closure)
        if not math.isfinite(here):
            return False
        self.num_forwards += 1
        with exchanged(self._parameters, self._reference):
            before, _ = closure_loss(closure, self._parameters, finite=False)
        rises = self._trend.add(here, before)
        self._take_reference()
        return rises

    def _step_back(self) -> None:
        """Halve the rate; once the warmup is over, that of the scheduler that follows, which learns of it in `step`."""
        if self.found is None or self._is_lowest:
            self._hold()
            return
        self._num_step_backs += 1
        self._set_factor(STEP_BACK * self._factor)
        if self._end is not None:
            self._written.write([STEP_BACK * rate for rate in rates(self.optimizer)])
        elif self._climbing:
            self._start_to_creep()

    def _hold(self) -> None:
        """End where the rate cannot be why the loss rises; before the first measurement there is nothing to hold."""
        if self._end is not None or self.found is None:
            return
        warn(
            f"EdgeWarmup holds the rate at {self._factor * float(self.base_lrs[0]):.3g}: the loss rises, or is not "
            "finite, although the rate has been halved again and again, so that something else raises the loss."
        )
        self._finish()

    def _take_reference(self) -> None:
        if self._reference:
            for kept, parameter in zip(self._reference, self._parameters, strict=True):
                kept.copy_(parameter.detach())
        else:
            self._reference = [p.detach().clone() for p in self._parameters]
        self._next_look = self._updates + math.ceil(_SPACING * (self._updates + 1))

    def _grow(self, speed: float) -> None:
        """Let the rate grow exponentially over the updates since it was last set."""
        since, factor = self._rates[-1]
        if self._guard.share < 1:  # the rate is not the one that was measured
            speed = min(0.0, speed)
        self._set_factor(min(1.0, factor * math.exp(speed * (self._updates - since))))

    def _settle(self) -> None:
        """See whether the rate still grows: if not, stop climbing, or finish."""
        since, factor = self._mark
        arrives = self._factor == 1.0 > factor
        if arrives or not 1 / _SETTLED_CHANGE <= self._factor / factor <= _SETTLED_CHANGE:
            since = self._updates
            self._mark = (since, self._factor)
        has_settled = self._updates >= max(_SETTLED_TIME * since, since + _SHORTEST_HOLD)
        if self.num_steps is not None and self._updates >= self.num_steps // 2:
            self._finish()
        elif has_settled and self._climbing:
            self._start_to_creep()
        elif has_settled:
            self._finish()

    def _finish(self) -> None:
        self._end = self._updates + 1
        self._give_up_copies()

    def _give_up_copies(self) -> None:
        self._reference = []
        self._rate_share = RateShare()

    def _fall_back(self, reason: str, *, start: float | None = None) -> None:
        super()._fall_back(reason, start=start)
        self._give_up_copies()

    def _before_update(self) -> None:
        self._step_share.release()
        super()._before_update()
        self._step_share.take()

    def _after_update(self) -> None:
        super()._after_update()
        self._step_share.spend()
        self._rate_share.after_step(self._parameters)

    def _before_saving(self) -> None:
        if not steps_running(self.optimizer):
            self._step_share.release()  # of a step that raised

    def _adopt_groups(self) -> bool:
        are_new = super()._adopt_groups()
        if are_new:
            self._rate_share.kept, self._rate_share.moved = [], False
            if self._reference:
                self._reference += [p.detach().clone() for p in self._parameters[len(self._reference) :]]
        return are_new

    @property
    def _forgetting(self) -> float:
        """1 − β, the share of an update that momentum has forgotten by the next one; at most the fastest climb."""
        return min(_FASTEST_CLIMB, 1 - momentum(self.optimizer))

    @property
    def _is_watched(self) -> bool:
        """Whether a rise of the loss is still the warmup's concern."""
        length = max(self._end or 0, _SHORTEST_HOLD)
        return self._linear is None and (self._end is None or self._updates < _WATCHED * length)

    @property
    def _unmeasured(self) -> bool:
        return self.found is None and self._end is None and self._updates > self._waits_until

    def _settings(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps}

    def _progress(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _PROGRESS}
        rate_share = vars(self._rate_share) | {"kept": [p.clone() for p in self._rate_share.kept]}
        return (
            super()._progress()
            | own
            | {
                "found": as_plain(self.found),
                "trend": dict(vars(self._trend)),
                "guard": dict(vars(self._guard)),
                "alarm": dict(vars(self._alarm)),
                "rate_share": rate_share,  # and copies of the parameters, as checkpoints hold them
                "reference": [p.clone() for p in self._reference],
            }
        )

    def _read(self, saved: Saved) -> dict[str, Any]:
        saved.count_or_none("num_steps")
        share = saved.parts("rate_share", RateShare(), but=("kept",))
        share.kept = Saved(saved["rate_share"], "rate_share").tensors("kept", self._parameters, whole=False)
        return super()._read(saved) | {
            "_climbing": saved.flag("_climbing"),
            "_mark": saved.step("_mark"),
            "_next_look": saved.count("_next_look"),
            "_loss_is_exact": saved.flag("_loss_is_exact"),
            "found": saved.result("found", BestStepResult),
            "_trend": saved.parts("trend", LossTrend()),
            "_guard": saved.parts("guard", SpikeGuard()),
            "_alarm": saved.parts("alarm", RiseAlarm()),
            "_rate_share": share,
            "_reference": saved.tensors("reference", self._parameters, whole=True),
            "_step_share": StepShare(self.optimizer),
        }


def _fallback_length(optimizer: Optimizer, num_steps: int | None) -> int:
    """Return a tenth of the run; where that is not known, 2/(1 − β₂), or the patience where there is no β₂."""
    if num_steps is not None:
        return max(1, num_steps // 10)
    decays = [float(group["betas"][1]) for group in optimizer.param_groups if len(group.get("betas", ())) > 1]
    return round(2 / (1 - max(decays))) if decays and max(decays) < 1 else _PATIENCE
