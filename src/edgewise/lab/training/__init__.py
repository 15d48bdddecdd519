"""Train one config and record what happened."""

from edgewise.lab.training.cost import kept_bytes, of_samples, peak_memory, reset_peak_memory
from edgewise.lab.training.loop import (
    GRAPHS_KEPT,
    RunResult,
    batch_indices,
    initial_samples,
    initial_sharpness,
    max_graph_bytes,
    target_rate,
    train,
)
from edgewise.lab.training.losses import (
    Batch,
    LossFunction,
    cross_entropy,
    half_squared_error,
    loss_function,
)
from edgewise.lab.training.optimizers import make_optimizer, make_schedule
from edgewise.lab.training.outcome import Evaluations, evaluate, guess_loss, outcome_of

__all__ = [
    "GRAPHS_KEPT",
    "Batch",
    "Evaluations",
    "LossFunction",
    "RunResult",
    "batch_indices",
    "cross_entropy",
    "evaluate",
    "guess_loss",
    "half_squared_error",
    "initial_samples",
    "initial_sharpness",
    "kept_bytes",
    "loss_function",
    "make_optimizer",
    "make_schedule",
    "max_graph_bytes",
    "of_samples",
    "outcome_of",
    "peak_memory",
    "reset_peak_memory",
    "target_rate",
    "train",
]
