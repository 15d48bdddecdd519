"""What the losses of a run say: whether they fall, stand out, rise for good, or are finite."""

import math
from typing import ClassVar

from edgewise.signals.signal import Signal, average

_CHANGES_KEPT = 0.7  # share that a moving average of the changes keeps, from one look to the next
_SCALE_KEPT = 0.85  # the same of what losses vary by
_MOST_CHANGES = 1 / (1 - _CHANGES_KEPT)  # average changes that a fall from infinity counts as
_LOSSES_KEPT = 0.9  # share that the moving average of the losses keeps, from one update to the next
_FEWEST_LOSSES = 20  # before which no deviation is known well enough to judge by
_LEAST_DEVIATION = 0.01  # of the mean over all losses so far: a loss without noise may ripple
_SPIKE = 6.0  # deviations above the average, beyond which a loss is a spike
_MEMORY = 1 / 8  # of the losses so far, that the level of the loss is the average of
_LEVEL_MEMORY = 10.0  # losses at least, for the level
_OVERFLOWS = 3  # losses in a row that are not finite
_FORGETTING = 0.5  # over the losses so far: how fast the lowest level follows the level up
_DRIFT = 1.5  # deviations above the lowest level, that chance explains
_RISE = 15.0  # what losses above that have to add up to


class LossTrend(Signal):
    """s ∈ [−1, 1], whether the loss of fresh batches falls: 1 at every look, 0 as often up as down, −1 at none.

        s = −Σδ / Σ|δ|,  δ = ΔL/U,  ΔL = L_B(θ_t) − L_B(θ_{t−k})

    over moving averages of looks. Both losses are of one batch B that none of the k updates has seen, so that how hard
    the batch is cancels. U is a moving average too, of |ΔL| and of the difference between two batches at the same
    parameters: what losses vary by shrinks along a run as they do, whatever constant is added to them.
    """

    _passing: ClassVar = ("rises",)

    def __init__(self) -> None:
        self.sum = self.size = 0.0  # moving averages of δ and |δ|
        self.scale = 0.0  # U
        self.value = 1.0  # s
        self.last: float | None = None  # loss, at the last look
        self.lowest = self.highest = 0.0  # of the losses seen so far
        self.rises = False  # whether the last look found a rise by more than all of them lie apart

    def begin(self, loss: float) -> None:
        """Take in the loss at the start."""
        self.lowest = self.highest = loss

    def hold(self) -> None:
        """Let no growth follow until the next look."""
        self.value = min(self.value, 0.0)

    def add(self, here: float, before: float) -> None:
        """Take in the loss at the current parameters, finite, and at the earlier ones."""
        if not math.isfinite(before):
            change, self.rises = -math.inf, False
        else:
            change = here - before
            self._see(before)
            self.rises = change > self.highest - self.lowest
        self._see(here)
        if change > -math.inf:
            varied = abs(change) + (0.0 if self.last is None else abs(before - self.last))
            self.scale = average(self.scale, varied, _SCALE_KEPT) if self.scale > 0 else varied
        self.last = here
        share = max(-_MOST_CHANGES, change / self.scale) if self.scale > 0 else 0.0
        self.sum = average(self.sum, share, _CHANGES_KEPT)
        self.size = average(self.size, abs(share), _CHANGES_KEPT)
        self.value = -self.sum / self.size if self.size > 0 else 0.0

    def _see(self, loss: float) -> None:
        self.lowest, self.highest = min(self.lowest, loss), max(self.highest, loss)


class SpikeGuard(Signal):
    """Share c of the rate that an update may take: below 1 where the loss of its batch is far above the average.

        c ← min(1, c·exp(ρ)),  and where L − L̄ > 6D:  c ← min(c, 6D/(L − L̄))

    L̄ and D are moving averages of L and |L − L̄|, to which no loss adds more than 6D. One batch whose loss stands out
    has a gradient that can undo a training in a single update. It takes a short step instead, and so do those after
    it, until momentum has forgotten it: with ρ = 1 − β the rate grows back as fast as that gradient decays.

    In units of D, how noisy the batches are, on what scale the loss is and what was added to it do not matter: six of
    them are 4.8 standard deviations of a normal distribution. D counts as a hundredth of its mean over all losses so
    far at least, as on full batches there is no noise. Of the first 20 losses none counts.
    """

    def __init__(self) -> None:
        self.num_losses = 0
        self.mean = 0.0
        self.deviation = self.mean_deviation = 0.0  # of late, and over all losses
        self.share = 1.0
        self.spikes = False  # whether the last loss stood out
        self.num_spikes = 0

    @property
    def value(self) -> float:
        """The share c."""
        return self.share

    def add(self, loss: float, *, recovery: float) -> None:
        """Take in the loss of the coming update, finite; `recovery` is ρ."""
        if self.num_losses == 0:
            self.mean = loss
        self.share = min(1.0, self.share * math.exp(recovery))
        excess = loss - self.mean
        most = _SPIKE * _noise(self.deviation, self.mean_deviation)
        self.spikes = self.num_losses >= _FEWEST_LOSSES and excess > most > 0
        if self.spikes:
            self.share = min(self.share, most / excess)
            excess = most
            self.num_spikes += 1
        self.mean += (1 - _LOSSES_KEPT) * excess
        self.deviation += (abs(excess) - self.deviation) / max(1, min(self.num_losses, _FEWEST_LOSSES))
        self.mean_deviation += (abs(excess) - self.mean_deviation) / max(1, self.num_losses)
        self.num_losses += 1


