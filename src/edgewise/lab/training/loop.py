"""Train one config and record what happened; divergence is an outcome, not an exception."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import edgewise as ew
from edgewise.lab import data, models
from edgewise.lab.configs import TEXTS, DataConfig, ModelConfig, RunConfig
from edgewise.lab.data import Dataset
from edgewise.lab.data.augmentation import augment
from edgewise.lab.data.dataset import spread
from edgewise.lab.training.cost import kept_bytes, of_samples, peak_memory, reset_peak_memory
from edgewise.lab.training.losses import Batch, LossFunction, loss_function
from edgewise.lab.training.optimizers import make_optimizer, make_schedule
from edgewise.lab.training.outcome import Evaluations, outcome_of
from edgewise.lab.training.probe import Probe

GRAPHS_KEPT = 2  # times what a gradient keeps is the graph that products with the Hessian need
_MAX_GRAPH_BYTES = 5 * 10**9  # of a WRN-16-4: 512 images of 32 × 32 take 3.9 GB, of 64 × 64 four times that


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind."""

    rows: list[dict[str, float]]  # one a step: step, lr, train_loss and the measurements
    outcome: dict[str, Any]  # the end of it: see `outcome_of`


def train(config: RunConfig, on_step: Callable[[int], None] = lambda step: None) -> RunResult:
    """Train as configured, on the CPU, deterministically for a given number of threads.

    The outcome of a run that is only the beginning of one has its `cost`: seconds of processor time a step, the first
    left out if there are others, and the bytes of memory that the process held at most.

    Args:
        config: the run.
        on_step: called with the number of finished steps.
    """
    started = time.perf_counter()
    reset_peak_memory()
    torch.manual_seed(config.seed)
    dataset = data.load(config.data)
    model = models.build(config.model, dataset)
    loss_fn = loss_function(config.loss)
    batches = _batches(config, dataset)
    lr_target = target_rate(config)
    optimizer = make_optimizer(config.optimizer, model, lr_target)
    warmup, scheduler = make_schedule(config.warmup, optimizer, config.whole_steps)
    probe = Probe(config, model, loss_fn, optimizer)
    evaluations = Evaluations(config, dataset)

    rows: list[dict[str, float]] = []
    ends = [time.process_time()]  # of the steps, which others on this machine do not make longer
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        value = loss.item()
        if math.isfinite(value):
            warmup.observe(lambda batch=batch: loss_fn(model, batch), loss=loss)  # type: ignore[misc]
        row = {"step": step, "lr": float(optimizer.param_groups[0]["lr"]), "train_loss": value}
        rows.append(row | probe.measure(step, batch, value))
        if not math.isfinite(value):
            break
        optimizer.step()
        scheduler.step()
        ends.append(time.process_time())
        if evaluations.due(step + 1):
            evaluations.look(model)
        on_step(step + 1)
    outcome = outcome_of(config, rows, model, dataset, optimizer, lr_target, evaluations)
    outcome |= {"warmup": asdict(warmup.report()), "seconds": time.perf_counter() - started}
    if config.schedule_steps is not None:
        ends = ends[1:] if len(ends) > 2 else ends
        pace = (ends[-1] - ends[0]) / max(1, len(ends) - 1)
        outcome["cost"] = {"seconds_a_step": pace, "peak_memory": peak_memory()}
    return RunResult(rows=rows, outcome=outcome)


def _batches(config: RunConfig, dataset: Dataset) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(config.seed)

    def prepared(inputs: Tensor, targets: Tensor) -> Batch:
        if not config.data.augment:
            return inputs, targets
        assert dataset.image_shape is not None  # by DataConfig
        return augment(
            inputs,
            targets,
            image_shape=dataset.image_shape,
            num_classes=dataset.num_classes,
            generator=generator,
        )

    if config.batch_size is None:
        full = dataset.train_batch()
        for _ in range(config.num_steps):
            yield prepared(*full)
        return
    for indices in batch_indices(config, dataset, generator):
        yield prepared(*dataset.train_batch(indices))


def batch_indices(
    config: RunConfig, dataset: Dataset, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Return the samples of each step's batch, drawn with replacement from a generator of the run's seed."""
    generator = generator or torch.Generator().manual_seed(config.seed)
    for _ in range(config.num_steps):
        yield torch.randint(len(dataset.train_inputs), (config.batch_size or 0,), generator=generator)


def target_rate(config: RunConfig) -> float:
    """Return η_trgt as an absolute rate."""
    if config.optimizer.lr_unit == "absolute":
        return config.optimizer.lr
    return config.optimizer.lr / initial_sharpness(config.data, config.model, config.loss, config.seed)


@functools.cache  # the cells of a phase diagram share it, and it costs as much as a hundred steps
def initial_sharpness(data_config: DataConfig, model_config: ModelConfig, loss: str, seed: int) -> float:
    """Return λ₀ on part of the training samples, of the network that a run with this seed starts from.

    The first samples, with 2,048 targets in all for a fully connected network and 512 for others, whose products cost
    more: a unit of rates has to be the same for all cells, not exact. Samples of a text, which are in its order, are
    taken from all of it, as its beginning can be far from the rest.

    Raises:
        RuntimeError: the measurement did not converge.
    """
    dataset = data.load(data_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(model_config, dataset)
    number, there = initial_samples(model_config, dataset), len(dataset.train_inputs)
    batch = dataset.train_batch(spread(number, there) if data_config.name in TEXTS else slice(number))
    loss_fn = loss_function(loss)
    initial = ew.sharpness(
        model, loss_fn, [batch], max_graph_bytes=_budget(model_config, model, loss_fn, batch)
    )
    if not initial.converged:
        raise RuntimeError(
            f"the initial sharpness that sets the learning rate is not known: {initial.status.value}."
        )
    return initial.value


def initial_samples(model_config: ModelConfig, dataset: Dataset) -> int:
    """Return how many samples the initial sharpness is measured on, if there are so many."""
    num_targets = 2048 if model_config.name == "fcn" else 512
    return max(1, num_targets // dataset.train_targets[0].numel())


def _budget(model_config: ModelConfig, model: nn.Module, loss_fn: LossFunction, batch: Batch) -> int | None:
    """Return what autograd may keep where the graph of the whole batch would be larger, as few samples tell.

    Without a budget, products of parts say where those of the whole go, so that fewer of these are needed.
    """
    limit = max_graph_bytes(model_config)
    if limit is None:
        return None
    inputs, targets = batch
    two, four = (kept_bytes(model, loss_fn, (inputs[:number], targets[:number])) for number in (2, 4))
    return limit if GRAPHS_KEPT * of_samples(len(inputs), two, four) > limit else None


def max_graph_bytes(model_config: ModelConfig) -> int | None:
    """Return what autograd may keep for the initial sharpness; `None`: any graph, as BatchNorm is of whole batches."""
    return _MAX_GRAPH_BYTES if model_config.name == "wrn" else None
