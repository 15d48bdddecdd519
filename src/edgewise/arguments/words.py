"""What was given, in few words."""

import reprlib
from types import FunctionType

from torch import Tensor, nn
from torch.optim import Optimizer


def described(value: object) -> str:
    """Return a value and its type, in few words."""
    kind = type(value).__name__
    one = f"an {kind}" if kind[0] in "AEIOUaeiou" else f"a {kind}"
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    if isinstance(value, nn.Module | Optimizer):
        return one
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    words = reprlib.repr(value)
    return one if words.startswith("<") else f"{words} of type {kind}"
