"""Models in two processes, their shares of a case's batches, and how what is found travels back."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cases import BY_NAME, MLP, mse
from distributed.two_ranks import NUM

SHARES = (slice(0, 2), slice(2, 3))  # of a case's batches, of 5, 9 and 2 samples
EVEN_SHARES = (slice(0, 1), slice(1, 2))  # as many for each rank, not as large


def build_ddp(rank: int, name: str = MLP.name):
    """Return case, wrapped model and this rank's batches."""
    case = BY_NAME[name]
    model, batches = case.build()
    return case, DistributedDataParallel(model.eval()), batches[SHARES[rank]]


def build_fsdp(rank: int, name: str = MLP.name, mesh=None):
    """Return case, sharded model (in two groups, where it has layers) and this rank's batch."""
    case = BY_NAME[name]
    model, batches = case.build()
    model.eval()
    mesh = mesh or init_device_mesh("cpu", (NUM,))
    if isinstance(model, nn.Sequential):
        fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return case, model, batches[EVEN_SHARES[rank]]


def adamw(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.3)


def outcome(result) -> dict:
    return {
        "value": result.value,
        "values": result.values,
        "vectors": result.vectors,
        "shares": result.by_parameter(),
        "num_hvps": result.num_hvps,
        "cost": result.cost,
        "hvp": result.hvp,
        "reason": result.hvp_reason,
        "converged": result.converged,
    }


def error_of(function, *args, **kwargs) -> str:
    """Return class and text of what a call raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def failing(rank: int, call: int, failure):
    """MLP's loss, which fails on rank 1 at a call."""
    calls = []

    def loss_fn(model, batch):
        calls.append(1)
        loss = mse(model, batch)
        return failure(loss) if (rank, len(calls)) == (1, call) else loss

    return loss_fn


def out_of_cheese(loss):
    raise KeyError("out of cheese")


def not_a_number(loss):
    return loss * torch.nan
