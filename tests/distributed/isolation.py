"""Training on both ranks, with measurements in between and without."""

import torch
from torch.distributed.tensor import DTensor

import edgewise as ew
from cases import mse
from distributed.setups import adamw, build_ddp, build_fsdp, error_of
from edgewise.critical import Searching, search_critical_lr
from oracles import bits


def ddp(rank: int) -> dict:
    return trained(build_ddp, rank)


def fsdp(rank: int) -> dict:
    return trained(build_fsdp, rank) | hooks_called(rank)


def trained(build, rank: int) -> dict:
    found = {}
    for name, measure in (("measured", measure_all), ("unmeasured", nothing)):
        _, model, mine = build(rank)
        found[name] = trained_state(model, adamw(model), mine[0], measure)
    return found


def hooks_called(rank: int) -> dict:
    """How often a sharded parameter's hooks are called in a measurement, and by the training after it."""
    _, model, mine = build_fsdp(rank)
    seen = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(seen.append)
    ew.sharpness(model, mse, mine)
    silent = len(seen)
    mse(model, mine[0]).backward()
    return {"hooks in a measurement": silent, "hooks in training": len(seen)}


def trained_state(model, optimizer, batch, measure) -> list[bytes]:
    """The bits after five steps, with a measurement before the second and the fourth update."""
    for step in range(5):
        optimizer.zero_grad()
        mse(model, batch).backward()
        if step % 2:
            measure(model, optimizer, batch)
        optimizer.step()
    tensors = [*model.parameters(), *(v for s in optimizer.state.values() for v in s.values())]
    return [bits(t.to_local() if isinstance(t, DTensor) else t) for t in tensors]


def measure_all(model, optimizer, batch):
    ew.sharpness(model, mse, [batch], max_hvps=4)
    ew.preconditioned_sharpness(model, mse, [batch], optimizer, max_hvps=4)
    ew.critical_lr(model, optimizer, mse, batch)
    ew.critical_lr(model, optimizer, mse, batch, gradient="current")
    search_critical_lr(optimizer, lambda: mse(model, batch), Searching())
    error_of(ew.sharpness, model, lambda m, b: mse(m, b) * torch.nan, [batch])


def nothing(model, optimizer, batch):
    pass
