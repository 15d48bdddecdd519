"""What two processes do in a `Trainer` under DistributedDataParallel: `test_transformers_ranks.py` compares them."""

import os
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("transformers")

import edgewise as ew
from distributed.two_ranks import NUM
from edgewise.integrations.transformers import EdgeWarmupCallback, MonitorCallback
from integrations.trainers import column, run, sgd, trainer_of

OPTIONS = {
    "max_steps": 10,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.1,
}
WARMUPS = {
    "edge": (ew.EdgeWarmup, {}),
    "critical": (
        lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=6, lr_init="critical"),
        {"optimizer": sgd, "lr": 30.0},
    ),
}


def ddp(rank: int) -> dict:
    """Rates, losses, parameters and a row of a monitor, for each warmup."""
    found = {kind: _trained(rank, kind) for kind in WARMUPS}
    found["resumed"] = _trained(rank, "edge", stopped=4)
    return found


def _trained(rank, kind, stopped=None):
    _join_as(rank)
    folder = _shared_folder()
    make, options = WARMUPS[kind]
    saving = {"save_strategy": "steps", "save_steps": 4}
    made = trainer(folder, make, **OPTIONS, **options, **saving)
    found = run(made)
    assert isinstance(made.model_wrapped, DistributedDataParallel)
    if stopped is not None:
        made = trainer(folder, make, **OPTIONS, **options, **saving)
        found = run(made, resume_from_checkpoint=str(folder / f"checkpoint-{stopped}"))
    return {
        "rates": found[0],
        "losses": found[1],
        "parameters": [p.detach().clone() for p in made.model.parameters()],
        "sharpness": column(made, "edgewise/sharpness"),
    }


def trainer(folder, make, **options):
    """One with a warmup and a monitor."""
    made = trainer_of(folder, **options)
    made.add_callback(EdgeWarmupCallback(made, make))
    made.add_callback(MonitorCallback(made, every=8, rtol=0.1, measure=("sharpness",)))
    return made


def _join_as(rank: int) -> None:
    """Tell accelerate of the group of processes that there is."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555", "ACCELERATE_USE_CPU": "true"}
    torch.manual_seed(0)


def _shared_folder() -> Path:
    """Where both ranks save: rank 0 makes it."""
    names = [mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(names)
    return Path(names[0])
