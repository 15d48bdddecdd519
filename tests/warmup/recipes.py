"""Recipes that people train with, on networks and data that are tiny: what EdgeWarmup has to work in."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import lion_pytorch
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Muon, RMSprop

from edgewise import EdgeWarmup

STEPS = 400

# Networks


class Adapted(nn.Linear):
    """LoRA: a frozen matrix and a trained product of two thin ones, which is zero at first."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__(inputs, outputs)
        self.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x):
        return super().forward(x) + x @ self.down.T @ self.up.T


class LanguageModel(nn.Module):
    """A transformer of one block with dropout, whose head is the embedding."""

    def __init__(self, vocabulary=12, width=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.block = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(8))

    def forward(self, x):
        return F.linear(self.norm(self.block(self.embed(x), src_mask=self.mask)), self.embed.weight)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.out = kind(2, 12, batch_first=True), nn.Linear(12, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def mlp(norm=None, *, activation=nn.Tanh, width=16):
    norms = [norm(width)] if norm else []
    return nn.Sequential(
        *(nn.Linear(8, width), *norms, activation(), nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 3))
    )


# Data and losses: of update t


class Sines:
    """Regression."""

    def __init__(self, steps, dtype=torch.float32):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(steps, 16, 8, generator=generator).to(dtype)
        self.targets = torch.stack([self.inputs[..., i : i + 3].sum(-1) for i in (0, 2, 4)], -1).sin()

    def __call__(self, model, t):
        return F.mse_loss(model(self.inputs[t]).float(), self.targets[t].float())


class Classes(Sines):
    """The largest of three."""

    def __call__(self, model, t):
        return F.cross_entropy(model(self.inputs[t]), self.targets[t].argmax(-1))


class Sequences:
    """The sum of five numbers, and five that do not matter."""

    def __init__(self, steps):
        self.inputs = torch.randn(steps, 16, 5, 2, generator=torch.Generator().manual_seed(1))

    def __call__(self, model, t):
        return F.mse_loss(model(self.inputs[t]), self.inputs[t, ..., 0].sum(-1, keepdim=True).tanh())


class Chain:
    """Text of a Markov chain: no model is better than its entropy."""

    def __init__(self, steps, vocabulary=12):
        generator = torch.Generator().manual_seed(1)
        after = torch.softmax(2 * torch.randn(vocabulary, vocabulary, generator=generator), -1)
        tokens = [torch.randint(vocabulary, (steps * 8,), generator=generator)]
        for _ in range(8):
            tokens.append(torch.multinomial(after[tokens[-1]], 1, generator=generator)[:, 0])
        self.text = torch.stack(tokens, -1).view(steps, 8, 9)
        self.entropy = float(-after[self.text[..., :-1]].log().gather(-1, self.text[..., 1:, None]).mean())

    def __call__(self, model, t):
        return F.cross_entropy(model(self.text[t, :, :-1]).flatten(0, 1), self.text[t, :, 1:].flatten())


# Recipes


@dataclass(frozen=True)
class Recipe:
    make_model: Callable
    make_optimizers: Callable  # of the parameters that are trained, and the rate
    make_loss: Callable
    log_lr: int  # log₂ of the best rate of a grid at two octaves, with linear warmup over a tenth of the run
    clip: float | None = None
    too_high: float = 64  # times the best rate: where a constant one does not train


