"""What a trial saw, as plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Path:
    """`EdgeWarmup` towards a ceiling; rates are those of the first parameter group."""

    rates: tuple[float, ...]
    """Of each update."""
    losses: tuple[float, ...]
    """On the batch of each update, before it."""
    diverged: bool
    """Whether the loss was not finite in the end."""
    num_step_backs: int
    """How often the rate was halved, as the loss rose for good."""
    climbed: bool
    """Whether the first update showed a scale for the rate."""
    fallback: str | None
    """Why nothing could be measured, or `None`."""


@dataclass(frozen=True, kw_only=True)
class ShortRun:
    """A short training run from the path's end: up to a rate, and linearly down to 0."""

    lr: float
    """The highest rate, of the first parameter group."""
    losses: tuple[float, ...]
    """On the batch of each update, before it."""
    final: float
    """The mean loss over a few batches afterwards; infinite where the run ended early, at twice the trial's first."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A path and short runs from one start."""

    lr: float
    """The current rate of the first parameter group."""
    ceiling: float
    """Towards which the path climbs."""
    start: float
    """The mean loss over a few batches at the start."""
    path: Path
    runs: tuple[ShortRun, ...]
    num_updates: int
    num_forwards: int
    """Besides the updates."""
    max_updates: int
    num_passes: int
    """Over the batches; more than one: they ran out."""

    @property
    def cost(self) -> float:
        """What the trial cost, in updates of three forwards."""
        return self.num_updates + self.num_forwards / 3
