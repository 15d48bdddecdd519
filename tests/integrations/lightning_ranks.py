"""What two processes see of runs of Lightning, under DDP and FSDP2: `test_lightning_ranks.py` compares them."""

import os
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from integrations import lightning_runs as runs

L = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy  # noqa: E402

from edgewise.integrations.lightning import EdgeWarmupCallback, MonitorCallback  # noqa: E402

CLIPPED = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}


class Sharded(runs.Net):
    """Split over the ranks by FSDP2."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.net[0], mesh=mesh)
        fully_shard(self.net, mesh=mesh)


class HalfSharded(runs.Net):
    """Whose second layer is whole on each rank."""

    def configure_model(self):
        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])


def ddp(rank):
    make = lambda: DDPStrategy(process_group_backend="gloo")
    return _all(rank, make, runs.Net, runs.gi_adamw)


def fsdp(rank):
    make = lambda: ModelParallelStrategy(
        2, 1, process_group_backend="gloo", save_distributed_checkpoint=False
    )
    return _all(rank, make, Sharded, runs.adamw) | {"refused": _refused(make(), HalfSharded())}


def _refused(strategy, module):
    with pytest.raises(ValueError, match="must all be sharded") as error:
        _seen(strategy, module)
    return str(error.value), module.calls


def _all(rank, strategy, module, make_optimizer):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    inputs_and_targets = runs.data()
    runs.data = lambda: [tensor[rank::2] for tensor in inputs_and_targets]
    names = [mkdtemp() if rank == 0 else None]
    dist.broadcast_object_list(names)
    path = Path(names[0], "first.ckpt")
    return {
        "plain": _seen(strategy(), module(), Saves(path)),
        "clipped": _seen(strategy(), module(make_optimizer), **CLIPPED),
        "resumed": _seen(strategy(), module(), ckpt_path=path),
    }


class Saves(L.Callback):
    """Saves when the first epoch is over."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def _seen(strategy, module, *callbacks, ckpt_path=None, **options):
    """Train in the group of processes that there is; return what this one saw."""
    warmup, monitor = EdgeWarmupCallback(decay="cosine"), MonitorCallback(every=3)
    options |= {"strategy": strategy, "devices": 2, "use_distributed_sampler": False, "ckpt_path": ckpt_path}
    run = runs.fit(module, monitor, warmup, *callbacks, **options)
    return {
        "rates": run.rates,
        "losses": run.losses,
        "parameters": [p.full_tensor() if hasattr(p, "full_tensor") else p for p in run.parameters],
        "rows": [row.sharpness for row in monitor.monitor._rows],
        "fallback": warmup.warmup.fallback,
    }
