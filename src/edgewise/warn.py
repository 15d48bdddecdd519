"""Warnings at the line of the user's own code."""

import sys
import warnings

_NOT_THE_USERS = ("edgewise", "torch", "contextlib")


def warn(message: str) -> None:
    """Warn where edgewise, or the torch that called it, was called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _root(frame.f_globals.get("__name__", "")) in _NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _root(module: str) -> str:
    return module.partition(".")[0]
