"""Train one config and record what happened; divergence is an outcome, not an exception."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import edgewise as ew
from edgewise.curvature.follow import Follower
from edgewise.lab import data, models
from edgewise.lab.configs import DECAYED, DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.data import Dataset
from edgewise.lab.data.augmentation import augment
from edgewise.lab.parameterization import parameter_groups
from edgewise.lab.ri_adam import RIAdam
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.schedules import cosine

Batch = tuple[Tensor, Tensor]  # inputs, targets
LossFunction = Callable[[nn.Module, Batch], Tensor]

_MEASURE_BELOW = 1e6  # times the initial loss: beyond, the run is diverging and curvature means nothing
_EVALUATION_SIZE = 512


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind."""

    rows: list[dict[str, float]]  # one a step: step, lr, train_loss and the measurements
    outcome: dict[str, Any]  # the end of it: see `outcome_of`


def train(config: RunConfig, on_step: Callable[[int], None] = lambda step: None) -> RunResult:
    """Train as configured, on the CPU, deterministically for a given number of threads.

    Args:
        config: the run.
        on_step: called with the number of finished steps.
    """
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    dataset = data.load(config.data)
    model = models.build(config.model, dataset)
    loss_fn = loss_function(config.loss)
    batches = _batches(config, dataset)
    lr_target = target_rate(config)
    optimizer = make_optimizer(config.optimizer, model, lr_target)
    warmup, scheduler = make_schedule(config.warmup, optimizer, config.num_steps)
    probe = _Probe(config, model, loss_fn, optimizer)

    rows: list[dict[str, float]] = []
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
        on_step(step + 1)
    outcome = outcome_of(config, rows, model, dataset, lr_target)
    outcome |= {"warmup": asdict(warmup.report()), "seconds": time.perf_counter() - started}
    return RunResult(rows=rows, outcome=outcome)


def loss_function(name: str) -> LossFunction:
    """Return `loss_fn(model, (inputs, targets))`: the mean over samples (and positions)."""
    loss_of_outputs = _LOSSES[name]

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return loss_of_outputs(model(inputs), targets)

    return loss_fn


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of −log softmax(outputs)[target], or of its mean over the shares of the classes."""
    if targets.is_floating_point():
        return F.cross_entropy(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of ½‖outputs − one-hot(target)‖², or of ½‖outputs − shares of the classes‖²."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[-1])
    return 0.5 * (outputs - targets).square().sum(-1).mean()


_LOSSES = {"xent": cross_entropy, "mse": half_squared_error}


def make_optimizer(config: OptimizerConfig, model: nn.Module, lr: float) -> Optimizer:
    """Return the optimizer with target rate `lr`, with μP's groups for the Adam family and Lion."""
    groups = parameter_groups(model, lr=lr, adaptive=config.name != "sgd")
    if config.name == "sgd":
        return SGD(groups, lr=lr, momentum=config.momentum)
    if config.name == "lion":
        from lion_pytorch import Lion  # noqa: PLC0415 - the other optimizers need torch and NumPy alone

        return Lion(groups, lr=lr, betas=config.betas, weight_decay=config.weight_decay)
    options: dict[str, Any] = {"lr": lr, "betas": config.betas, "eps": config.eps}
    if config.name in DECAYED:
        options["weight_decay"] = config.weight_decay
    if config.name not in ("radam", "nadam"):  # which have no fused kernels
        options["fused"] = True
    return _ADAMS[config.name](groups, **options)


_ADAMS: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "gi-adam": ew.GIAdam,
    "gi-adamw": ew.GIAdamW,
    "ri-adam": RIAdam,
    "radam": RAdam,
    "nadam": NAdam,
}


def make_schedule(config: WarmupConfig, optimizer: Optimizer, num_steps: int) -> tuple[Warmup, LRScheduler]:
    """Return the warmup, which observes, and the whole schedule, which steps."""
    warmup: Warmup
    if config.kind == "linear":
        warmup = ew.LinearWarmup(optimizer, warmup_steps=config.steps, lr_init=config.lr_init)
    elif config.kind == "catapult":
        warmup = ew.CatapultWarmup(optimizer)
    else:
        warmup = ew.EdgeWarmup(optimizer, num_steps=num_steps)
    if config.decay == "none":
        return warmup, warmup

    # CosineAnnealingLR has one eta_min for all groups; μP's groups each go to a tenth of their own rate.
    def decay(update: int) -> float:
        return cosine(update, num_steps=num_steps - warmup.length, final=0.1)

    return warmup, warmup.then(LambdaLR(optimizer, decay))


