"""Warmup at the edge: the rate grows while the loss of fresh batches falls, from the scale of the first update."""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.critical import BestStepResult, check_steps_alone, closure_loss, search_best_step
from edgewise.errors import Status, positive_count
from edgewise.isolation import exchanged
from edgewise.warmup.report import WarmupReport
from edgewise.warmup.scheduler import Warmup, as_plain, from_plain
from edgewise.warmup.schedules import linear_from, steps_to_target

# One set for every optimizer; docs/warmups.md has what each does at its extremes.
_START = 1 / 4  # of the rate at which the first update lowers the loss most
_GROWTH = 0.05  # ρ: log-growth of the rate an update, while every look finds that the loss has fallen
_SMOOTHING = 0.8  # of the changes of the loss, from one look to the next
_SPACING = 1 / 6  # of the updates so far: how many lie between two looks
_MOST_RISE = 1 / 2  # of the loss, over the first loss: more is taken for instability
_STEP_BACK = 0.5  # factor on the rate when it is
_MEMORY = 0.9  # of the average of the losses given, above which a single one is alarming
_PATIENCE = 200  # updates without a new highest rate, after which it is held
_SHORTEST_RUN = 400  # updates that a run is taken to have at least, in the budget of forwards
_MOST_FIRST_FORWARDS = 20  # of the search for the start
_SAME_LOSS = 2.0**-20  # relative difference up to which the closure's loss is the one given
_PROGRESS = (
    "_rates",
    "_linear",
    "_sum",
    "_size",
    "_signal",
    "_mean_loss",
    "_num_step_backs",
    "_highest",
    "_next_look",
    "_highest_since",
    "_reached",
    "_end",
    "_loss_is_exact",
)


