"""Sharpness by every route, of whole parameters and of sharded ones."""

import copy

import torch
from torch.distributed.tensor import DTensor

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
    with ew.hessian(model, mse, mine) as operator:
        found["scipy"] = operator.to_scipy().matvec(torch.ones(operator.size).double().numpy())
    _, model, mine = build_ddp(rank)
    optimizer, found["preconditioned"] = after_training(model, mine, rtol=1e-8)
    return found | {"trained": (model.module, optimizer.state_dict())}


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
