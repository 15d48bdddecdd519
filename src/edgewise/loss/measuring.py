"""What of a model is measured, and how: the options that all measurements of curvature share."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Of which parameters, in which precision, within which memory; `Evaluation` checks it against the model.

    >>> Measuring(dtype=torch.float64).max_graph_bytes is None
    True
    """

    params: str | Iterable[str] | None = None
    """Shell-style name patterns of the parameters θ; `None` means all that require a gradient."""

    dtype: torch.dtype | None = None
    """The precision to measure in; `None` for what `measuring_dtype` says of the model."""

    max_graph_bytes: int | None = None
    """What the kept graphs may hold, see `GraphBudget`; `None` keeps the graph of a single batch."""


ALL = Measuring()  # parameters, in their own precision
