"""The checks of arguments that every public entry uses: what was given, what is allowed, how to mend it.

A value of the wrong kind is a TypeError, one out of range a ValueError, both before anything is computed.
"""

from edgewise.arguments.training import (
    CURVATURE_ORDER,
    TRAINING_ORDER,
    a_batch,
    a_closure,
    a_function,
    a_loss_function,
    a_loss_value,
    a_model,
    a_module,
    an_optimizer,
    check_restorable,
)
from edgewise.arguments.values import (
    UnknownNameError,
    a_flag,
    a_vector,
    an_instance,
    known_name,
    learning_rate,
    name_patterns,
    nonnegative_count,
    nonnegative_number,
    number_below_one,
    positive_count,
    positive_number,
    positive_share,
)
from edgewise.arguments.words import described

__all__ = [
    "CURVATURE_ORDER",
    "TRAINING_ORDER",
    "a_batch",
    "a_closure",
    "a_function",
    "a_loss_function",
    "a_loss_value",
    "a_model",
    "a_module",
    "an_optimizer",
    "check_restorable",
    "UnknownNameError",
    "a_flag",
    "a_vector",
    "an_instance",
    "known_name",
    "learning_rate",
    "name_patterns",
    "nonnegative_count",
    "nonnegative_number",
    "number_below_one",
    "positive_count",
    "positive_number",
    "positive_share",
    "described",
]
