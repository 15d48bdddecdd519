"""The pairs of a task and an optimizer on which `advice.py` holds advice against grids of rates.

Fourteen networks, each with two optimizers: eight of the laboratory, and six that it does not have, of `transformers`
and torch. Networks take turns, development first, held out next, so that a network is never on both sides.

Batches are fresh: digits have new noise each time, text is longer than any run. So the loss on fixed samples of the
same kind says how far training has come, and does not tend to 0.
"""

# ruff: noqa: PLC0415 - transformers is needed by its own networks only
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from lion_pytorch import Lion
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

import edgewise as ew
from edgewise.lab import data, models
from edgewise.lab.configs import DataConfig, ModelConfig
from edgewise.lab.models.parameterization import parameter_groups

Batch = tuple[Tensor, Tensor]

CONTEXT = 16  # bytes of text
_MASKED, _MASK = 0.25, 256  # share of the bytes that BERT has to guess, and the token in their places
_IGNORED = -100  # targets that cross-entropy leaves out
_NUM_EVALUATED = {"text": 512, "digits": 2048, "digit-pairs": 2048}


def _momentum(groups: object, lr: float) -> Optimizer:
    return SGD(groups, lr=lr, momentum=0.9)


# Each with the rate in the middle of its grid.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {
    "SGD": (SGD, 0.5),
    "momentum": (_momentum, 0.0625),
    "Adam": (Adam, 2.0**-8),
    "AdamW": (AdamW, 2.0**-8),
    "NAdam": (NAdam, 2.0**-8),
    "RMSprop": (RMSprop, 2.0**-9),
    "Lion": (Lion, 2.0**-11),
    "GI-Adam": (ew.GIAdam, 2.0**-8),
    "GI-AdamW": (ew.GIAdamW, 2.0**-8),
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network and what it is trained on."""

    name: str
    make: Callable[[], nn.Module]
    data: str  # a key of `_NUM_EVALUATED`, or "masked text"
    criterion: Callable[[Tensor, Tensor], Tensor]
    batch_size: int
    optimizers: tuple[str, ...]
    in_laboratory: bool = True

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss, in the form edgewise takes."""
        inputs, targets = batch
        outputs = model(inputs)
        return self.criterion(getattr(outputs, "logits", outputs), targets)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A network with an optimizer."""

    network: Network
    optimizer: str
    held_out: bool

    @property
    def name(self) -> str:
        """The pair's name in tables and files."""
        return f"{self.network.name}, {self.optimizer}"

    @property
    def middle_rate(self) -> float:
        """The rate with which its grid begins."""
        return OPTIMIZERS[self.optimizer][1]

    def make(self, lr: float, *, seed: int = 0) -> tuple[nn.Module, Optimizer]:
        """Return the network as initialised from the seed, and its optimizer."""
        torch.manual_seed(seed)
        model = self.network.make()
        constructor = OPTIMIZERS[self.optimizer][0]
        adaptive = self.optimizer not in ("SGD", "momentum")
        if self.network.in_laboratory:
            return model, constructor(parameter_groups(model, lr=lr, adaptive=adaptive), lr=lr)
        return model, constructor(model.parameters(), lr=lr)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield fresh batches without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield draw(self.network.data, self.network.batch_size, generator)

    def evaluation_batch(self) -> Batch:
        """Return fixed samples of the same kind, none of which is in a batch."""
        kind = self.network.data
        number = _NUM_EVALUATED[kind.removeprefix("masked ")]
        return draw(kind, number, torch.Generator().manual_seed(1_000_003), held_out=True)

    def constant_loss(self) -> float:
        """Return the loss of the best constant output on these samples: their classes' frequencies."""
        targets = self.evaluation_batch()[1]
        counts = targets[targets != _IGNORED].bincount()
        frequencies = counts[counts > 0] / counts.sum()
        if self.network.criterion is _half_squared_error:
            return 0.5 * (1 - frequencies.square().sum().item())
        return -(frequencies * frequencies.log()).sum().item()


@cache
def _dataset(kind: str) -> data.Dataset:
    name = "stdlib-text" if kind == "text" else kind
    return data.load(DataConfig(name=name, context=CONTEXT))


