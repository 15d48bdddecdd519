"""Sharpness by every route, of whole parameters and of sharded ones."""

import copy

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel as DDP

import edgewise as ew
from cases import mse, train_step
from distributed.setups import adamw, build_ddp, build_fsdp, outcome


def ddp(rank: int) -> dict:
    """All that is asked of DistributedDataParallel."""
    _, model, mine = build_ddp(rank)
    found = {
        name: outcome(ew.sharpness(*ddp_arguments(rank, name), rtol=1e-8, num=2))
        for name in ("tanh-mlp-mse", "attention-xent", "conv-batchnorm-xent", "tied-mse")
    }
    for route in ("forward", "difference", "checked"):
        found[route] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, num=2, hvp=route))
    found["budget"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, num=2, max_graph_bytes=10_000))
    found["block"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, params="0.*"))
    found["float32"] = outcome(ew.sharpness(copy.deepcopy(model).float(), mse, mine, dtype=torch.float64))
    plain = ew.sharpness(model, mse, mine, rtol=1e-8)
    found["warm"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-8, start=plain))
    found["one rank lacks a derivative"] = outcome(
        ew.sharpness(model, once_only if rank else mse, mine, rtol=1e-6)
    )
    wide, batch = wide_network()
    rows = batch[0][:96], batch[0][96:]  # uneven
    found["parts"] = outcome(
        ew.sharpness(DDP(wide), mse, [(rows[rank], rows[rank][:, :6].tanh())], rtol=1e-8)
    )
    refuses = lambda m, b: mse(m, b) if rank == 0 or len(b[0]) > 20 else None
    found["parts refused by one rank"] = outcome(
        ew.sharpness(DDP(wide), refuses, [(rows[rank], rows[rank][:, :6].tanh())], rtol=1e-8)
    )
    with ew.hessian(model, mse, mine) as operator:
        found["scipy"] = operator.to_scipy().matvec(torch.ones(operator.size).double().numpy())
    _, model, mine = build_ddp(rank)
    optimizer, found["preconditioned"] = after_training(model, mine, rtol=1e-8)
    return found | {"trained": (model.module, optimizer.state_dict())}


def wide_network():
    """1,174 parameters in float64 and 160 samples: enough for parts of the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 6)
    ).double()
    x = torch.randn(160, 16, dtype=torch.float64)
    return model, (x, x[:, :6].tanh())


def ddp_arguments(rank: int, name: str):
    case, model, mine = build_ddp(rank, name)
    return model, case.loss_fn, mine


class OnceOnly(torch.autograd.Function):
    """The identity, with a first derivative only."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()


def once_only(model, batch):
    return mse(lambda x: OnceOnly.apply(model(x)), batch)


def fsdp(rank: int) -> dict:
    """All that is asked of fully_shard."""
    found = {}
    for name in ("tanh-mlp-mse", "attention-xent", "tied-mse", "linear-bias-unused"):
        case, model, mine = build_fsdp(rank, name)
        found[name] = outcome(ew.sharpness(model, case.loss_fn, mine, rtol=1e-7, num=2))
    _, model, mine = build_fsdp(rank)
    first = ew.sharpness(model, mse, mine, rtol=1e-6)
    found["warm"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-6, start=first))
    found["block"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-7, params="0.*"))
    found["checked"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-7, hvp="checked"))
    with torch.no_grad():
        model(mine[0][0])  # modules now hold whole parameters
    found["after a forward"] = outcome(ew.sharpness(model, mse, mine, rtol=1e-7, start=first))
    two = [tuple(t[:2] for t in mine[0]), tuple(t[2:] for t in mine[0])]
    found["several batches"] = outcome(ew.sharpness(model, mse, two, rtol=1e-7))
    _, model, mine = build_fsdp(rank)
    optimizer, found["preconditioned"] = after_training(model, mine, rtol=1e-7)
    return found | {"trained": whole(model, optimizer)}


def after_training(model, mine, *, rtol: float) -> tuple[torch.optim.Optimizer, dict]:
    """The optimizer of three steps, and the preconditioned sharpness after them."""
    optimizer = adamw(model)
    for i in range(3):
        train_step(model, optimizer, mse, mine[i % len(mine)])
    return optimizer, outcome(ew.preconditioned_sharpness(model, mse, mine, optimizer, rtol=rtol))


def whole(model, optimizer) -> tuple[dict, dict]:
    """A sharded model's state and its optimizer's, as those of a model that is not."""
    full = lambda value: value.full_tensor() if isinstance(value, DTensor) else value
    state = optimizer.state_dict()
    state["state"] = {i: {k: full(v) for k, v in entry.items()} for i, entry in state["state"].items()}
    return {name: full(value) for name, value in model.state_dict().items()}, state
