"""EdgeWarmup beside linear warmup on the GPT of 124 million parameters, as `gpu.py edge` trains it.

The recipe is what people use: AdamW (0.9, 0.95), decay 0.1 on matrices alone, gradients clipped at 1, bfloat16
autocast, cosine decay. EdgeWarmup has a ceiling 16 times the usual rate; linear warmup of each length has that rate,
half and twice of it. What is in the file of runs is not trained again, so that an interrupted comparison goes on with
the run it was at.
"""

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from gpu_network import GPT, TINY_GPT, GPTSize, gpt, loss_fn
from long_tasks import decayed
from stored import Stored
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

import edgewise as ew
from edgewise.lab import data
from edgewise.lab.configs import DataConfig

EDGE, LINEAR = "EdgeWarmup", "linear"
CEILING = 16.0  # times the usual rate
MULTIPLES = (0.5, 1.0, 2.0)  # of the usual rate, for linear warmup
LENGTHS = (0.0, 0.02, 0.1, 0.3)  # of linear warmup, in shares of the run; 0 is one update
_HELD_OUT = 1 / 20  # of a file of tokens: its end


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all runs have in common."""

    size: GPTSize
    num_updates: int
    usual_rate: float
    num_seeds: int
    num_held_out: int  # sequences
    micro_batches: int = 1
    tokens: Path | None = None  # flat uint16, as nanoGPT writes; without, the bytes of Python's own source

    @property
    def name(self) -> str:
        """What makes runs comparable. How many micro-batches there are does not."""
        text = "source bytes" if self.tokens is None else self.tokens.name
        shape = f"GPT-{self.size.depth}-{self.size.width}, B = {self.size.batch} × {self.size.context}"
        return f"{shape}, {self.num_updates} updates, {text}"


FULL = Setup(size=replace(GPT, batch=32), num_updates=5_000, usual_rate=6e-4, num_seeds=3, num_held_out=256)
TINY = Setup(size=TINY_GPT, num_updates=200, usual_rate=4e-3, num_seeds=1, num_held_out=32)


@dataclass(frozen=True, kw_only=True)
class GPTRun:
    """One training; what ended not finite has an infinite loss."""

    setup: str
    way: str
    lr: float  # target
    seed: int
    length: int  # updates of warmup
    final: float  # loss on the held-out tokens
    held: float  # rate that EdgeWarmup ended at; NaN: training ended before, or another way
    forwards: int
    step_backs: int
    noise: float  # deviation of a batch's loss about its neighbours', in the last eighth of the run
    seconds: float
    observing: float  # seconds in `observe`


class GPTRuns(Stored[GPTRun]):
    """The rows in a file, trained where they are missing."""

    def __init__(self, path: Path) -> None:
        super().__init__(GPTRun, path)

    def get(
        self, setup: Setup, text: "Text", way: str, lr: float, seed: int, length: int | None = None
    ) -> GPTRun:
        """Return the row, trained if it is not in the file; EdgeWarmup has a length afterwards only."""
        for run in self.read():
            same = (run.setup, run.way, run.seed) == (setup.name, way, seed)
            if same and math.isclose(run.lr, lr) and length in (None, run.length):
                return run
        run = train(setup, text, way, lr, seed, length)
        self.append(run)
        print(f"{way:10} {lr:9.3g} {run.length:6} updates, seed {seed}: {run.final:.4f}", flush=True)
        return run


class Text:
    """Tokens to train on, and fixed ones from elsewhere, of the tokens' file or of other source files.

    Raises:
        ValueError: the file is too short, or has tokens beyond the vocabulary.
    """

    def __init__(self, setup: Setup) -> None:
        self._size, num = setup.size, setup.num_held_out
        self._tokens: np.ndarray
        if setup.tokens is None:
            dataset = data.load(DataConfig(name="stdlib-text", context=setup.size.context))
            self._tokens = dataset.train_inputs.flatten().numpy()
            self.held_out = torch.cat([dataset.test_inputs, dataset.test_targets[:, -1:]], 1)[:num].long()
        else:
            everything = np.memmap(setup.tokens, dtype=np.uint16, mode="r")
            end = int(len(everything) * (1 - _HELD_OUT))
            self._tokens = everything[:end]
            last = len(everything) - setup.size.context - 1
            if last < end:
                raise ValueError(f"{setup.tokens} is too short: its last twentieth holds no sequence.")
            self.held_out = self._sequences(np.linspace(end, last, num).astype(np.int64), everything)
        self.num_tokens = len(self._tokens)

    def batches(self, seed: int, number: int) -> Iterator[Tensor]:
        """Yield (B, T + 1) tokens from anywhere."""
        generator = np.random.default_rng(seed)
        for _ in range(number):
            starts = generator.integers(len(self._tokens) - self._size.context, size=self._size.batch)
            yield self._sequences(starts, self._tokens)

    def _sequences(self, starts: np.ndarray, tokens: np.ndarray) -> Tensor:
        cut = np.stack([tokens[start : start + self._size.context + 1] for start in starts])
        if cut.max() >= self._size.vocabulary:  # on a GPU the embedding says nothing that helps
            raise ValueError(f"a token is {cut.max()}, the vocabulary has {self._size.vocabulary}.")
        return torch.from_numpy(cut.astype(np.int64))


def compare(setup: Setup, out: Path) -> None:
    """Train what is missing, and print what all runs came to."""
    text, runs = Text(setup), GPTRuns(out)
    read = setup.num_updates * setup.size.batch * setup.size.context / text.num_tokens
    print(f"{setup.name}: {text.num_tokens:,} tokens, read {read:.2g} times, {_device_name()}\n", flush=True)
    lengths = sorted({max(1, round(share * setup.num_updates)) for share in LENGTHS})
    seeds = range(setup.num_seeds)
    rows = [[runs.get(setup, text, EDGE, CEILING * setup.usual_rate, seed) for seed in seeds]]
    for multiple, length in itertools.product(MULTIPLES, lengths):
        rate = multiple * setup.usual_rate
        rows.append([runs.get(setup, text, LINEAR, rate, seed, length) for seed in seeds])
    print_table(rows)


def print_table(rows: list[list[GPTRun]]) -> None:
    """Print a row for each way, target and length: means over the seeds, or all of them."""
    best = min(_mean(runs) for runs in rows if runs[0].way == LINEAR)
    print(
        "\n| | target | updates of warmup | rate held | loss, ± over seeds | over the best linear one | forwards "
        "| of the clock | noise of a batch |\n|---|---|---|---|---|---|---|---|---|"
    )
    for runs in rows:
        edge = runs[0].way == EDGE
        finite = len(runs) > 1 and math.isfinite(_mean(runs))
        spread = f" ± {statistics.stdev([run.final for run in runs]):.4f}" if finite else ""
        cells = [
            runs[0].way,
            f"{runs[0].lr:.3g}",
            _all(f"{run.length:,}" for run in runs),
            _all(f"{run.held:.3g}" for run in runs) if edge else "",
            f"{_mean(runs):.4f}{spread}",
            f"{_mean(runs) / best - 1:+.2%}",
            _all(str(run.forwards) for run in runs) if edge else "",
            f"{sum(r.observing for r in runs) / sum(r.seconds for r in runs):.2%}" if edge else "",
            f"{statistics.mean(run.noise for run in runs):.4f}",
        ]
        print(f"| {' | '.join(cells)} |")


def _mean(runs: list[GPTRun]) -> float:
    return statistics.mean(run.final for run in runs)


def _all(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def train(setup: Setup, text: Text, way: str, lr: float, seed: int, length: int | None) -> GPTRun:
    """Train once; `length` is that of linear warmup."""
    device = _device()
    torch.manual_seed(seed)
    model = gpt(setup.size).to(device)
    optimizer = AdamW(decayed(model), lr=lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    edge = ew.EdgeWarmup(optimizer, num_steps=setup.num_updates) if way == EDGE else None
    warmup = edge or ew.LinearWarmup(optimizer, warmup_steps=length or 1)
    schedule = warmup.then_until(setup.num_updates, "cosine")
    started = _now()
    losses, observing = _train(setup, text, seed, model, optimizer, schedule, edge)
    seconds = _now() - started
    held = (edge.lr_held or lr) if edge and edge.finished else math.nan
    return GPTRun(
        setup=setup.name,
        way=way,
        lr=lr,
        seed=seed,
        length=edge.length if edge else length or 1,
        final=_held_out_loss(setup, text, model) if math.isfinite(losses[-1]) else math.inf,
        held=held,
        forwards=edge.num_forwards if edge else 0,
        step_backs=edge.report().num_step_backs if edge else 0,
        noise=_noise(losses[-len(losses) // 8 :]),
        seconds=seconds,
        observing=observing,
    )


def _train(
    setup: Setup,
    text: Text,
    seed: int,
    model: nn.Module,
    optimizer: AdamW,
    schedule: LRScheduler,
    edge: ew.EdgeWarmup | None,
) -> tuple[list[float], float]:
    """Return the loss of each update, up to one that is not finite, and the seconds that observing them took."""
    update_loss = ew.UpdateLoss(model, _mixed_loss)
    share, losses, observing = 1 / setup.micro_batches, [], 0.0
    for batch in text.batches(seed, setup.num_updates):
        optimizer.zero_grad()
        for micro_batch in batch.to(_device()).chunk(setup.micro_batches):
            loss = share * _mixed_loss(model, micro_batch)
            loss.backward()
            update_loss.add(micro_batch, loss, share=share)
        losses.append(update_loss.value.item())
        if not math.isfinite(losses[-1]):
            break
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if edge is not None:
            before = _now()
            edge.observe(update_loss)
            observing += _now() - before
        optimizer.step()
        schedule.step()
    return losses, observing


def _mixed_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the loss under autocast, a float32: cross-entropy is not computed in less."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        return loss_fn(model, tokens)


@torch.no_grad()
def _held_out_loss(setup: Setup, text: Text, model: nn.Module) -> float:
    parts = text.held_out.to(_device()).split(max(1, setup.size.batch // setup.micro_batches))
    loss = sum(len(part) * _mixed_loss(model, part).item() for part in parts) / len(text.held_out)
    return loss if math.isfinite(loss) else math.inf


def _noise(losses: list[float]) -> float:
    """Return the deviation of a loss about its neighbours': what falls slowly is no noise."""
    changes = [after - before for before, after in itertools.pairwise(losses)]
    return math.sqrt(statistics.fmean(c * c for c in changes) / 2) if changes else math.nan


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
