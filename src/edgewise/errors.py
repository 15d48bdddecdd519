"""The exceptions of the library, and warnings at the line of the user's own code."""

import sys
import warnings

_NOT_THE_USERS = ("edgewise", "torch", "contextlib", "transformers", "trl", "accelerate")


class EdgewiseError(Exception):
    """Base of the exceptions that are edgewise's own."""


class LossError(EdgewiseError, ValueError):
    """The loss function returned something that cannot be measured."""


class UnrepeatableError(LossError):
    """A closure returns another loss when it is called again."""

    def __init__(self, message: str, *, num_forwards: int) -> None:
        super().__init__(message)
        self.num_forwards = num_forwards  # that it took to find out


class SecondDerivativeError(EdgewiseError, RuntimeError):
    """A Hessian-vector product cannot be had by the chosen route, or not precisely enough."""


class ClosedError(EdgewiseError, RuntimeError):
    """An operator is used after its `with` block, when the model may train again."""


class PreconditionerError(EdgewiseError, TypeError):
    """The optimizer's update has no diagonal preconditioner that edgewise can read."""


class SideEffectError(EdgewiseError, AssertionError):
    """Something that training depends on is not what it was before."""


def warn(message: str) -> None:
    """Warn where edgewise, or the torch that called it, was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _root(frame.f_globals.get("__name__", "")) in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _root(module: str) -> str:
    return module.partition(".")[0]