def draw(kind: str, number: int, generator: torch.Generator, *, held_out: bool = False) -> Batch:
    """Draw samples: digits with noise, text, or text of which some bytes are masked."""
    dataset = _dataset(kind.removeprefix("masked "))
    if dataset.image_shape is not None:  # held out is the noise
        picked = torch.randint(len(dataset.train_inputs), (number,), generator=generator)
        inputs, targets = dataset.train_batch(picked)
        noise = torch.randn(inputs.shape, generator=generator)
        return inputs + noise, targets
    if held_out:
        inputs, targets = dataset.test_batch()
        inputs, targets = inputs[:number], targets[:number]
    else:
        inputs, targets = dataset.train_batch(
            torch.randint(len(dataset.train_inputs), (number,), generator=generator)
        )
    if kind == "text":
        return inputs, targets
    masked = torch.rand(inputs.shape, generator=generator) < _MASKED
    return inputs.masked_fill(masked, _MASK), inputs.masked_fill(~masked, _IGNORED)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def _half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - F.one_hot(targets, outputs.shape[-1])).square().sum(-1).mean()


def _of_laboratory(kind: str, name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: models.build(ModelConfig(name=name, **options), _dataset(kind))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=257, max_position_embeddings=CONTEXT, **size))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=CONTEXT, **size))


class _ViT(nn.Module):
    """transformers' ViT, given flat pixels."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        images = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
        self.vit = ViTForImageClassification(ViTConfig(**size, **images))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vit(pixels.unflatten(-1, (1, 8, 8))).logits


class _LSTM(nn.Module):
    """Embedding, LSTM and a linear layer, as torch initialises them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = (
            nn.Embedding(256, 32),
            nn.LSTM(32, 64, batch_first=True),
            nn.Linear(64, 256),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


class _GroupNormResNet(nn.Module):
    """A convolution and two residual blocks with GroupNorm, as torch initialises them."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(4, channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.GroupNorm(4, channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(channels, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        stream = self.stem(pixels.unflatten(-1, (1, 8, 8)))
        for block in self.blocks:
            stream = stream + block(stream)
        return self.head(stream.mean((-2, -1)))


def _network(
    name: str,
    kind: str,
    make: Callable[[], nn.Module],
    *optimizers: str,
    batch_size: int = 32,
    criterion: Callable[[Tensor, Tensor], Tensor] = _cross_entropy,
    in_laboratory: bool = True,
) -> Network:
    return Network(
        name=name,
        make=make,
        data=kind,
        criterion=criterion,
        batch_size=batch_size,
        optimizers=optimizers,
        in_laboratory=in_laboratory,
    )


def _fcn(kind: str, parameterization: str, depth: int = 3) -> Callable[[], nn.Module]:
    return _of_laboratory(kind, "fcn", depth=depth, width=64, parameterization=parameterization)


def _lm(norm: str) -> Callable[[], nn.Module]:
    return _of_laboratory("text", "lm", depth=2, width=64, parameterization="sp", norm=norm)


NETWORKS = (
    _network("FCN-3-64", "digits", _fcn("digits", "sp"), "SGD", "Adam"),
    _network(
        "FCN-3-64 MSE", "digits", _fcn("digits", "sp"), "momentum", "AdamW", criterion=_half_squared_error
    ),
    _network(
        "CNN-3-16",
        "digits",
        _of_laboratory("digits", "cnn", depth=3, width=16, parameterization="sp"),
        "momentum",
        "Lion",
    ),
    _network(
        "WRN-10-1",
        "digits",
        _of_laboratory("digits", "wrn", depth=10, width=1, parameterization="sp"),
        "SGD",
        "AdamW",
        batch_size=16,
    ),
    _network("LM-2-64 pre-norm", "text", _lm("pre"), "AdamW", "GI-AdamW", batch_size=16),
    _network("LM-2-64 post-norm", "text", _lm("post"), "Adam", "GI-Adam", batch_size=16),
    _network("FCN-3-64 μP", "digit-pairs", _fcn("digit-pairs", "mup"), "RMSprop", "momentum"),
    _network("FCN-6-64 NTP", "digit-pairs", _fcn("digit-pairs", "ntp", depth=6), "NAdam", "SGD"),
    _network("GPT-2", "text", _gpt2, "AdamW", "momentum", batch_size=16, in_laboratory=False),
    _network("BERT", "masked text", _bert, "AdamW", "Lion", batch_size=16, in_laboratory=False),
    _network("ViT", "digits", _ViT, "AdamW", "Lion", in_laboratory=False),
    _network("LSTM", "text", _LSTM, "RMSprop", "momentum", in_laboratory=False),
    _network("GroupNorm ResNet", "digits", _GroupNormResNet, "SGD", "Adam", in_laboratory=False),
    _network("Llama", "text", _llama, "GI-AdamW", "momentum", batch_size=16, in_laboratory=False),
)
PAIRS = tuple(
    Pair(network=network, optimizer=optimizer, held_out=i % 2 == 1)
    for i, network in enumerate(NETWORKS)
    for optimizer in network.optimizers
)
