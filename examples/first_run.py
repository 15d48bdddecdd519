"""Plain PyTorch: a run whose rate is far too high, and which trains all the same. Ten seconds on a CPU.

Without the warmup, the same rate ends at the loss of a coin toss, 0.69.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew  # edgewise

torch.manual_seed(0)
inputs = torch.randn(4096, 32)
labels = (inputs[:, :8] * inputs[:, 8:16]).sum(dim=1).gt(0).long()
loader = DataLoader(TensorDataset(inputs, labels), batch_size=128, shuffle=True)
model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))

num_steps = 20 * len(loader)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)  # a ceiling, here 40 times too high
warmup = ew.EdgeWarmup(optimizer, num_steps=num_steps)  # edgewise
scheduler = warmup.then_until(num_steps, "cosine")  # edgewise

for _ in range(20):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        warmup.observe(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y), loss=loss)  # edgewise
        optimizer.step()
        scheduler.step()

print(f"final loss: {nn.functional.cross_entropy(model(inputs), labels):.4f}")
print(warmup.report().summary())  # edgewise
