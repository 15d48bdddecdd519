"""Value and gradient of one objective on both ranks."""

from cases import mse
from distributed.setups import build_ddp, build_fsdp
from edgewise.isolation import isolated
from edgewise.loss.objective import Objective


def ddp(rank: int) -> dict:
    return evaluated(*build_ddp(rank)[1:])


def fsdp(rank: int) -> dict:
    return evaluated(*build_fsdp(rank)[1:])


def evaluated(model, batches) -> dict:
    """What an objective of MLP's loss returns itself."""
    with isolated(model) as snapshot:
        objective = Objective(model, mse, batches, snapshot=snapshot)
        return {"value": objective.value(), "gradient": objective.gradient(), "size": objective.size}
