"""Runs that observe an UpdateLoss, on micro-batches of each rank's own."""

import contextlib

import torch

import edgewise as ew
from cases import mse
from distributed.setups import build_ddp, build_fsdp, error_of

WARMUPS = {
    "critical": lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=9, lr_init="critical"),
    "catapult": lambda optimizer: ew.CatapultWarmup(optimizer, smoothing=0.5),
    "edge": lambda optimizer: ew.EdgeWarmup(optimizer, max_overhead=None),
}
UPDATES = 10


def inside(model, batch):
    """The loss by the module inside the wrapper, as a framework's own training step may have it."""
    return mse(getattr(model, "module", model), batch)


def ddp(rank: int) -> dict:
    found = {
        (kind, way): trained(*build_ddp(rank)[1:], kind, loss_fn, rank=rank)
        for kind in WARMUPS
        for way, loss_fn in (("wrapped", mse), ("inside", inside))
    }
    _, model, mine = build_ddp(rank)
    return found | {"one rank cannot tell": unexplained(rank, model, mine[0])}


def fsdp(rank: int) -> dict:
    return {
        (kind, "sharded"): trained(*build_fsdp(rank)[1:], kind, mse, rank=rank, every=UPDATES)
        for kind in WARMUPS
    }


def micro_batches(mine, rank: int, update: int) -> list:
    """Two halves of this rank's first batch; once, on rank 1 alone, of other sizes."""
    x, y = mine[0]
    half = 1 if (rank, update) == (1, 4) else len(x) // 2
    return [(x[:half], y[:half]), (x[half:], y[half:])]


def trained(model, mine, kind, loss_fn, *, rank: int, every: int = 4) -> dict:
    """Rates, forwards and the monitor's values of a run that divides by the number of its micro-batches."""
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    warmup = WARMUPS[kind](optimizer)
    rows = []
    monitor = ew.Monitor(model, optimizer, loss_fn, every=every, rtol=1e-5, log=rows.append)
    update_loss = ew.UpdateLoss(model, loss_fn)
    rates = []
    for update in range(UPDATES):
        optimizer.zero_grad()
        parts = micro_batches(mine, rank, update)
        for i, part in enumerate(parts):
            last = i == len(parts) - 1 or not hasattr(model, "no_sync")
            with contextlib.nullcontext() if last else model.no_sync():
                loss = mse(model, part) / len(parts)
                loss.backward()
            update_loss.add(part, loss)
        warmup.observe(update_loss)
        monitor.observe(update_loss)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    return {
        "rates": rates,
        "forwards": warmup.num_forwards,
        "sharpness": [row.sharpness for row in rows],
        "weights": float(sum(p.detach().double().square().sum() for p in model.parameters())),
    }


def alone(model, mine, kind, *, every: int = 4) -> dict:
    """The same run in one process, on the micro-batches of both ranks, whose losses are given as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    warmup, rows = WARMUPS[kind](optimizer), []
    monitor = ew.Monitor(model, optimizer, mse, every=every, rtol=1e-5, log=rows.append)
    update_loss = ew.UpdateLoss(model, mse)
    rates = []
    for update in range(UPDATES):
        optimizer.zero_grad()
        for rank in range(2):
            for part in micro_batches(mine[rank], rank, update):
                loss = mse(model, part) / 4
                loss.backward()
                update_loss.add(part, loss, share=1 / 4)
        warmup.observe(update_loss)
        monitor.observe(update_loss)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    return {"rates": rates, "sharpness": [row.sharpness for row in rows]}


def unexplained(rank: int, model, batch) -> str:
    """What finding shares raises where rank 1 alone has added what nothing explains."""
    update_loss = ew.UpdateLoss(model, mse)
    update_loss.add(batch, mse(model, batch).detach() * (7.0 if rank else 1.0))
    return error_of(update_loss.find_shares)
