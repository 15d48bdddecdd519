"""The creep of a warmup at the edge: by what the losses of the run say, at no forward."""

_FASTEST = 0.1  # log-growth of the rate an update
_POWER = 2.0  # p: while the loss falls beyond doubt, the rate grows like tᵖ


def creep_growth(trend: float, update: int) -> float:
    """Return the log-growth of the rate an update, near the edge: 2s/t, s the trend of the loss.

    >>> creep_growth(1.0, 99), creep_growth(-0.5, 99), creep_growth(1.0, 3)
    (0.02, -0.01, 0.1)
    """
    return min(_FASTEST, _POWER / (update + 1)) * trend
