"""Lightning: a small network on two spirals, with a rate that is far too large as the target.

EdgeWarmup finds the rate to train at, a cosine leads it to 0, and the sharpness is followed within 2 % of the time.
Seconds on a CPU: python examples/lightning_trainer.py
"""

import lightning.pytorch as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from edgewise.integrations.lightning import EdgeWarmupCallback, MonitorCallback  # edgewise


class Classifier(L.LightningModule):
    """A network of two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        points, labels = batch
        outputs = self.network(points)
        loss = cross_entropy(outputs, labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("accuracy", (outputs.argmax(1) == labels).float().mean(), on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def main() -> None:
    L.seed_everything(0)
    warmup = EdgeWarmupCallback(decay="cosine")  # edgewise
    monitor = MonitorCallback(max_overhead=0.02)  # edgewise
    trainer = L.Trainer(
        max_epochs=20,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[warmup, monitor],  # edgewise
        logger=L.loggers.CSVLogger("."),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(spirals(512), batch_size=32, shuffle=True))
    print({name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()})
    print(warmup.warmup.report())  # edgewise


def spirals(num: int) -> TensorDataset:
    """Points along two spirals, and on which one they are."""
    labels = torch.arange(num) % 2
    angles = 1.5 * torch.pi * torch.rand(num).sqrt()
    radii = angles * (1 - 2 * labels) + 0.1 * torch.randn(num)
    points = torch.stack([radii * angles.cos(), radii * angles.sin()], dim=1) / 3
    return TensorDataset(points, labels)


if __name__ == "__main__":
    main()
