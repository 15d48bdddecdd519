"""The precision of a measurement: which one, a model's copy in it, and no autocast."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.isolation.threads import Override
from edgewise.torch_internals import own_buffers, own_parameters


def measuring_dtype(model: nn.Module, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the precision to measure a model in: `dtype`, or the widest of its parameters' and float32.

    Raises:
        ValueError: `dtype` is neither float32 nor float64.

    Examples:
        >>> measuring_dtype(nn.Linear(2, 1).bfloat16())
        torch.float32
    """
    if dtype is None:
        wide = [p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 2]
        return reduce(torch.promote_types, wide, torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"dtype must be torch.float32, torch.float64 or None, got {dtype!r}: half precision resolves no second "
            "derivatives; the model may be of any precision, it is cast for the measurement."
        )
    return dtype


def rounding_of_products(dtype: torch.dtype, device: torch.device) -> float:
    """Return what rounding may make of a product with a matrix, relative: √ε, far above what it does make of one.

    It is more where float32 is allowed to be multiplied in less: TF32, or the halves of bfloat16.

    >>> rounding_of_products(torch.float64, torch.device("cpu")) == 2.0**-26
    True
    """
    precision = torch.get_float32_matmul_precision()
    if dtype is torch.float32 and precision == "medium":
        return 2.0**-4
    if dtype is torch.float32 and (
        precision == "high" or (device.type == "cuda" and torch.backends.cudnn.allow_tf32)
    ):
        return 2.0**-6
    return torch.finfo(dtype).eps ** 0.5


class CastCopy:
    """A model's parameters and buffers in another precision, which its modules hold for a while instead of their own.

    Tied parameters stay tied, frozen ones frozen; integer tensors are shared. The model's own tensors are only read.

    >>> model = nn.Linear(2, 1).bfloat16()
    >>> with CastCopy(model, torch.float32).held():
    ...     model.weight.dtype
    torch.float32
    >>> model.weight.dtype
    torch.bfloat16
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held = False
        self._modules = [
            (module, own_parameters(module).copy(), own_buffers(module).copy()) for module in model.modules()
        ]
        self._parameters: dict[Tensor, nn.Parameter] = {
            p: nn.Parameter(p.detach().to(dtype, copy=True), requires_grad=p.requires_grad)
            for p in model.parameters()
            if p.is_floating_point()
        }

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the copy of a parameter of the model; an integer one is its own."""
        return self._parameters.get(parameter, parameter)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the modules hold the copies."""
        before = [
            (own_parameters(module).copy(), own_buffers(module).copy()) for module, _, _ in self._modules
        ]
        held, self._held = self._held, True
        try:
            self.refresh()
            yield
        finally:
            self._held = held
            for (module, _, _), (parameters, buffers) in zip(self._modules, before, strict=True):
                own_parameters(module).update(parameters)
                own_buffers(module).clear()  # a forward may have registered a new one
                own_buffers(module).update(buffers)

    def refresh(self) -> None:
        """Return the copies to the model's values; modules that hold them get fresh copies of its buffers too."""
        for parameter, copied in self._parameters.items():
            copied.data.copy_(parameter.detach())
            copied.grad = None
        if not self._held:
            return
        cast: dict[Tensor | None, Tensor | None] = {None: None}  # a buffer may be held twice
        for module, parameters, buffers in self._modules:
            copies = {name: p if p is None else self.of(p) for name, p in parameters.items()}
            own_parameters(module).update(copies)
            for buffer in buffers.values():
                if buffer is not None and buffer not in cast:
                    dtype = self._dtype if buffer.is_floating_point() else buffer.dtype
                    cast[buffer] = buffer.detach().to(dtype, copy=True)
            own_buffers(module).update({name: cast[buffer] for name, buffer in buffers.items()})


_ENTER = Override(torch.autocast, "__enter__")


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the precision of the tensors: autocast is off, also where code inside switches it on.

    A loss or a forward that enters autocast itself, by `with`, as a decorator or by torch.cuda.amp's subclass, does so
    through `torch.autocast.__enter__`. Torch has no switch above it; so that method leaves autocast off for the while,
    in this thread. `__exit__` returns to the state before, which is off as well. Networks that torch.compile has
    compiled keep the autocast that they enter inside.
    """
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu"} if accelerator is None else {"cpu", accelerator.type}

    def enter_switched_off(original: Any, autocast: Any) -> Any:
        entered = original(autocast)
        torch.set_autocast_enabled(autocast.device, False)
        return entered

    with ExitStack() as stack:
        for kind in kinds:
            stack.callback(torch.set_autocast_enabled, kind, torch.is_autocast_enabled(kind))
            torch.set_autocast_enabled(kind, False)
        stack.enter_context(_ENTER.by(enter_switched_off))
        yield