class EdgeWarmup(Warmup):
    """Raise the learning rate for as long as that helps on batches not yet trained on: no length, nothing to set.

        η_{t+1} = min(η_trgt, η_t·exp(ρ·s_t)),  s = −EMA(ΔL)/EMA(|ΔL|) ∈ [−1, 1]

    with ΔL = L_B(θ_t) − L_B(θ_{t−k}) the change of the loss over the last k updates, on the batch B of the coming
    update, which none of them has trained on. So s is 1 while the loss of fresh data falls steadily, and the rate grows
    by ρ = 5 % an update; it is 0 where noise and instability eat up the progress, and the rate stays; it is negative
    where the loss rises, and the rate goes down. Both losses are of one batch: how hard that is cancels.

    - *Start:* a quarter of the rate η* at which the first update lowers the loss most, found by about four forwards;
      times 1 − β under heavy-ball momentum β, whose first update shows that share of what it will be; never above
      the target. η_c of the first update is no such scale: for Adam it is ten times as large.
    - *Looks* cost one forward each (two where `loss` is not given, or is not what the closure returns: autocast,
      dropout) and a copy of the parameters, until the warmup is over. They are a sixth of the updates so far apart,
      k = ⌈t/6⌉, so that their number grows like log t. Where `max_overhead` does not allow one, the rate does not rise.
    - *Instability:* where a look finds the loss risen by more than half of the first loss, the rate is halved, and
      falls on until looks see the loss fall. A given loss so far above its average, known for free, calls for a look.
    - *End:* at the target for as many updates as it took to get there, or without a new highest rate for 200
      updates: `status` says whether it is AT_TARGET or HELD_BELOW_TARGET, and `lr_held` at which rate. What
      follows by `then` starts from there, scaled to the rate that was found.
    - *Fallback:* where nothing can be measured, it is linear warmup, once, with a warning that names the reason: over a
      tenth of `num_steps`; if that is not known, over 2/(1 − β₂) updates or, without a β₂, 200.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        num_steps: length of the run, if it is known: the rate is then held after half of it, if that is less than 200,
            and looks are paid from the whole run.
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
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> warmup = EdgeWarmup(optimizer)
        >>> loss_fn = lambda: model.weight.square().square().sum()  # falls most near 0.25
        >>> for _ in range(140):
        ...     optimizer.zero_grad()
        ...     loss = loss_fn()
        ...     loss.backward()
        ...     warmup.observe(loss_fn, loss=loss)
        ...     optimizer.step()
        ...     warmup.step()
        >>> round(warmup.report().lr_start, 3), warmup.status.name, optimizer.param_groups[0]["lr"]
        (0.026, 'AT_TARGET', 0.5)

    Reference: the parameter-free warmup that arXiv 2406.09405 leaves as future work.
    """

    def __init__(
        self, optimizer: Optimizer, *, num_steps: int | None = None, max_overhead: float | None = 0.03
    ) -> None:
        check_steps_alone(optimizer)
        self.num_steps = None if num_steps is None else positive_count("num_steps", num_steps)
        self.found: BestStepResult | None = None
        self._rates: list[tuple[int, float]] = [(0, 1 / _fallback_length(optimizer, num_steps))]
        self._linear: tuple[int, float] | None = None  # (first update, factor) of what it falls back to
        self._reference: list[Tensor] = []  # the parameters at the last look
        self._sum = self._size = 0.0  # EMA of ΔL and of |ΔL|
        self._signal = 1.0  # s
        self._highest = 0.0  # factor
        self._mean_loss: float | None = None  # moving average of the losses given
        self._num_step_backs = 0
        self._next_look = 0
        self._highest_since = 0
        self._reached: int | None = None  # since when the rate has been at its target
        self._loss_is_exact = False
        super().__init__(optimizer, max_overhead=max_overhead)

    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""
        if self._linear is not None and update >= self._linear[0]:
            since, start = self._linear
            return linear_from(update - since, warmup_steps=self._fallback_length, start=start)
        return self._rates[max(0, bisect_right(self._rates, (update, math.inf)) - 1)][1]

    def observe(self, closure: Callable[[], Tensor], *, loss: Tensor | float | None = None) -> None:
        """Find the start at the first update; then let the rate grow, and look at the loss where it is due.

        Call it between `loss.backward()` and `optimizer.step()`, after unscaling and clipping, at every update. Where
        several ranks train the model, they must all call it.

        Args:
            closure: returns the loss on the batch of the current gradients, without calling backward.
            loss: the value that was just computed for `backward()`: saves a forward at each look.

        Raises:
            ValueError: no parameter has a gradient.
            LossError: the closure does not return a finite scalar tensor, or `loss` is not a number.
        """
        if self._end is not None:
            return
        value = None if loss is None else self._given_loss(closure, loss)
        if value is not None and not math.isfinite(value):
            self._fall_back(f"the loss is {value}")
        elif self.found is None:
            self._begin(closure, value)
        elif self._updates > self._rates[-1][0]:  # a step that was skipped is no progress
            is_due = self._updates >= self._next_look or self._is_alarming(value)
            self._grow(self._look(closure, value) if is_due else 1.0)
        self._remember(value)
        self._apply()

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
        """The first group's rate at which the warmup ended below the target; `None` if it did not."""
        ended_below = self._end is not None and self._linear is None and self._rates[-1][1] < 1.0
        return self._rates[-1][1] * float(self.base_lrs[0]) if ended_below else None

    def report(self) -> WarmupReport:
        """Return what has happened so far."""
        reached = next((update for update, factor in self._rates if factor == 1.0), None)
        if self._linear is not None:
            since, start = self._linear
            reached = since + steps_to_target(warmup_steps=self._fallback_length, start=start)
        return self._report(
            steps_to_target=reached, num_step_backs=self._num_step_backs, lr_held=self.lr_held
        )

    def _begin(self, closure: Callable[[], Tensor], value: float | None) -> None:
        target, share = float(self.base_lrs[0]), _START * _first_share(self.optimizer)
        found = search_best_step(
            self.optimizer, closure, max_lr=target / share, max_forwards=_MOST_FIRST_FORWARDS
        )
        self.num_forwards += found.num_forwards
        self.num_searches += 1
        if not math.isfinite(found.slope):  # the step is about to be skipped
            return
        self.found = found
        if found.lr == 0:
            self._fall_back(f"the first update shows no scale for the rate, {found.status.value}")
            return
        self._loss_is_exact = value is not None and abs(value - found.loss) <= _SAME_LOSS * abs(found.loss)
        self._set_factor(min(1.0, share * found.lr / target))
        if self._rates[-1][1] == 1.0:  # no warmup is needed
            self._end = self._updates + 1
        else:
            self._take_reference()

    def _look(self, closure: Callable[[], Tensor], value: float | None) -> float:
        """Measure how the loss on this fresh batch has changed since the last look; return a factor on the rate."""
        given = value is not None and self._loss_is_exact
        if self._affordable(max(self._updates, self.num_steps or _SHORTEST_RUN)) < (1 if given else 2):
            self._signal = min(self._signal, 0.0)  # no growth unseen
            return _STEP_BACK if self._is_alarming(value) else 1.0
        self.num_forwards += 1 if given else 2
        with exchanged(self._parameters, self._reference):
            before, _ = closure_loss(closure, finite=False)
        here = value if given and value is not None else closure_loss(closure)[0]
        change = here - before if math.isfinite(before) else -abs(here)
        self._take_reference()
        if change > self._most_rise:
            self._num_step_backs += 1
            self._sum = self._size = change  # forget what was seen at lower rates
            self._signal = -1.0
            return _STEP_BACK
        self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * change
        self._size = _SMOOTHING * self._size + (1 - _SMOOTHING) * abs(change)
        self._signal = -self._sum / self._size if self._size > 0 else 0.0
        return 1.0

    def _is_alarming(self, value: float | None) -> bool:
        """Whether a loss, known without a forward, has risen so much that it should be looked into at once."""
        mean = self._mean_loss
        return value is not None and mean is not None and value - mean > self._most_rise

    def _remember(self, value: float | None) -> None:
        if value is not None:
            mean = value if self._mean_loss is None else self._mean_loss
            self._mean_loss = _MEMORY * mean + (1 - _MEMORY) * value

    def _take_reference(self) -> None:
        self._reference = [p.detach().clone() for p in self._parameters]
        self._next_look = self._updates + math.ceil(_SPACING * (self._updates + 1))

    def _grow(self, share: float) -> None:
        """Let the rate grow over the updates since it was last set, times `share`."""
        since, factor = self._rates[-1]
        updates = self._updates - since
        self._set_factor(min(1.0, share * factor * math.exp(_GROWTH * self._signal * updates)))
        at_target = self._rates[-1][1] == 1.0
        if not at_target:
            self._reached = None
        elif self._reached is None:
            self._reached = self._updates
        elif self._updates >= 2 * self._reached:
            self._finish()
        if self._updates - self._highest_since >= self._patience:
            self._finish()

    def _finish(self) -> None:
        self._end = self._updates + 1
        self._reference = []

    def _set_factor(self, factor: float) -> None:
        if factor > self._highest:
            self._highest, self._highest_since = factor, self._updates
        if self._rates[-1][0] == self._updates:
            self._rates.pop()
        self._rates.append((self._updates, factor))

    def _fall_back(self, reason: str) -> None:
        super()._fall_back(reason)
        start = self.factor_at(self._updates)
        self._linear = (self._updates, start)
        self._end = self._updates + steps_to_target(warmup_steps=self._fallback_length, start=start) + 1
        self._reference = []

    @property
    def _most_rise(self) -> float:
        return _MOST_RISE * abs(self.found.loss) if self.found is not None else math.inf

    @property
    def _fallback_length(self) -> int:
        return _fallback_length(self.optimizer, self.num_steps)

    @property
    def _patience(self) -> int:
        return _PATIENCE if self.num_steps is None else max(1, min(_PATIENCE, self.num_steps // 2))

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def _unmeasured(self) -> bool:
        return self.found is None and self._end is None

    def _settings(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps}

    def _progress(self) -> dict[str, Any]:
        progress = {name: getattr(self, name) for name in _PROGRESS}
        reference = [p.clone() for p in self._reference]  # as checkpoints hold it: the next look needs it
        return progress | {
            "found": as_plain(self.found),
            "_rates": list(self._rates),
            "_reference": reference,
        }

    def _restore(self, progress: dict[str, Any]) -> None:
        self.found = from_plain(BestStepResult, progress["found"])
        for name in _PROGRESS:
            setattr(self, name, progress[name])
        self._rates = [(update, factor) for update, factor in self._rates]
        saved = progress["_reference"]
        self._reference = [old.to(p.device) for old, p in zip(saved, self._parameters, strict=bool(saved))]


def _first_share(optimizer: Optimizer) -> float:
    """Return 1 − β, the share of a heavy ball's long update that its first one is; 1 without `momentum`."""
    return 1 - max(float(group.get("momentum") or 0.0) for group in optimizer.param_groups)


def _fallback_length(optimizer: Optimizer, num_steps: int | None) -> int:
    """Return a tenth of the run; where that is not known, 2/(1 − β₂), or the patience where there is no β₂."""
    if num_steps is not None:
        return max(1, num_steps // 10)
    decays = [float(group["betas"][1]) for group in optimizer.param_groups if len(group.get("betas", ())) > 1]
    return round(2 / (1 - max(decays))) if decays and max(decays) < 1 else _PATIENCE
