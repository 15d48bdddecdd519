"""The random numbers drawn after a measurement are those that would have been drawn without it.

Ladder: closed form (the same draws again, from each generator). Cannot see: CUDA devices, and
NumPy's generators other than the global one.
"""

import random

import numpy as np
import pytest
import torch

from edgewise.isolation.random_states import RandomStates

OWN = torch.Generator()
DRAWS = {
    "python": random.random,
    "numpy": np.random.rand,
    "torch": lambda: torch.rand(1).item(),
    "own generator": lambda: torch.rand(1, generator=OWN).item(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_numbers_are_drawn_again(name):
    draw, states = DRAWS[name], RandomStates([OWN])
    first = [draw() for _ in range(3)]
    states.restore()
    again = [draw() for _ in range(3)]
    assert again == first
    states.restore()  # as often as one likes
    assert draw() == first[0]


def test_a_generator_that_was_not_given_goes_on():
    states = RandomStates()
    first = torch.rand(1, generator=OWN)
    states.restore()
    assert not torch.equal(torch.rand(1, generator=OWN), first)
