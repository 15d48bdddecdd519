"""The random numbers that are drawn again after a measurement."""

import random
from collections.abc import Iterable

import numpy as np
import torch


class RandomStates:
    """The states of the generators of Python, NumPy and torch, on the CPU and on every CUDA device in use.

    Args:
        generators: further ones of torch's.
    """

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self._generators = [(generator, generator.get_state()) for generator in generators]
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the global state is what user code draws from
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Return all of them to the states they had when this was made."""
        for generator, state in self._generators:
            generator.set_state(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
