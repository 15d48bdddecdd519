"""What the losses of a run say: whether they fall, stand out, rise for good, or are finite."""

import math
from typing import ClassVar

from edgewise.signals.signal import Signal

_GAIN = 3.0  # deviations that the loss must have fallen by, before a rate can be too high for it to fall
_EXACT = 1e-12  # of the variance, that remains at least where losses lie on a line
_LOSSES_KEPT = 0.9  # share that the moving average of the losses keeps, from one update to the next
_FEWEST_LOSSES = 20  # before which no deviation is known well enough to judge by
_LEAST_DEVIATION = 0.01  # of the mean over all losses so far: a loss without noise may ripple
_SPIKE = 6.0  # deviations above the average, beyond which a loss is a spike
_MEMORY = 1 / 8  # of the losses so far, that the level of the loss is the average of
_LEVEL_MEMORY = 10.0  # losses at least, for the level
_FEWEST_BEFORE_SURGE = 5  # losses
_OVERFLOWS = 3  # losses in a row that are not finite
_FORGETTING = 0.5  # over the losses so far: how fast the lowest level follows the level up
_DRIFT = 1.5  # deviations above the lowest level, that chance explains
_RISE = 15.0  # what losses above that have to add up to


class LossTrend(Signal):
    """s ∈ [−1, 1], whether the loss falls: 1 where it does beyond doubt, negative where chance explains it or it rises.

        s = −(z + 1)/2, within [−1, 1],   z = b/σ_b

    b is the slope of the loss over the logarithm of the update, as training slows down like a power of their number. It
    is fitted by least squares to the last eighth of the losses, 10 at least, with weights w that die away. σ_b is its
    standard error, as if they were (Σw)²/Σw² losses of equal weight: of white noise z has a deviation of about 0.7.
    What is added to the losses does not matter. Where the loss has fallen by less than three deviations since the first
    ten, s = −z/2: on a plateau that no rate has left yet, no rate is too high. A loss counts as six deviations above
    the mean at most. Of the first 20 losses s is 0.
    """

    def __init__(self) -> None:
        self.num_losses = 0
        self.first = 0.0  # mean of the first ten
        self.weight = self.weight_squares = 0.0  # sums over the weights of the losses, and of their squares
        self.mean_time = self.mean = 0.0  # so weighted, of log(t + 10) and of the loss; their second moments:
        self.time_variance = self.covariance = self.variance = 0.0

    @property
    def value(self) -> float:
        """The trend s."""
        if self.num_losses < _FEWEST_LOSSES or not 0 < self.variance < math.inf or self.time_variance == 0:
            return 0.0
        doubt = 1.0 if self.first - self.mean > _GAIN * self._deviation else 0.0
        return max(-1.0, min(1.0, -(self._slope_in_errors + doubt) / 2))

    def add(self, loss: float, update: int) -> None:
        """Take in the loss of the coming update, finite."""
        time, change = math.log(update + _LEVEL_MEMORY), loss - self.mean
        if self.num_losses >= _FEWEST_LOSSES and self.variance > 0:
            change = min(change, _SPIKE * self._deviation)
        if self.num_losses < _LEVEL_MEMORY:
            self.first += (loss - self.first) / (self.num_losses + 1)
        self.num_losses += 1
        kept = 1 - 1 / max(_LEVEL_MEMORY, _MEMORY * self.num_losses)
        self.weight = kept * self.weight + 1
        self.weight_squares = kept**2 * self.weight_squares + 1
        share, passed = 1 / self.weight, time - self.mean_time
        self.mean_time += share * passed
        self.mean += share * change
        self.time_variance = (1 - share) * (self.time_variance + share * passed**2)
        self.covariance = (1 - share) * (self.covariance + share * passed * change)
        self.variance = (1 - share) * (self.variance + share * change * change)

    @property
    def _slope_in_errors(self) -> float:
        """z, the slope in units of its standard error."""
        slope = self.covariance / self.time_variance
        residual = max(self.variance - slope * self.covariance, _EXACT * self.variance)
        num = self.weight**2 / self.weight_squares  # of losses of equal weight that say as much
        return slope / math.sqrt(residual / self.time_variance / (num - 2))

    @property
    def _deviation(self) -> float:
        """Standard deviation of a loss."""
        return math.sqrt(self.variance / (1 - self.weight_squares / self.weight**2))


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

    def restart(self) -> None:
        """Take the level for the next loss: that it has risen is known."""
        self.rings = True

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


class Surge(Signal):
    """Whether two losses in a row are further above all before them than those lie apart, of which there are five.

    An instability grows so, at any noise; one batch that stands out does not. It is for the first 20 losses, of which
    the noise is not known yet. What rises later is for the alarm: of ever more losses ever more surge by chance.
    """

    _passing: ClassVar = ("value",)

    def __init__(self) -> None:
        self.num_losses = 0
        self.lowest, self.highest = math.inf, -math.inf  # of all but a last one that is so far above
        self.above: float | None = None  # that one
        self.value = False

    def add(self, loss: float) -> None:
        """Take in a loss, finite."""
        is_early = _FEWEST_BEFORE_SURGE <= self.num_losses < _FEWEST_LOSSES
        is_above = is_early and loss > 2 * self.highest - self.lowest > self.highest
        self.value = is_above and self.above is not None
        self.num_losses += 1
        waits = is_above and not self.value  # for a second one
        before = [each for each in (self.above, None if waits else loss) if each is not None]
        self.lowest, self.highest = min([self.lowest, *before]), max([self.highest, *before])
        self.above = loss if waits else None


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
