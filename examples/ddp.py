"""DistributedDataParallel: a classifier, trained by as many processes as torchrun starts, each on its own samples.

EdgeWarmup finds the rate to train at, the same on all ranks, then a cosine leads it to 0. Seconds on a CPU:
torchrun --nproc-per-node 2 examples/ddp.py
"""

import gc

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import edgewise as ew  # edgewise

NUM_EPOCHS = 8


def main() -> None:
    dist.init_process_group("gloo")
    train()
    gc.collect()  # the wrapper first: where the group is destroyed before it, torch aborts now and then
    dist.destroy_process_group()


def train() -> None:
    torch.manual_seed(0)
    data = rings(1024)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 2))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    warmup = ew.EdgeWarmup(optimizer)  # edgewise
    scheduler = warmup.then_until(NUM_EPOCHS * len(loader), "cosine")  # edgewise

    for epoch in range(NUM_EPOCHS):
        sampler.set_epoch(epoch)
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            warmup.observe(lambda x=inputs, y=labels: cross_entropy(model(x), y), loss=loss)  # edgewise
            optimizer.step()
            scheduler.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}, rate {scheduler.get_last_lr()[0]:.2g}")


def rings(num: int) -> TensorDataset:
    """Points in eight dimensions; the label says whether they are far from the origin."""
    inputs = torch.randn(num, 8)
    return TensorDataset(inputs, (inputs.norm(dim=1) > 8**0.5).long())


if __name__ == "__main__":
    main()
