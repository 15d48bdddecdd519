"""accelerate: a classifier, four micro-batches an update, gradients clipped; one script for any number of processes.

EdgeWarmup finds the rate to train at, then a cosine leads it to 0. Seconds on a CPU, in one process or in two:
python examples/accelerate_loop.py; ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 examples/accelerate_loop.py
"""

import gc

import torch
from accelerate import Accelerator, PartialState
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew  # edgewise

NUM_EPOCHS = 8
NUM_MICRO_BATCHES = 4


def loss_fn(model, batch):
    inputs, labels = batch
    return cross_entropy(model(inputs), labels)


def main() -> None:
    train()
    gc.collect()  # the wrapper first: where the group is destroyed before it, torch aborts now and then
    PartialState().destroy_process_group()


def train() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=NUM_MICRO_BATCHES)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    loader = DataLoader(rings(1024), batch_size=8, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_updates = NUM_EPOCHS * len(loader) // NUM_MICRO_BATCHES
    scheduler = ew.EdgeWarmup(optimizer).then_until(num_updates, "cosine")  # edgewise
    update_loss = ew.UpdateLoss(model, loss_fn)  # edgewise

    for epoch in range(NUM_EPOCHS):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = loss_fn(model, batch)
                accelerator.backward(loss)
                update_loss.add(batch, loss / NUM_MICRO_BATCHES, share=1 / NUM_MICRO_BATCHES)  # edgewise
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    scheduler.warmup.observe(update_loss)  # edgewise
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}, rate {scheduler.get_last_lr()[0]:.2g}")


def rings(num: int) -> TensorDataset:
    """Points in eight dimensions; the label says whether they are far from the origin."""
    inputs = torch.randn(num, 8)
    return TensorDataset(inputs, (inputs.norm(dim=1) > 8**0.5).long())


if __name__ == "__main__":
    main()
