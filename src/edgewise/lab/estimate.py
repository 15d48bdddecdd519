"""What planned runs would cost, before any is trained: operations, time, memory and disk.

Operations of a gradient are counted on a few samples and are linear in their number; its time is measured here, in one
thread, with the optimizer's update. What is added up is steps and the products with the Hessian that measurements of
curvature take. One has the operations of two gradients, as its graph is that of a gradient, differentiated once more;
its time is measured, too. The time of evaluation, of initial sharpness and of what warmups look at is left out.
"""

import itertools
import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import edgewise as ew
from edgewise.lab import data, models
from edgewise.lab.configs import DataConfig, RunConfig
from edgewise.lab.data import Dataset, sources
from edgewise.lab.engines.batched_training import is_batchable
from edgewise.lab.ladders import Ladder
from edgewise.lab.results.runs import stored_bytes
from edgewise.lab.training import (
    GRAPHS_KEPT,
    initial_samples,
    kept_bytes,
    loss_function,
    make_optimizer,
    max_graph_bytes,
    of_samples,
)
from edgewise.lab.trial import kind_of

# Of a measurement that starts from the one before, on the same batch or on another; means over stored runs.
PRODUCTS, PRODUCTS_ON_BATCHES = 4, 7
GRADIENTS_A_PRODUCT = 2  # in operations, about
GPU, GPU_FLOPS, GPU_SHARE = "NVIDIA A100", 19.5e12, 0.3  # its peak in float32, and how much of it is had

_TIMED_FLOPS = 1e10  # of a step that is timed: larger batches are timed in part
_TIMED = 3  # times; the quickest counts
_LIBRARIES = 700e6  # bytes of a process that has trained nothing
_GRAPHS = 8  # times what a gradient keeps is held while one is differentiated again, as measured at the paper's scale
_BYTES_A_TOKEN = 4  # of text, about
_COPIES = 3  # of a prepared data set while it is read


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """A gradient of a kind of run, and the update that follows."""

    num_parameters: int
    flops: float
    seconds: float  # of one core, here
    product_seconds: float  # the same, of a product with the Hessian; 0 where no curvature is measured
    kept: float  # bytes that the forward pass keeps for the backward pass
    kept_at_first: float  # the same, of the batch that the initial sharpness is measured on


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the runs of one kind come to."""

    kind: RunConfig
    num_runs: int
    num_steps: int  # of all of them
    num_parameters: int
    flops: float
    core_seconds: float
    memory: float  # bytes, of a process that trains one
    stored: float  # bytes on disk
    on_gpu: bool  # whether an engine trains them there

    @property
    def gpu_seconds(self) -> float:
        """Seconds on `GPU`, if all its operations were done at `GPU_SHARE` of its peak."""
        return self.flops / (GPU_SHARE * GPU_FLOPS)


def estimates(planned: dict[str, list[Ladder]], finished: Collection[str] = ()) -> list[Estimate]:
    """Return what is to be trained, kind by kind; runs that figures share count once.

    Args:
        planned: figure id → its runs.
        finished: ids of those that need no training.

    Raises:
        DataError: a data set of one's own cannot be loaded.
    """
    runs = {c.run_id: c for ladders in planned.values() for c in itertools.chain.from_iterable(ladders)}
    by_kind: dict[RunConfig, list[RunConfig]] = {}
    for run_id, config in runs.items():
        if run_id not in finished:
            by_kind.setdefault(kind_of(config), []).append(config)
    return [_estimate(kind, configs) for kind, configs in by_kind.items()]


def _estimate(kind: RunConfig, configs: list[RunConfig]) -> Estimate:
    gradient = gradient_of(kind)
    num_steps, products = sum(config.num_steps for config in configs), sum(map(_products, configs))
    states = {"sgd": bool(kind.optimizer.momentum), "lion": 1}.get(kind.optimizer.name, 2)
    graphs = gradient.kept * (_GRAPHS if products else 1)
    if kind.optimizer.lr_unit == "1/sharpness":
        limit = (max_graph_bytes(kind.model) or math.inf) / GRAPHS_KEPT
        graphs = max(graphs, _GRAPHS * min(gradient.kept_at_first, limit))
    memory = 4 * gradient.num_parameters * (2 + states) + graphs
    return Estimate(
        kind=kind,
        num_runs=len(configs),
        num_steps=num_steps,
        num_parameters=gradient.num_parameters,
        flops=gradient.flops * (num_steps + products * GRADIENTS_A_PRODUCT),
        core_seconds=gradient.seconds * num_steps + gradient.product_seconds * products,
        memory=_LIBRARIES + _data_bytes(kind.data) + memory,
        stored=sum(map(stored_bytes, configs)),
        on_gpu=is_batchable(kind),
    )


def _products(config: RunConfig) -> int:
    """Return about how many products with the Hessian the measurements of a run take."""
    measurements = -(-config.num_steps // config.measure_every) * len(_curvatures(config))
    return measurements * (PRODUCTS if config.batch_size is None else PRODUCTS_ON_BATCHES)


def _curvatures(config: RunConfig) -> set[str]:
    return {"sharpness", "preconditioned_sharpness"}.intersection(config.measure)


def gradient_of(kind: RunConfig) -> Gradient:
    """Count and time a gradient on the batch of this kind of run."""
    size = kind.batch_size or kind.data.num_samples or _num_train(kind.data)
    with torch.random.fork_rng(devices=[]), _one_thread():
        model = models.build(kind.model, samples(kind.data, 2))
        counts = [_counted(kind, model, number) for number in (2, 4)]
        # Both are a + b·samples: scaled weights of a parameterization are kept once, whatever the batch.
        flops, kept = _at(size, counts)
        _, kept_at_first = _at(initial_samples(kind.model, samples(kind.data, 2)), counts)
        timed = max(1, min(size, int(size * _TIMED_FLOPS / flops)))
        seconds = min(_timed(kind, model, timed) for _ in range(_TIMED)) * size / timed
        product_seconds = _timed_product(kind, model, timed) * size / timed if _curvatures(kind) else 0.0
    return Gradient(
        num_parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        seconds=seconds,
        product_seconds=product_seconds,
        kept=kept,
        kept_at_first=kept_at_first,
    )


def _at(number: int, counts: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the counts of so many samples, from those of two and of four."""
    flops, kept = (of_samples(number, *pair) for pair in zip(*counts, strict=True))
    return flops, kept


