"""The tables that tests cross: small float64 models with batches of uneven sizes, and torch's optimizers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import edgewise as ew

Batch = tuple[Tensor, Tensor]


def mse(model: Any, batch: Batch) -> Tensor:
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(1).mean()


def cross_entropy(model: Any, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


class CutProduct(torch.autograd.Function):
    """u·v, of whose second derivative one of two equal terms is cut off: ∂²/∂u∂v is there, ∂²/∂v∂u is not."""

    @staticmethod
    def forward(ctx, u, v):
        ctx.save_for_backward(u, v)
        return u * v

    @staticmethod
    def backward(ctx, gradient):
        u, v = ctx.saved_tensors
        return gradient * v, gradient * u.detach()


class CutTanh(torch.autograd.Function):
    """tanh, of whose second derivative a factor is cut off: symmetric, and wrong."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0].detach().tanh().square())


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder transposed, and one layer used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class OnceOnly(torch.autograd.Function):
    """tanh with a first derivative only, as fused kernels have."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y.square())


class LinearBias(nn.Module):
    """Its loss is linear in `offset`, whose gradient therefore has no graph; `unused` has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.offset = nn.Parameter(torch.randn(2))
        self.unused = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tanh(self.net(x)), self.offset.expand(len(x), 2)], 1)


class Attention(nn.Module):
    """Self-attention over the rows of a picture; torch's fast kernel has no second derivative.

    `spelled_out` is the same function without that kernel, for oracles.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spelled_out = False
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)  # (n, 1, 4, 4): one head
        if self.spelled_out:
            scores = query @ key.mT / 2 + torch.full((4, 4), -torch.inf).triu(1)
            return self.out((scores.softmax(-1) @ value).flatten(1))
        return self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True).flatten(1))


def linear_bias_loss(model: Any, batch: Batch) -> Tensor:
    out = model(batch[0])
    return 0.5 * (out[:, :2] - batch[1]).square().sum(1).mean() + out[:, 2:].sum(1).mean()


def in_float32_only(loss_fn: Any) -> Any:
    """Return a loss that refuses float64, as those of custom kernels may."""

    def refusing(model: nn.Module, batch: Batch) -> Tensor:
        assert all(p.dtype is torch.float32 for p in model.parameters())
        return loss_fn(model, batch)

    return refusing


def frozen_first(model: nn.Sequential) -> nn.Sequential:
    model[0].requires_grad_(False)
    return model


def mlp(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def vectors(n: int) -> Batch:
    return torch.randn(n, 3), torch.randn(n, 2)


def labelled(n: int) -> Batch:
    return torch.randn(n, 3), torch.randint(0, 3, (n,))


def images(n: int) -> Batch:
    return torch.randn(n, 1, 4, 4), torch.randint(0, 3, (n,))


@dataclass(frozen=True)
class Case:
    """One model, its loss and its data."""

    name: str
    make_model: Callable[[], nn.Module]
    loss_fn: Callable[[Any, Any], Tensor]
    make_batch: Callable[[int], Batch]
    seed: int
    sizes: tuple[int, ...] = (5, 9, 2)

    def build(self) -> tuple[nn.Module, list[Batch]]:
        """Return a fresh model and its batches, the same at each call, in float64."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.make_model().double()
            batches = [self.make_batch(n) for n in self.sizes]
        return model, [(x.double(), y.double() if y.is_floating_point() else y) for x, y in batches]

    def build_trained(self, optimizer: "Opt", steps: int) -> tuple[nn.Module, torch.optim.Optimizer, Batch]:
        """Return the model, an optimizer that has made `steps` real steps, and the first batch."""
        model, batches = self.build()
        live = optimizer.make(model)
        for i in range(steps):
            train_step(model, live, self.loss_fn, batches[i % len(batches)])
        return model, live, batches[0]


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any, batch: Any) -> float:
    """One ordinary training step; returns the loss before it."""
    optimizer.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    optimizer.step()
    return loss.item()


CASES = [
    Case("linear-regression", lambda: nn.Linear(3, 2, bias=False), mse, vectors, seed=1),
    Case("tanh-mlp-mse", mlp, mse, vectors, seed=2),
    Case("tanh-mlp-xent", lambda: mlp(3), cross_entropy, labelled, seed=3),
    Case(
        "conv-batchnorm-xent",
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        ),
        cross_entropy,
        images,
        seed=4,
    ),
    Case("attention-xent", Attention, cross_entropy, images, seed=8),
    Case("tied-mse", Tied, mse, vectors, seed=5),
    Case("linear-bias-unused", LinearBias, linear_bias_loss, vectors, seed=6),
    Case("frozen-layer", lambda: frozen_first(mlp()), mse, vectors, seed=7),
]
BY_NAME = {case.name: case for case in CASES}
MLP = BY_NAME["tanh-mlp-mse"]


