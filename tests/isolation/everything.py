"""A network and an optimizer with all that training depends on: to be read as one value, and to be disturbed."""

import random

import numpy as np
import torch
from torch import nn

from cases import OPT, train_step
from oracles import bits


class Everything(nn.Module):
    """Dropout, batch statistics, buffers assigned anew at each forward, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("latest", None)
        self.net[2].eval()  # a mode of its own

    def forward(self, x):
        self.calls = self.calls + 1
        self.latest = x.detach().mean(0)
        return self.frozen(self.net(x))


def everything(option="adam", **changes):
    model = Everything()
    groups = [{"params": model.net[0].parameters()}, {"params": model.net[1:].parameters(), "lr": 0.5}]
    optimizer = OPT[option].cls(groups, **{**OPT[option].options, **changes})
    loss_fn = lambda model, x: model(x).square().mean() + random.random() + np.random.rand()  # noqa: NPY002
    x = torch.randn(6, 3)
    train_step(model, optimizer, loss_fn, x)
    loss_fn(model, x).backward()
    return model, optimizer, loss_fn, x


def fingerprint(model, optimizer):
    """Everything that training depends on, as comparable values; tensors by identity and bytes."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    entry = lambda value: (id(value), bits(value)) if isinstance(value, torch.Tensor) else repr(value)
    return {
        "tensors": {name: entry(t) for name, t in tensors.items()},
        "grads": {name: entry(p.grad) for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "state": [
            {k: entry(v) for k, v in optimizer.state.get(p, {"absent": True}).items()}
            for p in model.parameters()
        ],
        "num_state": len(optimizer.state),
        "groups": [
            {k: entry(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups
        ],
        "members": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "attributes": {k: id(v) for k, v in vars(optimizer).items()},
        "hooks": [list(optimizer._optimizer_step_pre_hooks), list(optimizer._optimizer_step_post_hooks)],
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "torch": bits(torch.get_rng_state()),
    }


def disturb(model, optimizer, loss_fn, x):
    """Change all that a measurement could change."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(7.0)
        else:
            group["lr"] = 7.0
        group["surprise"] = 1
    loss_fn(model, x).backward()
    optimizer.step()
    optimizer.state[model.net[0].weight]["surprise"] = torch.ones(1)
    optimizer.surprise = 1
    model.eval()
    model.frozen.requires_grad_(True)
    model.net[0].bias.requires_grad_(False)
    with torch.no_grad():
        model.frozen.weight.add_(1)
    model.net[1].running_mean = torch.full((4,), 9.0)
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(1)
