"""GI-Adam on shards."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import edgewise as ew
from distributed.two_ranks import NUM

GI_ADAMS = {
    f"{cls.__name__}, {kernel}, {own}": (cls, {**kernel, **own})
    for cls, decay in ((ew.GIAdamW, 0.3), (ew.GIAdam, 0.3), (ew.GIAdam, 0.0))
    for kernel in ({}, {"foreach": True}, {"fused": True})
    for own in (
        {"scale": 2.0, "weight_decay": decay},
        {"per_entry": True, "weight_decay": decay, "amsgrad": True},
    )
}


def gi_adam(rank: int) -> dict:
    """Parameters trained by GI-Adam on shards, plainly and with a GradScaler."""
    mesh = init_device_mesh("cpu", (NUM,))
    return {
        (name, scaled): train_embedding(cls, options, [rank], scaled=scaled, mesh=mesh)
        for name, (cls, options) in GI_ADAMS.items()
        for scaled in (False, True)
    }


def train_embedding(cls, options, ranks, *, scaled: bool, mesh=None) -> list:
    """The parameters after five steps on the mean loss of `ranks`; the scaler rejects two more steps."""
    model = embedding() if mesh is None else fully_shard(embedding(), mesh=mesh)
    optimizer = cls(model.parameters(), lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for step in range(5):
        for factor in (torch.inf, 1.0) if scaled and step in (0, 2) else (1.0,):
            optimizer.zero_grad()
            loss = sum(embedding_loss(model, step, rank) for rank in ranks) / len(ranks)
            scaler.scale(loss * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


def embedding() -> nn.Module:
    """A model whose rows, and so entries, get their first gradients late; 7 rows do not split evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 1)).double()


def embedding_loss(model, step: int, rank: int):
    """Of rank and step: the ranks see other rows."""
    rows = torch.tensor([step % 3 + rank, 3 * rank])
    return (model(rows) - 1.0 - rank).square().mean()
