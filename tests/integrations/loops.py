"""The same updates in four loops: accelerate's, and by hand for one process, with DDP and with FSDP2.

Each update has two micro-batches on each of two ranks, and clips its gradients hard enough to matter.
"""

import contextlib
import os

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import edgewise as ew
from distributed.two_ranks import NUM

UPDATES, RUN = 24, 60  # made on two ranks, and planned
PARTS = 2  # micro-batches of an update, on each rank
CLIP = 0.05
SIZE = 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.1)


def loss_fn(model, batch):
    return mse_loss(model(batch[:, :3]), batch[:, 3:])


def samples():
    """As many as the ranks take in all updates, in order."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(UPDATES * PARTS * NUM * SIZE, 3, generator=generator).double()
    return torch.cat([inputs, inputs.prod(1, keepdim=True)], 1)


def parts_of(ranks, num):
    """The micro-batches of each update that some of so many ranks take: each in turn, as accelerate deals them out."""
    dealt = samples().split(SIZE)
    for start in range(0, len(dealt), PARTS * num):
        yield [part for i, part in enumerate(dealt[start : start + PARTS * num]) if i % num in ranks]


class Log:
    """What a loop did, by update."""

    def __init__(self):
        self.rates, self.losses = [], []

    def note(self, optimizer, update_loss):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.losses.append(update_loss.value.item())

    def of(self, model):
        whole = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]
        return {
            "rates": self.rates,
            "losses": self.losses,
            "parameters": [p.flatten().tolist() for p in whole],
        }


def by_hand(model, ranks=(0,), num=1, make=ew.EdgeWarmup) -> dict:
    """Plain torch: what the ranks' losses are divided by says that an update is their mean."""
    optimizer, log = adam(model), Log()
    scheduler = make(optimizer).then_until(RUN, "cosine")
    update_loss = ew.UpdateLoss(model, loss_fn)
    for parts in parts_of(ranks, num):
        optimizer.zero_grad()
        for i, part in enumerate(parts):
            with not_synchronized(model) if i < len(parts) - 1 else contextlib.nullcontext():
                loss = loss_fn(model, part) / len(parts)
                loss.backward()
            update_loss.add(part, loss, share=1 / len(parts))
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scheduler.warmup.observe(update_loss)
        log.note(optimizer, update_loss)
        optimizer.step()
        scheduler.step()
    return log.of(model)


def not_synchronized(model):
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def ddp(rank: int) -> dict:
    return by_hand(DistributedDataParallel(network()), [rank], NUM)


def fsdp(rank: int) -> dict:
    model = network()
    mesh = init_device_mesh("cpu", (NUM,))
    for layer in (model[0], model):
        fully_shard(layer, mesh=mesh)
    return by_hand(model, [rank], NUM)


ORDERS = ("prepared before", "prepared after", "the schedule is prepared, too")


def accelerated_on_ranks(rank: int) -> dict:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # the group stands already
    found = {order: accelerated(order) for order in ORDERS}
    return found | {"followed": accelerated(followed=True), "inside": error_inside()}


def accelerated(order: str = ORDERS[0], make=ew.EdgeWarmup, *, followed: bool = False) -> dict:
    """accelerate's loop, as its documentation writes it; in as many processes as there are."""
    from accelerate import Accelerator  # noqa: PLC0415

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PARTS)
    model, log = network(), Log()
    optimizer = adam(model)
    before = make(optimizer) if order == "prepared after" else None
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(samples(), batch_size=SIZE))
    warmup = before or make(optimizer)
    schedule = warmup.then_until(RUN, "cosine")
    scheduler = accelerator.prepare(schedule) if order == "the schedule is prepared, too" else schedule
    update_loss, rows = ew.UpdateLoss(model, loss_fn), []
    monitor = ew.Monitor(model, optimizer, loss_fn, every=8, log=rows.append) if followed else None
    for batch in loader:
        with accelerator.accumulate(model):
            loss = loss_fn(model, batch)
            accelerator.backward(loss)
            update_loss.add(batch, loss / PARTS, share=1 / PARTS)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
                warmup.observe(update_loss)
                if monitor is not None:
                    monitor.observe(update_loss)
                log.note(optimizer, update_loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return log.of(model) | {
        "processes": accelerator.num_processes,
        "fractions": [row.fraction for row in rows],
    }


def error_inside() -> str:
    """What is raised where the update's loss is of the module inside the wrapper."""
    from accelerate import Accelerator  # noqa: PLC0415

    accelerator = Accelerator(cpu=True)
    inside = network()
    model, optimizer = accelerator.prepare(inside, adam(inside))
    batch = samples()[:SIZE] * (1 + accelerator.process_index)
    update_loss = ew.UpdateLoss(inside, loss_fn)
    loss = loss_fn(model, batch)
    accelerator.backward(loss)
    update_loss.add(batch, loss, share=1.0)
    try:
        ew.EdgeWarmup(optimizer).observe(update_loss)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
