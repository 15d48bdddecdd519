"""Critical learning rates on both ranks."""

import edgewise as ew
from cases import mse, train_step
from distributed.setups import adamw, build_ddp, build_fsdp
from edgewise.critical import Searching, search_critical_lr


def ddp(rank: int) -> dict:
    return critical(*build_ddp(rank)[1:])


def fsdp(rank: int) -> dict:
    return critical(*build_fsdp(rank)[1:])


def critical(model, mine) -> dict:
    """Critical rates after three steps: on this rank's batches, and by a closure on its first."""
    optimizer = adamw(model)
    for _ in range(3):
        train_step(model, optimizer, mse, mine[0])
    computed = ew.critical_lr(model, optimizer, mse, batches=mine, rtol=1e-3)
    optimizer.zero_grad()
    mse(model, mine[0]).backward()
    return {
        "computed": computed,
        "closure": search_critical_lr(optimizer, lambda: mse(model, mine[0]), Searching(rtol=1e-3)),
        "current": ew.critical_lr(model, optimizer, mse, mine[0], gradient="current", rtol=1e-3),
    }
