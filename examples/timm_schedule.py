"""timm: a vision transformer on pictures of four kinds, with timm's optimizer and its order of calls.

EdgeWarmup finds the rate to train at, then a cosine leads it to 0. Seconds on a CPU: python examples/timm_schedule.py
"""

import timm
import torch
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import edgewise as ew  # edgewise
from edgewise.integrations.timm import TimmScheduler  # edgewise


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, num_heads=2, depth=2, num_classes=4
    )
    optimizer = create_optimizer_v2(model, opt="adamw", lr=3e-3, weight_decay=0.05)
    loader = DataLoader(pictures(256), batch_size=16, shuffle=True)
    num_epochs, num_updates = 10, 0
    warmup = ew.EdgeWarmup(optimizer)  # edgewise
    scheduler = TimmScheduler(warmup.then_until(num_epochs * len(loader), "cosine"))  # edgewise

    for epoch in range(num_epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward()
            warmup.observe(lambda x=images, y=labels: cross_entropy(model(x), y), loss=loss)  # edgewise
            optimizer.step()
            num_updates += 1
            scheduler.step_update(num_updates)
        scheduler.step(epoch + 1)
        print(f"epoch {epoch}: loss {loss.item():.3f}, rate {optimizer.param_groups[0]['lr']:.2g}")


def pictures(num: int) -> TensorDataset:
    """Noise, brighter in the quarter that is the label."""
    labels = torch.randint(0, 4, (num,))
    images = 0.2 * torch.randn(num, 3, 2, 8, 2, 8)  # halves of the height, halves of the width
    images[torch.arange(num), :, labels // 2, :, labels % 2] += 1
    return TensorDataset(images.reshape(num, 3, 16, 16), labels)


if __name__ == "__main__":
    main()
