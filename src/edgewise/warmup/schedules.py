"""Warmup as pure functions: number of the update, from 0 → factor on the target learning rate. No torch."""

import math


def linear(update: int, *, warmup_steps: int, init: float = 0.0) -> float:
    """Return init + (1 − init)·min(1, (update + 1)/warmup_steps).

    The first update already moves: at `init` 0 it runs at 1/warmup_steps of the target, and `warmup_steps` 1
    is a constant rate (Kalra & Barkeshli 2024, whose t counts updates from 1).

    >>> [linear(update, warmup_steps=4) for update in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return init + (1 - init) * min(1.0, (update + 1) / warmup_steps)


def linear_from(update: int, *, warmup_steps: int, start: float) -> float:
    """Return min(1, start + update/warmup_steps): the slope of plain warmup, from a higher start.

    The first update runs at `start`; the target is reached after `steps_to_target` updates instead of
    `warmup_steps` (Kalra & Barkeshli 2024, section 5: T_reach = T_wrm(1 − η_c/η_trgt)).

    >>> [linear_from(update, warmup_steps=4, start=0.5) for update in range(4)]
    [0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, start + update / warmup_steps)


def cosine(update: int, *, num_steps: int, final: float) -> float:
    """Return the factor from 1 at update 0 to `final` at update num_steps − 1, and `final` from there on.

    final + (1 − final)(1 + cos(π·update/(num_steps − 1)))/2

    >>> [round(cosine(update, num_steps=3, final=0.1), 2) for update in range(4)]
    [1.0, 0.55, 0.1, 0.1]
    """
    progress = min(1.0, update / max(1, num_steps - 1))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def linear_decay(update: int, *, warmup_steps: int, num_steps: int) -> float:
    """Return (N − t)/(N − W) of update t ≥ W = `warmup_steps`: 1 at update W, 0 from update N = `num_steps` on.

    >>> [linear_decay(update, warmup_steps=2, num_steps=6) for update in range(2, 8)]
    [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    if update >= num_steps:
        return 0.0
    return (num_steps - update) / (num_steps - warmup_steps)


def cosine_decay(update: int, *, warmup_steps: int, num_steps: int) -> float:
    """Return ½(1 + cos(π(t − W)/(N − W))) of update t ≥ W = `warmup_steps`: 0 from update N = `num_steps` on.

    >>> [round(cosine_decay(update, warmup_steps=2, num_steps=6), 3) for update in range(2, 8)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    if update >= num_steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * ((update - warmup_steps) / (num_steps - warmup_steps))))


def steps_to_target(*, warmup_steps: int, start: float) -> int:
    """Return T_reach = ⌈warmup_steps·(1 − start)⌉: the number of the first update, from 0, at the target.

    >>> steps_to_target(warmup_steps=100, start=0.25)
    75
    """
    return math.ceil(round(warmup_steps * (1 - start), 9))