class RiseAlarm(Signal):
    """Whether the loss has risen for good: a cumulative sum of by how much losses exceed the lowest level so far.

        C ← max(0, C + min(6, (L − lowest)/noise) − 1.5),  and where C > 15 it rings;  C = 0 at a new lowest

    Level and noise are moving averages of L and |L − level| over the last eighth of the losses, and over 10 and 20 at
    least. `lowest` and `noise` are the least of them, but follow them up, half of the way while the losses become four
    times as many: of ever more averages some are ever lower, by chance. A rise by three deviations rings after ten
    losses, one by six or more after four. After that the level is where it has risen to. Of the first 20 losses none
    counts. Noise counts as a hundredth of its mean over all losses so far at least.

    Reference: Page, "Continuous inspection schemes", Biometrika 41, 1954: of tests that give as few false alarms
    this one is the soonest to ring.
    """

    def __init__(self) -> None:
        self.num_losses = 0
        self.level = 0.0
        self.deviation = self.mean_deviation = 0.0  # of late, and over all losses
        self.lowest = self.noise = math.inf
        self.sum = 0.0
        self.rings = False

    @property
    def value(self) -> bool:
        """Whether it rings."""
        return self.rings

    def add(self, loss: float) -> None:
        """Take in a loss, finite."""
        if self.num_losses == 0 or self.rings:
            self.level = loss
        num, memory = self.num_losses, _MEMORY * self.num_losses
        change = loss - self.level
        if num >= _FEWEST_LOSSES:
            change = min(change, _SPIKE * _noise(self.deviation, self.mean_deviation))
        self.level += change / max(_LEVEL_MEMORY, memory)
        self.deviation += (abs(change) - self.deviation) / max(1, memory, min(num, _FEWEST_LOSSES))
        self.mean_deviation += (abs(change) - self.mean_deviation) / max(1, num)
        self.num_losses += 1
        self.rings = self.num_losses > _FEWEST_LOSSES and self._exceeds(loss)

    def _exceeds(self, loss: float) -> bool:
        noise = _noise(self.deviation, self.mean_deviation)
        if self.rings or self.level <= self.lowest:
            self.lowest, self.noise, self.sum = self.level, noise, 0.0
        self.lowest += (self.level - self.lowest) * _FORGETTING / self.num_losses
        self.noise = min(noise, self.noise + (noise - self.noise) * _FORGETTING / self.num_losses)
        if self.noise > 0:
            excess = min(_SPIKE, (loss - self.lowest) / self.noise)
            self.sum = max(0.0, self.sum + excess - _DRIFT)
        return self.sum > _RISE


class Overflows(Signal):
    """Whether losses that are not finite are an event: three in a row are, or one on which an update was made.

    A single one is none, as a `GradScaler`, or the training loop, skips its update.
    """

    _passing: ClassVar = ("value",)

    def __init__(self) -> None:
        self.num = 0  # in a row, since the last event
        self.update = -1  # the coming one, if the last loss was not finite
        self.value = False  # whether the last loss is an event

    def add(self, loss: float, update: int) -> None:
        """Take in the loss of the coming update, by its number."""
        finite = math.isfinite(loss)
        self.num = 0 if finite else self.num + 1
        self.value = self.num == _OVERFLOWS or (0 <= self.update < update)
        if self.value:
            self.num = 0
        self.update = -1 if finite else update


def _noise(deviation: float, mean_deviation: float) -> float:
    """Return a mean deviation of late, at least a hundredth of that over all losses."""
    return max(deviation, _LEAST_DEVIATION * mean_deviation)
