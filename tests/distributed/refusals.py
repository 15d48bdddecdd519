"""What raises on one rank, and what is refused on both."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import edgewise as ew
from cases import mse
from distributed.setups import adamw, build_ddp, build_fsdp, error_of, failing, not_a_number, out_of_cheese
from distributed.two_ranks import NUM
from edgewise.ranks import ranks_of


def ddp(rank: int) -> dict:
    _, model, mine = build_ddp(rank)
    random = iter(torch.rand(99).double())
    return {
        "no batches on rank 1": error_of(ew.sharpness, model, mse, [] if rank else mine),
        "an iterator on rank 1": error_of(ew.sharpness, model, mse, iter(mine) if rank else mine),
        "no size": error_of(ew.sharpness, model, lambda m, b: mse(m, mine[0]), [3]),
        "raised at first": error_of(ew.sharpness, model, failing(rank, 1, out_of_cheese), mine),
        "raised in a product": error_of(
            ew.sharpness, model, failing(rank, 7, out_of_cheese), mine, hvp="difference"
        ),
        "not a number": error_of(ew.sharpness, model, failing(rank, 2, not_a_number), mine),
        "does not repeat": error_of(
            ew.sharpness, model, lambda m, b: mse(m, b) * (next(random) if rank else 1), mine
        ),
        "no batches to follow": error_of(ew.Monitor, model, adamw(model), mse, batches=[] if rank else mine),
        "a wrapped model inside": error_of(ew.sharpness, nn.Sequential(model), mse, mine),
        "unwrapped": ranks_of(model.module).num,
    }


def fsdp(rank: int) -> dict:
    _, model, mine = build_fsdp(rank)
    errors = {
        "other numbers of batches": error_of(ew.sharpness, model, mse, mine * (1 + rank)),
        "not a number": error_of(ew.sharpness, model, failing(rank, 4, not_a_number), mine),
        "raised after the forward": error_of(ew.sharpness, model, failing(rank, 5, out_of_cheese), mine),
        "no graph": error_of(ew.sharpness, model, failing(rank, 3, torch.detach), mine),
        "reverse": error_of(ew.sharpness, model, mse, mine, hvp="reverse"),
        "forward": error_of(ew.sharpness, model, mse, mine, hvp="forward"),
        "dtype": error_of(ew.sharpness, model, mse, mine, dtype=torch.float32),
        "max_graph_bytes": error_of(ew.sharpness, model, mse, mine, max_graph_bytes=10**9),
        "still well": ew.sharpness(model, mse, mine, rtol=1e-6).converged,
    }
    with ew.hessian(model, mse, mine) as operator:
        errors["scipy"] = error_of(operator.to_scipy)
    model.set_requires_gradient_sync(False)
    errors["unsynchronized"] = error_of(ew.sharpness, model, mse, mine)
    _, model, mine = build_fsdp(rank)
    for module in model.modules():
        if isinstance(module, type(model)) or module is model[0]:
            module.set_gradient_divide_factor(1.0)
    errors["other scale"] = error_of(ew.sharpness, model, mse, mine)
    grid = init_device_mesh("cpu", (1, NUM), mesh_dim_names=("replicas", "shards"))
    errors["two dimensions"] = error_of(ew.sharpness, *build_fsdp(rank, mesh=grid)[1:2], mse, mine)
    return errors
