"""Warmups whose closures return each rank's own loss."""

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

import edgewise as ew
from cases import BY_NAME, MLP, mse
from distributed.setups import adamw, build_ddp, build_fsdp, error_of, failing, not_a_number
from distributed.two_ranks import NUM
from edgewise import ranks

WITHOUT_LOSS = "edge, loss not given"
WARMUPS = {
    "catapult": lambda optimizer: ew.CatapultWarmup(optimizer, smoothing=0.5),
    "edge": ew.EdgeWarmup,
    WITHOUT_LOSS: ew.EdgeWarmup,
}

FIRST_LOOKS = {
    "critical": lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=9, lr_init="critical"),
    "catapult": ew.CatapultWarmup,
    "edge": ew.EdgeWarmup,
}


def ddp(rank: int) -> dict:
    _, model, mine = build_ddp(rank)
    raised = error_of(observed, model, mine, failing(rank, 2, not_a_number))
    return warmed(*build_ddp(rank)[1:]) | {"not a number on rank 1": raised}


def fsdp(rank: int) -> dict:
    return warmed(*build_fsdp(rank)[1:]) | {"resumed": resumed(*build_fsdp(rank)[1:])}


def resumed(model, mine) -> dict:
    """A run that goes on from the state of rank 0, as a framework that lets one rank save gives it to all."""
    found = {}
    for stop in (3, 30):  # as it climbs, and as it creeps
        run = (model, torch.optim.SGD(model.parameters(), lr=0.5), mine[0])
        warmup = ew.EdgeWarmup(run[1])
        before = steps_of(*run, warmup, stop)
        states = [warmup.state_dict()]
        climbing = warmup._climb.is_on
        dist.broadcast_object_list(states)
        warmup.close()
        again = ew.EdgeWarmup(run[1])
        again.load_state_dict(states[0])
        found[stop] = {
            "climbing": climbing,
            "tensors": [leaf for leaf in tree_leaves(states[0]) if isinstance(leaf, torch.Tensor)],
            "kept": len(again._climb.slopes.kept),
            "rates": before + steps_of(*run, again, 8),
            "fallback": again.fallback,
        }
    return found


def steps_of(model, optimizer, batch, warmup, num) -> list[float]:
    rates = []
    for _ in range(num):
        optimizer.zero_grad()
        loss = mse(model, batch)
        loss.backward()
        warmup.observe(lambda: mse(model, batch), loss=loss.detach())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    return rates


def warmed(model, mine) -> dict[str, list[float]]:
    before = [p.detach().clone() for p in model.parameters()]
    rates = {}
    for kind in WARMUPS:
        rates[kind] = warmed_rates(model, lambda model: mse(model, mine[0]), kind)
        with torch.no_grad():
            for p, start in zip(model.parameters(), before, strict=True):
                p.copy_(start)
    return rates


def warmed_rates(model, loss_fn, kind) -> list[float]:
    """The rates of a warmup that looks at the loss; each rank gives it its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    warmup = WARMUPS[kind](optimizer)
    rates = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = loss_fn(model)
        loss.backward()
        warmup.observe(lambda: loss_fn(model), loss=None if kind == WITHOUT_LOSS else loss)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    return rates


def observed(model, mine, loss_fn) -> None:
    """Let a warmup see a loss for the first time."""
    warmup = ew.EdgeWarmup(adamw(model))
    mse(model, mine[0]).backward()
    warmup.observe(lambda: loss_fn(model, mine[0]))


def apart(rank: int) -> dict:
    """Warmups whose closures return this rank's own loss, of one model and of models of their own."""
    patience, ranks._PATIENCE = ranks._PATIENCE, 0.5
    found: dict = {}
    for name, make in FIRST_LOOKS.items():
        for give_loss in (True, False):
            _, model, mine = build_ddp(rank)
            found["inside", name, give_loss] = looked(make, model, model.module, mine[0], give_loss)
            _, model, mine = build_ddp(rank)
            found["wrapped", name, give_loss] = looked(make, model, model, mine[0], give_loss)
        _, model, mine = build_ddp(rank)
        found["averaged by hand", name] = looked(make, model.module, model.module, mine[0], True, average)
        for seeds in ("one start", "two starts"):
            torch.manual_seed(rank if seeds == "two starts" else 0)
            own = BY_NAME[MLP.name].make_model().double()
            found[seeds, name] = looked(make, own, own, mine[0], True)
        own = BY_NAME[MLP.name].make_model().double()
        found["on one rank", name] = "" if rank else looked(make, own, own, mine[0], True)
        dist.barrier()
    ranks._PATIENCE = patience
    return found


def average(model) -> None:
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= NUM


def nothing_of(model):
    pass


def looked(make, trained, called, batch, give_loss, after_backward=nothing_of) -> str:
    """Return what the first look of a warmup raises."""
    warmup = make(torch.optim.SGD(trained.parameters(), lr=0.5))
    loss = mse(trained, batch)
    loss.backward()
    after_backward(trained)
    return error_of(warmup.observe, lambda: mse(called, batch), loss=loss.detach() if give_loss else None)
