"""Ten tasks with the recipes that people use, 1,000 to 4,000 updates each: networks, optimizers, batches, decays.

No constant of EdgeWarmup had been chosen on any of them before; since then, those not held out have been looked at.
A rate of a task is that of its first optimizer; where there are two, the other's is in proportion.

Batches are fresh: digits have new noise each time, regression new inputs, and no text is read a second time often
enough to be learned by heart. So the loss on fixed samples, in evaluation mode, says how far training has come.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache

import torch
import torch.nn.functional as F
from long_networks import (
    CONTEXT,
    Autoencoder,
    LanguageModel,
    Recurrent,
    Regressor,
    ResNet,
    SwiGLU,
    ViT,
    with_adapters,
)
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adam, AdamW, Muon, Optimizer, RMSprop

from edgewise.lab import data
from edgewise.lab.configs import DataConfig

Batch = tuple[Tensor, Tensor]
MakeOptimizers = Callable[[nn.Module, float], Sequence[Optimizer]]

_NUM_EVALUATED = 512
_NOISE = {"digits": 1.0, "clean digits": 0.5}


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over all classes that are to be told, one a sample or one a position."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


@dataclass(frozen=True)
class Task:
    """A network, what it is trained on, and how."""

    name: str
    make_model: Callable[[], nn.Module]
    data: str
    make_optimizers: MakeOptimizers
    middle_rate: float  # the grid begins there
    _: KW_ONLY
    batch_size: int = 32
    num_updates: int = 1000
    decay: str = "cosine"  # or "linear", or "wsd": constant, and linear to 0 in the last fifth
    clip: float | None = None  # largest norm of the gradient
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    held_out: bool = False

    def make(self, lr: float, seed: int) -> tuple[nn.Module, Sequence[Optimizer]]:
        """Return the network as initialised from the seed, and its optimizers."""
        torch.manual_seed(seed)
        model = self.make_model()
        return model, self.make_optimizers(model, lr)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss, in the form edgewise takes."""
        inputs, targets = batch
        return self.loss_of(model(inputs), targets)

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of one training."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.num_updates):
            yield draw(self.data, self.batch_size, generator)

    def evaluation_batch(self) -> Batch:
        """Return fixed samples of the same kind, none of which is in a batch."""
        return draw(self.data, _NUM_EVALUATED, torch.Generator().manual_seed(1_000_003), held_out=True)

    def constant_loss(self) -> float:
        """Return the loss of the best constant output on these samples."""
        targets = self.evaluation_batch()[1]
        if targets.is_floating_point():
            return self.loss_of(targets.mean(0).expand_as(targets), targets).item()
        frequencies = targets.flatten().bincount() / targets.numel()
        return -torch.special.xlogy(frequencies, frequencies).sum().item()


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training moves."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def draw(kind: str, number: int, generator: torch.Generator, *, held_out: bool = False) -> Batch:
    """Draw samples of a kind: text, text backwards, digits with noise, clean digits to restore, a function."""
    if kind == "function":
        inputs = torch.rand((number, 8), generator=generator) * 2 - 1
        wave = torch.sin(4 * inputs[:, 0] * inputs[:, 1]) + inputs[:, 2:5].prod(-1) * 4
        return inputs, (wave + inputs[:, 5].abs() - inputs[:, 6] * inputs[:, 7]).unsqueeze(-1)
    if kind in _NOISE:  # held out is the noise
        dataset = _dataset("digits")
        inputs, targets = dataset.train_batch(_picked(dataset, number, generator))
        noisy = inputs + _NOISE[kind] * torch.randn(inputs.shape, generator=generator)
        return noisy, inputs if kind == "clean digits" else targets
    dataset = _dataset("stdlib-text")
    if held_out:
        inputs, targets = (part[:number] for part in dataset.test_batch())
    else:
        inputs, targets = dataset.train_batch(_picked(dataset, number, generator))
    if kind == "text":
        return inputs, targets
    backwards = torch.cat([inputs, targets[:, -1:]], -1).flip(-1)
    return backwards[:, :-1], backwards[:, 1:]


def _picked(dataset: data.Dataset, number: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(dataset.train_inputs), (number,), generator=generator)


@cache
def _dataset(name: str) -> data.Dataset:
    return data.load(DataConfig(name=name, context=CONTEXT))


def _gpt(dropout: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: LanguageModel(dropout=dropout)


def _llama() -> nn.Module:
    return LanguageModel(width=48, norm=nn.RMSNorm, mlp=SwiGLU)


def _adapted() -> nn.Module:
    """Return a language model that has read the text forwards, frozen, with adapters to read it backwards."""
    model = LanguageModel()
    model.load_state_dict(_read_forwards())
    return with_adapters(model)


@cache
def _read_forwards() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(100)
        model = LanguageModel()
        optimizer = AdamW(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(100)
        for update in range(1000):
            optimizer.param_groups[0]["lr"] = 3e-3 * min((update + 1) / 100, (1000 - update) / 900)
            optimizer.zero_grad()
            inputs, targets = draw("text", 32, generator)
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model.state_dict()


def decayed(model: nn.Module) -> list[dict[str, object]]:
    """Return two groups, of which matrices decay and gains and biases do not."""
    parameters = trained(model)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _adamw(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    return [AdamW(decayed(model), lr=lr, betas=(0.9, 0.95))]


def _adapters_adamw(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    return [AdamW(trained(model), lr=lr, weight_decay=0.0)]


def _nesterov(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    return [SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)]


def _adam(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    return [Adam(model.parameters(), lr=lr)]


def _rmsprop(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    return [RMSprop(model.parameters(), lr=lr)]


def _adafactor(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    return [Adafactor(model.parameters(), lr=lr)]


def _muon_and_adamw(model: nn.Module, lr: float) -> Sequence[Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW at a tenth of its rate for all else."""
    matrices = [p for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=lr, weight_decay=0.1),
        AdamW(others, lr=lr / 10, betas=(0.9, 0.95), weight_decay=0.0),
    ]


TASKS = (
    Task("GPT, AdamW, B = 8", _gpt(0.1), "text", _adamw, 2**-8, batch_size=8, num_updates=2000, clip=1.0),
    Task("GroupNorm ResNet, Nesterov", lambda: ResNet("group"), "digits", _nesterov, 2**-4),
    Task("GRU, Adam", Recurrent, "text", _adam, 2**-7, batch_size=16, decay="linear", clip=1.0),
    Task("regression, RMSprop", Regressor, "function", _rmsprop, 2**-9, decay="linear", loss_of=F.mse_loss),
    Task("ViT, zero head, AdamW", ViT, "digits", _adamw, 2**-8),
    Task(
        "Llama, AdamW, B = 16",
        _llama,
        "text",
        _adamw,
        2**-8,
        batch_size=16,
        num_updates=4000,
        decay="wsd",
        clip=1.0,
        held_out=True,
    ),
    Task(
        "BatchNorm ResNet, Nesterov",
        lambda: ResNet("batch"),
        "digits",
        _nesterov,
        2**-3,
        batch_size=64,
        held_out=True,
    ),
    Task("GPT, LoRA, AdamW", _adapted, "text backwards", _adapters_adamw, 2**-6, held_out=True),
    Task("GPT, Muon and AdamW", _gpt(), "text", _muon_and_adamw, 2**-5, clip=1.0, held_out=True),
    Task(
        "autoencoder, Adafactor",
        Autoencoder,
        "clean digits",
        _adafactor,
        2**-6,
        decay="linear",
        loss_of=F.mse_loss,
        held_out=True,
    ),
)
