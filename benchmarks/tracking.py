"""Sharpness followed step by step: products, true error, and the same from power iterations.

Each training is followed for 200 steps. At each step `ew.sharpness(…, start=previous)` is set beside a reference that
converges the top two pairs to 1e-3 from its own subspace and a random vector, so that its error is of order 1e-6 and a
crossing of the two is not missed.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import peers
import torch
from tasks import Task
from torch import Tensor, nn
from torch.optim import Optimizer

import edgewise as ew
from edgewise.curvature.lanczos import random_directions, top_eigenpairs
from edgewise.curvature.operators import SymmetricOperator
from edgewise.curvature.results import EigenResult
from edgewise.lab import data, models
from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import recipe
from edgewise.lab.training import (
    Batch,
    LossFunction,
    half_squared_error,
    loss_function,
    make_optimizer,
    make_schedule,
)

Row = tuple[str, str, str]
NUM_STEPS = 200
RTOL = 1e-2
POWER_ITERATIONS = 5
PEER_STEPS = (25, 75, 125, 175)


@dataclass
class Followed:
    """What one way of following cost and missed, a number a step."""

    products: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, products: int, value: float, true: float) -> None:
        """Add a step."""
        self.products.append(products)
        self.errors.append(abs(value - true) / true)

    def rows(self, what: str) -> list[Row]:
        """Return the table's rows."""
        errors = sorted(self.errors)
        return [
            (what, "products a step: median, mean", _pair(self.products, "{:.0f}", "{:.2f}")),
            (
                what,
                "true relative error: median, 99th percentile, largest",
                f"{statistics.median(errors):.1e}, {errors[int(0.99 * len(errors)) - 1]:.1e}, {errors[-1]:.1e}",
            ),
        ]


def _pair(numbers: list[int], median: str, mean: str) -> str:
    return f"{median.format(statistics.median(numbers))}, {mean.format(statistics.mean(numbers))}"


def rows() -> Iterator[Row]:
    """Yield what following costs in figure 1 (SGD, full batch) and figure 4 (LM, Adam and GI-Adam)."""
    for config in recipe("fig1").configs("demo"):
        if (config.model.parameterization, config.warmup.steps) in {("mup", 1), ("mup", 64), ("sp", 64)}:
            what = f"fig1 demo, {config.model.parameterization}, T_wrm = {config.warmup.steps}, every step"
            yield from follow(config, preconditioned=False)[0].rows(what)
    yield from against_peers()
    for config in recipe("fig4").configs("demo"):
        if config.warmup.steps == 128 and config.optimizer.lr in {0.001, 0.016}:
            what = f"LM, {config.optimizer.name}, η {config.optimizer.lr:g}, T_wrm = 128, preconditioned, every step"
            tracked, power = follow(config, preconditioned=True)
            yield from tracked.rows(what)
            yield from power.rows(f"{what}: {POWER_ITERATIONS} warm power iterations")


def against_peers() -> Iterator[Row]:
    """Yield the time of a followed measurement over that of the best peer, at some steps of figure 1."""
    for config in recipe("fig1").configs("demo"):
        if config.warmup.steps != 64:
            continue
        what = f"fig1 demo, {config.model.parameterization}, T_wrm = 64"
        start: ew.SharpnessResult | None = None
        for step, (model, loss_fn, _, batch) in enumerate(_training(config)):
            if step in PEER_STEPS:
                yield (
                    f"{what}, step {step}",
                    "gradients: followed, best peer; ratio",
                    _times(model, batch, start),
                )
            start = ew.sharpness(model, loss_fn, [batch], start=start, rtol=RTOL)


