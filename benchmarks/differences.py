"""Whether differences of gradients keep what they promise: |value − truth| ≤ (hvp_error + rtol)·truth.

    OMP_NUM_THREADS=1 python benchmarks/differences.py [--cases 150] [FAMILY …]

Each family draws small random networks, losses and batches. The truth is the exact route's, in float64 at rtol 1e-8:
away from kinks that is the Hessian of ReLU networks as well. A result promises that some eigenvalue is that near: where
it is one of the next below, Lanczos has missed the top one, whatever the products.
"""

import argparse
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import edgewise as ew
from edgewise.errors import EdgewiseError

Batch = tuple[Tensor, Tensor]
Row = tuple[str, ...]
CASES = 150  # of each family
COLUMNS = (
    "family",
    "cases",
    "converged",
    "refused",
    "out of bound (Lanczos)",
    "error ÷ bound: median, largest",
    "bar: median",
    "products: mean",
)
_TRUE_RTOL = 1e-8
_RANKS = 2
_BELOW = 4  # eigenvalues below those that were asked for, one of which may have been found instead


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    model: nn.Module
    loss_fn: Callable[[nn.Module, Batch], Tensor]
    batch: Batch
    rtol: float
    num: int = 1
    adam: float | None = None  # ε of the optimizer whose next update is measured
    seed: int = 0


@dataclass
class Tally:
    """What became of a family's cases."""

    cases: int = 0
    refused: int = 0
    provisional: int = 0  # another status than CONVERGED
    outside: int = 0
    missed: int = 0  # by the exact route as well
    ratios: list[float] = field(default_factory=list)
    bars: list[float] = field(default_factory=list)
    products: list[int] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """Return what the table says."""
        converged = len(self.ratios)
        return (
            name,
            str(self.cases),
            str(converged),
            f"{self.refused} by an error, {self.provisional} by their status",
            f"{self.outside} ({self.missed})",
            f"{statistics.median(self.ratios):.2f}, {max(self.ratios):.2f}" if converged else "",
            f"{statistics.median(self.bars):.1e}" if converged else "",
            f"{statistics.fmean(self.products):.1f}" if self.products else "",
        )


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - F.one_hot(batch[1], model(batch[0]).shape[-1])).square().sum(-1).mean()


class Attention(nn.Module):
    """A causal block of a language model: attention and an MLP, each behind LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (samples, length, width)."""
        q, k, v = self.qkv(self.norms[0](x)).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.squeeze(1))
        return x + self.mlp(self.norms[1](x))


def draw(*choices: Any) -> Any:
    """Return one of the choices."""
    return choices[int(torch.randint(len(choices), ()))]


def labelled(inputs: Tensor, classes: int) -> Batch:
    return inputs, torch.randint(classes, inputs.shape[:1])


def mlp(*activations: type[nn.Module], normed: bool = False) -> tuple[nn.Module, Batch]:
    features, width, classes = draw(4, 10), draw(8, 16, 32), draw(3, 10)
    layers: list[nn.Module] = []
    for size in (features, *[width] * draw(0, 1, 2)):
        layers += [nn.Linear(size, width), *[nn.LayerNorm(width)] * normed, draw(*activations)()]
    model = nn.Sequential(*layers, nn.Linear(width, classes))
    return model, labelled(draw(0.3, 1.0, 3.0) * torch.randn(draw(16, 64, 256), features), classes)


def embedding() -> tuple[nn.Module, Batch]:
    tokens, width = draw(16, 32, 64), draw(8, 16)
    model = nn.Sequential(
        nn.Embedding(tokens, width), nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
    )
    nn.init.normal_(model[0].weight, std=0.02)
    return model, labelled(torch.randint(tokens, (draw(32, 128),)), tokens)


def language_model() -> tuple[nn.Module, Batch]:
    tokens, width = draw(16, 64), draw(8, 16)
    blocks = [Attention(width) for _ in range(draw(1, 2))]
    model = nn.Sequential(nn.Embedding(tokens, width), *blocks, nn.LayerNorm(width), nn.Linear(width, tokens))
    nn.init.normal_(model[0].weight, std=draw(0.02, 0.02, 1.0))
    text = torch.randint(tokens, (draw(4, 8), 17)) % draw(tokens, 5)
    return model, (text[:, :-1], text[:, 1:])


