"""Memory: the most that this process held, and what a gradient keeps."""

import contextlib
import resource
import sys
from pathlib import Path

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from edgewise.lab.training.losses import Batch, LossFunction

_OWN = Path("/proc/self")  # Linux; elsewhere the peak is that of the process since it began


def reset_peak_memory() -> None:
    """Forget earlier peaks, where the system can: a process trains one run after the other."""
    with contextlib.suppress(OSError):
        (_OWN / "clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the bytes of memory that the process held at most since then."""
    with contextlib.suppress(OSError, StopIteration):
        lines = (_OWN / "status").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(kilobytes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def kept_bytes(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, parameters left out."""
    kept: dict[int, torch.UntypedStorage] = {}  # held here, so that no place is used twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss_fn(model, batch)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own)


def of_samples(number: int, two: float, four: float) -> float:
    """Return what is a + b·samples, of so many, from that of two and of four.

    >>> of_samples(512, 7.0, 9.0)
    517.0
    """
    return two + (four - two) / 2 * (number - 2)