class _Probe:
    """Follows the configured curvatures, each measurement starting from the one before."""

    def __init__(
        self, config: RunConfig, model: nn.Module, loss_fn: LossFunction, optimizer: Optimizer
    ) -> None:
        self._config, self._optimizer = config, optimizer
        self._follower = Follower(model, optimizer, loss_fn, rtol=config.measure_rtol)
        self._initial_loss = math.nan

    def measure(self, step: int, batch: Batch, loss: float) -> dict[str, float]:
        """Return the columns of this step's row; none on steps between measurements."""
        if step == 0:
            self._initial_loss = loss
        if step % self._config.measure_every or not loss < _MEASURE_BELOW * self._initial_loss:
            return {}
        columns: dict[str, float] = {}
        for name in self._config.measure:
            if name in _NORMS:
                columns[name] = _NORMS[name](self._optimizer)
                continue
            result = self._follower.measure(name, [batch])
            columns |= {
                name: result.value,
                f"{name}_residual": result.residual,
                f"{name}_converged": float(result.converged),
                f"{name}_hvps": result.num_hvps,
            }
        return columns


def _gradient_norm(optimizer: Optimizer) -> float:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def _second_moment_norm(optimizer: Optimizer) -> float:
    """Return the norm of v as the last update left it; 0 before the first."""
    moments = [state["exp_avg_sq"] for state in optimizer.state.values() if "exp_avg_sq" in state]
    return float(nn.utils.get_total_norm(moments)) if moments else 0.0


_NORMS = {"gradient_norm": _gradient_norm, "second_moment": _second_moment_norm}


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
    more: a unit of rates has to be the same for all cells, not exact.

    Raises:
        RuntimeError: the measurement did not converge.
    """
    dataset = data.load(data_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(model_config, dataset)
    targets_each = dataset.train_targets[0].numel()
    num_targets = 2048 if model_config.name == "fcn" else 512
    batch = dataset.train_batch(slice(max(1, num_targets // targets_each)))
    initial = ew.sharpness(model, loss_function(loss), [batch])
    if not initial.converged:
        raise RuntimeError(
            f"the initial sharpness that sets the learning rate is not known: {initial.status.value}."
        )
    return initial.value


def outcome_of(
    config: RunConfig, rows: list[dict[str, float]], model: nn.Module, dataset: Dataset, lr_target: float
) -> dict[str, Any]:
    """Return how the run ended; losses are not finite where it diverged, and `num_steps` counts the updates made."""
    trained = math.isfinite(rows[-1]["train_loss"])
    test_loss, test_accuracy = evaluate(model, config.loss, dataset.test_batch())
    return {
        "diverged": not (trained and math.isfinite(test_loss)),
        "lr_target": lr_target,
        "num_steps": len(rows) if trained else len(rows) - 1,
        "train_loss": rows[-1]["train_loss"],
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
        "num_classes": dataset.num_classes,
        "guess_loss": guess_loss(config.loss, dataset),
        "device": dataset.train_inputs.device.type,
    }


@torch.no_grad()
def evaluate(model: nn.Module, loss: str, batch: Batch) -> tuple[float, float]:
    """Return mean loss and accuracy over the samples of a large batch, of the model in eval mode."""
    total_loss = total_accuracy = 0.0
    with _eval_mode(model):
        for inputs, targets in zip(*(part.split(_EVALUATION_SIZE) for part in batch), strict=True):
            share = len(targets) / len(batch[1])
            outputs = model(inputs)
            total_loss += share * _LOSSES[loss](outputs, targets).item()
            total_accuracy += share * (outputs.argmax(-1) == targets).float().mean().item()
    return total_loss, total_accuracy


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put each module back into its own mode afterwards: a part of the model may be frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def guess_loss(loss: str, dataset: Dataset) -> float:
    """Return the test loss of the best constant output: the class frequencies of the training targets."""
    counts = torch.bincount(dataset.train_targets.flatten().long(), minlength=dataset.num_classes)
    frequencies = (counts + 1) / (counts + 1).sum()  # one added, for classes that only the test data have
    outputs = frequencies.log() if loss == "xent" else frequencies
    targets = dataset.test_batch()[1]
    return _LOSSES[loss](outputs.expand(*targets.shape, -1), targets).item()