def conv_net() -> tuple[nn.Module, Batch]:
    channels, activation = draw(4, 8), draw(nn.ReLU, nn.GELU, nn.SiLU)
    norm = draw(nn.BatchNorm2d, nn.Identity)
    model = nn.Sequential(
        *(
            nn.Conv2d(2, channels, 3, padding=1),
            norm(channels),
            activation(),
            draw(nn.MaxPool2d, nn.AvgPool2d)(2),
        ),
        *(nn.Conv2d(channels, channels, 3, padding=1), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(channels, 4),
    )
    return model, labelled(torch.randn(draw(8, 32), 2, 8, 8), 4)


def any_network() -> tuple[nn.Module, Batch]:
    return draw(embedding, language_model, conv_net, smooth_mlp, relu_mlp, normed_mlp)()


def any_smooth_network() -> tuple[nn.Module, Batch]:
    return draw(embedding, language_model, smooth_mlp, normed_mlp)()


smooth_mlp = partial(mlp, nn.GELU, nn.Tanh, nn.SiLU)
relu_mlp = partial(mlp, nn.ReLU, nn.LeakyReLU)
normed_mlp = partial(mlp, nn.GELU, nn.SiLU, normed=True)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where cases are drawn from."""

    network: Callable[[], tuple[nn.Module, Batch]]
    scales: tuple[float, ...] = (1.0,)  # of the loss
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    nums: tuple[int, ...] = (1,)
    adams: tuple[float | None, ...] = (None,)
    most_updates: int = 40
    sharded: bool = False

    def case(self, seed: int) -> Case:
        """Return the network of a seed, after some updates of AdamW."""
        torch.manual_seed(seed)
        model, batch = self.network()
        scale, dtype = draw(*self.scales), draw(*self.dtypes)
        base = cross_entropy if batch[1].ndim > 1 else draw(cross_entropy, cross_entropy, squared_error)
        loss_fn = lambda m, b: scale * base(m, b)  # noqa: E731
        optimizer = torch.optim.AdamW(model.parameters(), lr=draw(1e-3, 1e-2))
        for _ in range(draw(0, self.most_updates // 4, self.most_updates)):
            optimizer.zero_grad()
            base(model, batch).backward()
            optimizer.step()
        optimizer.zero_grad()
        model.to(dtype)
        if batch[0].is_floating_point():
            batch = batch[0].to(dtype), batch[1]
        rtol, num, adam = draw(1e-3, 1e-3, 1e-2), draw(*self.nums), draw(*self.adams)
        return Case(model=model, loss_fn=loss_fn, batch=batch, rtol=rtol, num=num, adam=adam, seed=seed)


FAMILIES = {
    "embeddings of deviation 0.02, LayerNorm": Family(network=embedding),
    "LayerNorm MLP": Family(network=normed_mlp),
    "ReLU MLP": Family(network=relu_mlp),
    "smooth MLP (GELU, tanh, SiLU)": Family(network=smooth_mlp),
    "language models": Family(network=language_model),
    "conv nets": Family(network=conv_net),
    "tiny losses": Family(network=any_network, scales=(1e-3, 1e-6, 1e-9)),
    "nearly fitted": Family(network=smooth_mlp, most_updates=200),
    "large losses": Family(network=any_network, scales=(1e3, 1e6)),
    "preconditioned, Adam": Family(network=any_network, adams=(1e-8, 1e-4, 1e-2)),
    "the top 2 or 4": Family(network=any_network, nums=(2, 4)),
    "float64": Family(network=any_network, dtypes=(torch.float64,), nums=(1, 1, 3), adams=(None, None, 1e-4)),
    "FSDP2, smooth": Family(network=any_smooth_network, sharded=True),
    "FSDP2, ReLU": Family(network=relu_mlp, sharded=True),
}


def measured(case: Case, **options: Any) -> ew.SharpnessResult:
    """Return the sharpness of a case, or its preconditioned sharpness, plain or sharded."""
    arguments = case.model, case.loss_fn, [case.batch]
    options = {"rtol": case.rtol, "num": case.num, "seed": case.seed, **options}
    if case.adam is None:
        return ew.sharpness(*arguments, **options)
    optimizer = torch.optim.Adam(case.model.parameters(), eps=case.adam)
    return ew.preconditioned_sharpness(*arguments, optimizer, **options)


def leaves_bound(found: Tensor, truth: Tensor, bound: float) -> Tensor:
    """Return |value − truth| ÷ (bound·truth) of each value; an eigenvalue of zero is known to rounding of the top."""
    return (found - truth).abs() / (bound * truth.abs() + 1e-6 * truth[0].abs())


def add(tally: Tally, case: Case, found: ew.SharpnessResult | EdgewiseError) -> str:
    """Count a case; return a line about it if it has left its bound."""
    tally.cases += 1
    if isinstance(found, EdgewiseError):
        tally.refused += 1
        return ""
    tally.products.append(found.num_hvps)
    if not found.converged:
        tally.provisional += 1
        return ""
    exact = {"hvp": "reverse", "dtype": torch.float64}
    truth = measured(case, **exact, rtol=_TRUE_RTOL, max_hvps=2000, seed=case.seed + 1)
    bound = found.hvp_error + case.rtol
    ratio = float(leaves_bound(found.values, truth.values, bound).max())
    tally.bars.append(found.hvp_error)
    if ratio <= 1:
        tally.ratios.append(ratio)
        return ""
    tally.outside += 1
    truth = measured(case, **exact, rtol=_TRUE_RTOL, num=min(case.num + _BELOW, len(truth.vectors)))
    off = (found.values[:, None] - truth.values).abs().min(dim=1).values
    missed = bool((off <= bound * found.values.abs()).all())
    tally.missed += missed
    if not missed:
        tally.ratios.append(ratio)
    value, true = found.values.tolist(), truth.values.tolist()
    return f"seed {case.seed}: {value} of {true}, bar {found.hvp_error:.2g}, {'missed' if missed else 'off'}"


def attempt(case: Case) -> ew.SharpnessResult | EdgewiseError:
    """Return the sharpness by differences, or the error that refuses it."""
    try:
        return measured(case, hvp="difference")
    except EdgewiseError as error:
        return error


def alone(family: Family, num: int) -> Iterator[tuple[Case, ew.SharpnessResult | EdgewiseError]]:
    """Yield each case and what differences say of it."""
    for seed in range(num):
        yield (case := family.case(seed)), attempt(case)


def on_two_ranks(
    family: Family, name: str, num: int
) -> Iterator[tuple[Case, ew.SharpnessResult | EdgewiseError]]:
    """Yield each case, on the samples of both ranks, and what they say of it when its parameters are sharded."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found"
        torch.multiprocessing.spawn(_rank, (name, num, port, file), nprocs=_RANKS)
        results = torch.load(file, weights_only=False)
    for seed, found in zip(range(num), results, strict=True):
        yield family.case(seed), found


def _rank(rank: int, name: str, num: int, port: int, file: Path) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=_RANKS)
    mesh = init_device_mesh("cpu", (_RANKS,))
    results = []
    for seed in range(num):
        case = FAMILIES[name].case(seed)
        case = replace(case, batch=tuple(part.chunk(_RANKS)[rank] for part in case.batch))
        for module in case.model[:-1]:
            if list(module.parameters()):
                fully_shard(module, mesh=mesh)
        fully_shard(case.model, mesh=mesh)
        results.append(attempt(case))
    if rank == 0:
        torch.save(results, file)
    dist.barrier()
    dist.destroy_process_group()


def rows(
    names: list[str] | None = None, num: int = CASES, show: Callable[[str], object] | None = None
) -> Iterator[Row]:
    """Yield a row for each family, and one of all."""
    every = Tally()
    for name in names or FAMILIES:
        family, tally = FAMILIES[name], Tally()
        pairs = on_two_ranks(family, name, num) if family.sharded else alone(family, num)
        for case, found in pairs:
            line = add(tally, case, found)
            if line and show is not None:
                show(f"  {line}")
        yield tally.row(name)
        for key, value in vars(tally).items():
            setattr(every, key, getattr(every, key) + value)
    yield every.row("all")


def main() -> None:
    """Print the table, and the cases that have left their bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=CASES, help="of each family")
    parser.add_argument("families", nargs="*", help="words that their names hold")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [n for n in FAMILIES if not given.families or any(word in n for word in given.families)]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows(names, given.cases, partial(print, flush=True)):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