@dataclass(frozen=True)
class Opt:
    """An optimizer with its options."""

    name: str
    cls: type[torch.optim.Optimizer]
    options: dict[str, Any]

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        return self.cls([p for p in model.parameters() if p.requires_grad], **copy.deepcopy(self.options))


# P is known for these
PRECONDITIONED = [
    Opt("sgd", torch.optim.SGD, {"lr": 0.05}),
    Opt("sgd-decay", torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    Opt("sgd-momentum", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    Opt("adam", torch.optim.Adam, {"lr": 0.01}),
    Opt("adam-decay", torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.3}),
    Opt("adam-maximize", torch.optim.Adam, {"lr": 0.01, "maximize": True, "weight_decay": 0.3}),
    Opt("adam-large-eps", torch.optim.Adam, {"lr": 0.01, "eps": 0.1, "betas": (0.8, 0.95)}),
    Opt("adamw", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}),
    Opt("amsgrad", torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "betas": (0.9, 0.5)}),
    Opt("radam", torch.optim.RAdam, {"lr": 0.01}),
    Opt("radam-decay", torch.optim.RAdam, {"lr": 0.01, "weight_decay": 0.3, "betas": (0.9, 0.99)}),
    Opt("gi-adam", ew.GIAdam, {"lr": 0.01}),
    Opt("gi-adam-decay", ew.GIAdam, {"lr": 0.01, "weight_decay": 0.3}),
    Opt("gi-adamw", ew.GIAdamW, {"lr": 0.01, "weight_decay": 0.3}),
    Opt("nadam", torch.optim.NAdam, {"lr": 0.01}),
    Opt("nadam-decay", torch.optim.NAdam, {"lr": 0.01, "weight_decay": 0.3, "momentum_decay": 0.5}),
    Opt("nadamw", torch.optim.NAdam, {"lr": 0.01, "weight_decay": 0.3, "decoupled_weight_decay": True}),
    Opt("adamax", torch.optim.Adamax, {"lr": 0.01, "betas": (0.9, 0.7)}),
    Opt("adamax-decay", torch.optim.Adamax, {"lr": 0.01, "weight_decay": 0.3, "eps": 0.1}),
    Opt("rmsprop", torch.optim.RMSprop, {"lr": 0.01}),
    Opt("rmsprop-decay", torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.3, "alpha": 0.9}),
    Opt("rmsprop-centered", torch.optim.RMSprop, {"lr": 0.001, "centered": True, "eps": 1e-3}),
    Opt("rmsprop-momentum", torch.optim.RMSprop, {"lr": 0.001, "momentum": 0.9, "centered": True}),
    Opt("adagrad", torch.optim.Adagrad, {"lr": 0.05}),
    Opt(
        "adagrad-decay",
        torch.optim.Adagrad,
        {"lr": 0.05, "weight_decay": 0.3, "lr_decay": 0.2, "initial_accumulator_value": 0.1},
    ),
    Opt("adadelta", torch.optim.Adadelta, {"lr": 1.0}),
    Opt("adadelta-decay", torch.optim.Adadelta, {"lr": 0.5, "weight_decay": 0.3, "rho": 0.5, "eps": 1e-4}),
]
OPT = {opt.name: opt for opt in PRECONDITIONED}


def ids(table: list[Any]) -> Any:
    """`pytest.mark.parametrize` ids of a table of cases or optimizers."""
    return [entry.name for entry in table]


def every_optimizer() -> list[Any]:
    """All classes in torch.optim that step without a closure and on dense gradients."""
    found = [
        cls
        for cls in vars(torch.optim).values()
        if isinstance(cls, type)
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
    ]
    found = [cls for cls in found if cls not in (torch.optim.LBFGS, torch.optim.SparseAdam)]
    return sorted({*found, ew.GIAdam, ew.GIAdamW}, key=lambda cls: cls.__name__)


def bias_free_mlp() -> nn.Module:
    """Matrices only: Muon takes nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False)).double()


def made(cls: type[torch.optim.Optimizer], model: nn.Module) -> Any:
    """Return the optimizer at rate 0.01, in train mode if it has modes."""
    optimizer: Any = cls(model.parameters(), lr=0.01)  # type: ignore[call-arg]
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer
