"""Trackers: one run, logged by TensorBoard, Weights & Biases, MLflow and trackio, all of them on this machine alone.

metrics() of a warmup and of a monitor's row is a dict of names and numbers, which each of them takes as it is.
Seconds on a CPU, into the current folder but for trackio: python examples/trackers.py
"""

import mlflow
import torch
import trackio
import wandb
from torch.utils.tensorboard import SummaryWriter

import edgewise as ew  # edgewise

NUM_STEPS = 60


def loss_fn(model, batch):
    return (model(batch) - batch.prod(1, keepdim=True)).square().mean()


def main() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = ew.LinearWarmup(optimizer, warmup_steps=20).then_until(NUM_STEPS, "cosine")  # edgewise
    monitor = ew.Monitor(model, optimizer, loss_fn, every=10)  # edgewise

    tensorboard = SummaryWriter("tensorboard")  # tensorboard --logdir tensorboard
    wandb_run = wandb.init(project="edgewise", mode="offline")
    mlflow.set_tracking_uri("sqlite:///mlflow.db")  # mlflow ui --backend-store-uri sqlite:///mlflow.db
    mlflow.start_run()
    trackio.init(project="edgewise")  # trackio show --project edgewise

    for step in range(NUM_STEPS):
        batch = torch.randn(64, 3)
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        row = monitor.observe(batch)  # edgewise
        numbers = scheduler.warmup.metrics() | (row.metrics() if row else {})  # edgewise
        numbers["loss"] = loss.item()
        for name, number in numbers.items():
            tensorboard.add_scalar(name, number, step)
        wandb_run.log(numbers, step=step)
        mlflow.log_metrics(numbers, step=step)
        trackio.log(numbers, step=step)
        optimizer.step()
        scheduler.step()

    tensorboard.close()
    wandb_run.finish()
    mlflow.end_run()
    trackio.finish()
    print(f"the last loss of {NUM_STEPS}: {loss.item():.3f}")


if __name__ == "__main__":
    main()