def adamw(parameters, lr, **options):
    groups = [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [AdamW([g for g in groups if g["params"]], lr, betas=(0.9, 0.95), weight_decay=0.1, **options)]


def muon_and_adamw(parameters, lr):
    """Two optimizers, as Muon takes matrices only."""
    rest = [p for p in parameters if p.dim() != 2]
    return [Muon([p for p in parameters if p.dim() == 2], lr), AdamW(rest, 0.3 * lr)]


def one(cls, **options):
    return lambda parameters, lr: [cls(parameters, lr, **options)]


nesterov = one(SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
group_norm = functools.partial(nn.GroupNorm, 4)
RECIPES = {
    "language model, AdamW": Recipe(LanguageModel, adamw, Chain, -6, clip=1.0),
    "GroupNorm, Nesterov": Recipe(lambda: mlp(group_norm, activation=nn.ReLU), nesterov, Classes, -4),
    "BatchNorm, Nesterov": Recipe(lambda: mlp(nn.BatchNorm1d, activation=nn.ReLU), nesterov, Classes, -4),
    "Muon and AdamW": Recipe(lambda: mlp(nn.BatchNorm1d), muon_and_adamw, Sines, -5),
    "RMSprop": Recipe(mlp, one(RMSprop), Sines, -6),
    "RMSprop, centered": Recipe(mlp, one(RMSprop, centered=True), Sines, -6),
    "RMSprop, momentum": Recipe(mlp, one(RMSprop, momentum=0.9), Sines, -8),
    "Lion": Recipe(mlp, one(lion_pytorch.Lion, weight_decay=0.1), Sines, -8),
    "LoRA": Recipe(
        lambda: nn.Sequential(Adapted(8, 16), nn.Tanh(), Adapted(16, 3)), adamw, Sines, -4, too_high=2**12
    ),
    "LSTM": Recipe(lambda: Recurrent(nn.LSTM), one(Adam), Sequences, -4, clip=1.0),
    "GRU": Recipe(lambda: Recurrent(nn.GRU), one(SGD, momentum=0.9), Sequences, -2),
    "Adafactor": Recipe(mlp, one(Adafactor), Sines, -4),
    "wide": Recipe(lambda: mlp(width=512), one(SGD), Sines, -2),
    "fused, rate a tensor": Recipe(
        mlp, lambda p, lr: adamw(p, torch.tensor(lr), fused=True), Sines, -5, clip=1.0
    ),
    "bfloat16": Recipe(lambda: mlp().bfloat16(), adamw, functools.partial(Sines, dtype=torch.bfloat16), -5),
}


class Run:
    """A recipe at its best rate times a factor, from the same seed each time."""

    def __init__(self, recipe, *, times=1.0, steps=STEPS, make_loss=None):
        torch.manual_seed(0)
        self.recipe, self.steps = recipe, steps
        self.loss = (make_loss or recipe.make_loss)(steps)
        self.model = recipe.make_model()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = recipe.make_optimizers(self.trained, 2.0**recipe.log_lr * times)
        self.warmups, self.schedulers, self.losses = [], [], []
        self.rates = [[] for _ in self.optimizers]  # within the updates, of all groups

    def warm_up(self, make, decay="linear"):
        self.warmups = [make(optimizer) for optimizer in self.optimizers]
        for rates, optimizer in zip(
            self.rates, self.optimizers, strict=True
        ):  # after what the guard holds back
            note = lambda o, *_, rates=rates: rates.append([float(group["lr"]) for group in o.param_groups])
            optimizer.register_step_pre_hook(note)
        self.schedulers = [w.then_until(self.steps, decay) if decay else w for w in self.warmups]
        return self

    def train(self, steps=None, *, rates=None):
        """Train, by rates that are given if they are."""
        for t in steps or range(self.steps):
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss = self.loss(self.model, t)
            loss.backward()
            if self.recipe.clip:
                nn.utils.clip_grad_norm_(self.trained, self.recipe.clip)
            for warmup in self.warmups:
                if isinstance(warmup, EdgeWarmup):
                    warmup.observe(lambda t=t: self.loss(self.model, t), loss=loss)
            for i, optimizer in enumerate(self.optimizers):
                for group, rate in zip(optimizer.param_groups, rates[i][t] if rates else (), strict=False):
                    group["lr"] = rate
                optimizer.step()
            for scheduler in self.schedulers:
                scheduler.step()
            self.losses.append(loss.item())
        return self

    @property
    def first(self):
        return sum(self.losses[:5]) / 5

    @property
    def last(self):
        tenth = self.losses[-self.steps // 10 :]
        return sum(tenth) / len(tenth)

    def bits(self):
        return [tensor.clone() for tensor in self.model.state_dict().values()]