def samples(config: DataConfig, number: int) -> Dataset:
    """Return a data set of so many training samples: made up where the real one has to be prepared."""
    if config.name not in sources.SOURCES:
        return data.load(config).first(number)
    source = sources.SOURCES[config.name]
    if source.pixels is None:
        tokens = torch.randint(sources.VOCABULARY, (number, config.context))
        return _made_up(tokens, tokens, sources.VOCABULARY)
    shape = (3, source.pixels, source.pixels)
    labels = torch.zeros(number, dtype=torch.int64)
    return _made_up(torch.randn(number, 3 * source.pixels**2), labels, source.num_classes or 0, shape)


def _made_up(
    inputs: torch.Tensor, targets: torch.Tensor, classes: int, shape: tuple[int, int, int] | None = None
) -> Dataset:
    return Dataset(
        train_inputs=inputs,
        train_targets=targets,
        test_inputs=inputs,
        test_targets=targets,
        num_classes=classes,
        image_shape=shape,
    )


def _counted(kind: RunConfig, model: nn.Module, number: int) -> tuple[float, float]:
    """Return the operations of a gradient on so many samples, and the bytes that its forward pass keeps."""
    batch, loss_fn = samples(kind.data, number).train_batch(), loss_function(kind.loss)
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels of attention are not counted, its plain products are
        kept = kept_bytes(model, loss_fn, batch)
        with FlopCounterMode(display=False) as counter:
            loss_fn(model, batch).backward()
    return float(counter.get_total_flops()), float(kept)


def _timed(kind: RunConfig, model: nn.Module, number: int) -> float:
    """Return the seconds of a step on so many samples, the update included."""
    batch = samples(kind.data, number).train_batch()
    optimizer = make_optimizer(kind.optimizer, model, 1e-9)
    optimizer.zero_grad()
    started = time.process_time()
    loss_function(kind.loss)(model, batch).backward()
    optimizer.step()
    return time.process_time() - started


def _timed_product(kind: RunConfig, model: nn.Module, number: int) -> float:
    """Return the seconds of a product with the Hessian of so many samples, once its graph is there."""
    batch = samples(kind.data, number).train_batch()
    with ew.hessian(model, loss_function(kind.loss), [batch]) as operator:
        vector = torch.ones(operator.size, dtype=operator.dtype)
        operator.matvec(vector)
        seconds = []
        for _ in range(_TIMED):
            started = time.process_time()
            operator.matvec(vector)
            seconds.append(time.process_time() - started)
    return min(seconds)


def _num_train(config: DataConfig) -> int:
    source = sources.SOURCES.get(config.name)
    if source is None:
        return len(data.load(config).train_inputs)
    return source.samples[0] or int(1e6 * source.megabytes / _BYTES_A_TOKEN / config.context)


def _data_bytes(config: DataConfig) -> float:
    """Return what a process holds of the data set at most."""
    if config.name in sources.SOURCES:
        source = sources.SOURCES[config.name]
        pixels = 3 * (source.pixels or 0) ** 2
        return _COPIES * (4.0 * pixels * sum(source.samples) if pixels else 1e6 * source.megabytes)
    dataset = data.load(config)
    return float(sum(t.nbytes for t in (dataset.train_inputs, dataset.test_inputs, dataset.train_targets)))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
