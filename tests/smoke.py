"""What an installed wheel must do with torch and numpy alone: the README's example, and a helpful command line."""

import subprocess
import sys
from pathlib import Path

import torch

import edgewise as ew


def loss_fn(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = ew.GIAdamW(model.parameters(), lr=3e-3)
    warmup = ew.LinearWarmup(optimizer, warmup_steps=5, lr_init="critical")
    scheduler = warmup.then(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15))
    batch = torch.randn(32, 8)
    before = loss_fn(model, batch).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        warmup.observe(lambda: loss_fn(model, batch))
        optimizer.step()
        scheduler.step()
    assert loss_fn(model, batch).item() < before
    assert ew.sharpness(model, loss_fn, [batch]).converged
    assert ew.preconditioned_sharpness(model, loss_fn, [batch], optimizer).converged
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert ew.critical_lr(model, sgd, loss_fn, batch).status is ew.Status.FOUND
    assert not any(name.startswith(("edgewise.lab", "matplotlib", "plotly", "scipy")) for name in sys.modules)

    command = subprocess.run(
        [Path(sys.executable).with_name("edgewise"), "report", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert command.returncode == 1
    assert "pip install 'edgewise[lab]'" in command.stderr, command.stderr
    print("smoke test: the wheel works with its core dependencies alone")


if __name__ == "__main__":
    main()