def _times(model: nn.Module, batch: Batch, start: ew.SharpnessResult | None) -> str:
    """Return the cost of a followed measurement, and of the peer that is cheapest within the same true error."""
    task = Task(name="", model=model, criterion=half_squared_error, batch=batch, sgd_lr=0.0)
    outcomes = peers.sweep(task, peers.true_sharpness(task), seeds=(0,))
    theirs = [
        best
        for library, _, _ in peers.LIBRARIES
        if library != "edgewise"
        and (best := peers.cheapest([o for o in outcomes if o.method.library == library])) is not None
    ]

    def measure(task: Task, seed: int) -> float:
        return ew.sharpness(task.model, task.loss_fn, [task.batch], start=start, rtol=RTOL, seed=seed).value

    ours = peers.Method("edgewise", measure, {"start": "previous"}, False)
    costs = peers.time_in_gradients(task, [ours, *(o.method for o in theirs)], peers.SEEDS)
    best = min((o.method for o in theirs), key=lambda method: costs[method])
    return f"{costs[ours]:.1f}, {costs[best]:.1f} ({best}); {costs[ours] / costs[best]:.2f}"


def follow(config: RunConfig, *, preconditioned: bool) -> tuple[Followed, Followed]:
    """Return what edgewise and power iterations cost and missed along the training of `config`."""
    tracked, power = Followed(), Followed()
    start: ew.SharpnessResult | None = None
    reference, vector = None, None
    for model, loss_fn, optimizer, batch in _training(config):
        measure: Callable[..., ew.SharpnessResult] = (
            (lambda o=optimizer, **kw: ew.preconditioned_sharpness(model, loss_fn, [batch], o, **kw))  # noqa: B023
            if preconditioned
            else (lambda **kw: ew.sharpness(model, loss_fn, [batch], **kw))  # noqa: B023
        )
        result = measure(start=start, rtol=RTOL)
        with ew.hessian(model, loss_fn, [batch], optimizer=optimizer if preconditioned else None) as operator:
            reference = _reference(operator, reference)
            value, vector = _power_iterations(operator, vector)
        if start is not None:  # the first step is cold
            tracked.add(result.num_hvps, result.value, reference.value)
            power.add(POWER_ITERATIONS, value, reference.value)
        start = result
    return tracked, power


def _training(config: RunConfig) -> Iterator[tuple[nn.Module, LossFunction, Optimizer, Batch]]:
    """Yield before each step of a training; the batch is the first one, for the curvature of one function."""
    torch.manual_seed(config.seed)
    dataset = data.load(config.data)
    model = models.build(config.model, dataset)
    loss_fn = loss_function(config.loss)
    generator = torch.Generator().manual_seed(config.seed)
    num = len(dataset.train_inputs)

    def batch() -> Batch:
        full = config.batch_size is None
        return dataset.train_batch(
            None if full else torch.randint(num, (config.batch_size,), generator=generator)
        )

    probe = batch()
    lr = config.optimizer.lr
    if config.optimizer.lr_unit == "1/sharpness":
        lr /= ew.sharpness(model, loss_fn, [probe]).value
    optimizer = make_optimizer(config.optimizer, model, lr)
    _, schedule = make_schedule(config.warmup, optimizer, config.num_steps)
    for _ in range(NUM_STEPS + 1):
        yield model, loss_fn, optimizer, probe
        optimizer.zero_grad()
        loss_fn(model, batch()).backward()
        optimizer.step()
        schedule.step()


def _reference(operator: SymmetricOperator, previous: EigenResult | None) -> EigenResult:
    generator = torch.Generator().manual_seed(1)
    start = random_directions(operator, 1, generator)
    if previous is not None:
        start = torch.cat([previous.subspace.T, start])
    return top_eigenpairs(operator, num=2, rtol=1e-3, max_products=200, start=start, generator=generator)


def _power_iterations(operator: SymmetricOperator, vector: Tensor | None) -> tuple[float, Tensor]:
    """Return the Rayleigh quotient of the last of a few iterations, and the vector they end at."""
    if vector is None:
        vector = random_directions(operator, 1, torch.Generator().manual_seed(0))[0]
    value = 0.0
    for _ in range(POWER_ITERATIONS):
        vector = vector / vector.norm()
        product = operator.matvec(vector)
        value, vector = float(vector @ product), product
    return value, vector


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in rows():
        print(f"| {' | '.join(row)} |", flush=True)
