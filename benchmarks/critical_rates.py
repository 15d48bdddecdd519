"""The critical learning rate along training: forwards of both searches, and brackets against a float64 scan.

Three networks are trained with four optimizers. Before each step the critical rate of the update is searched from the
last one found: on the batch trained on, which is the same at each step ("fixed") or fresh each time
("mini-batch"). The paper's search starts from the same guess. Forwards are those beside the gradient's own.
"""

import copy
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from tasks import Task, conv_task, digits_task, small_lm_task
from torch import Tensor, nn
from torch.optim import Optimizer

import edgewise as ew
from edgewise.lab.training import Batch

Row = tuple[str, str, str]
NUM_STEPS = 100  # of each training, a search before each
SCANNED = 6  # every so many-th bracket is scanned
SCAN_POINTS = 33

OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter], float], Optimizer]] = {
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr),
    "SGD-M": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
    "AdamW": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr),
    "GI-AdamW": lambda parameters, lr: ew.GIAdamW(parameters, lr=lr),
}


@dataclass
class Cost:
    """What searches along trainings took."""

    forwards: list[int] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, found: ew.CriticalLRResult) -> None:
        """Count one search."""
        self.forwards.append(found.num_forwards)
        self.statuses[found.status.name] += 1

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forwards + other.forwards, self.statuses + other.statuses)

    def __str__(self) -> str:
        ordered = sorted(self.forwards)
        last = ordered[int(0.99 * len(ordered))]
        ends = ", ".join(f"{num} {name}" for name, num in self.statuses.most_common())
        return f"{statistics.mean(ordered):.2f}, {last}, {ordered[-1]} ({ends})"


@dataclass
class Measured:
    """One training's costs."""

    secant: Cost = field(default_factory=Cost)
    paper: Cost = field(default_factory=Cost)
    scanned: int = 0
    held: int = 0  # brackets in which the scan crosses the loss

    def __add__(self, other: "Measured") -> "Measured":
        return Measured(
            self.secant + other.secant,
            self.paper + other.paper,
            self.scanned + other.scanned,
            self.held + other.held,
        )


def follow(task: Task, optimizer: Optimizer, batches: Iterator[Batch]) -> Measured:
    """Train, and search before each step, but for the first from the last result."""
    measured, guess = Measured(), None
    for step in range(NUM_STEPS):
        batch = next(batches)
        found = ew.critical_lr(task.model, optimizer, task.loss_fn, batch, guess=guess)
        if guess is not None:
            measured.secant.add(found)
            measured.paper.add(
                ew.critical_lr(task.model, optimizer, task.loss_fn, batch, guess=guess, method="paper")
            )
        if found.status is ew.Status.FOUND:
            guess = found
            if step % SCANNED == 0:
                measured.scanned += 1
                measured.held += crosses(task, optimizer, batch, found.bracket)
        optimizer.zero_grad()
        task.loss_fn(task.model, batch).backward()
        optimizer.step()
    return measured


def crosses(task: Task, optimizer: Optimizer, batch: Batch, bracket: tuple[float, float]) -> bool:
    """Whether the loss of real steps in float64 goes from below to above its value within the bracket."""
    task.model.zero_grad()
    model, stepper = copy.deepcopy((task.model, optimizer))
    model.double()
    for state in stepper.state.values():
        state.update({k: v.double() for k, v in state.items() if isinstance(v, Tensor) and k != "step"})
    inputs, targets = batch
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    loss = task.loss_fn(model, (inputs, targets))
    loss.backward()
    before = [p.detach().clone() for p in model.parameters()]
    saved = copy.deepcopy(stepper.state_dict())
    risen = []
    for i in range(SCAN_POINTS):
        stepper.load_state_dict(copy.deepcopy(saved))
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old)
        low, high = bracket
        for group in stepper.param_groups:
            group["lr"] = low * (high / low) ** (i / (SCAN_POINTS - 1))
        stepper.step()
        with torch.no_grad():
            risen.append(not task.loss_fn(model, (inputs, targets)).item() <= loss.item())
    return not risen[0] and risen[-1]


def fixed(task: Task) -> Iterator[Batch]:
    while True:
        yield task.batch


def minibatches(task: Task, size: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    inputs, targets = task.batch
    while True:
        drawn = torch.randint(len(inputs), (size,), generator=generator)
        yield inputs[drawn], targets[drawn]


def rows() -> list[Row]:
    """Return a row for each network, optimizer and kind of batch, and the totals."""
    found = []
    for kind, size in (("fixed batch", None), ("mini-batches of 32", 32)):
        total = Measured()
        for make in (digits_task, conv_task, small_lm_task):
            for name, optimizer_of in OPTIMIZERS.items():
                task = make()
                rate = task.sgd_lr if name.startswith("SGD") else 1e-3
                rate = rate / 10 if name == "SGD-M" else rate
                optimizer = optimizer_of(task.model.parameters(), rate)
                batches = fixed(task) if size is None else minibatches(task, size)
                measured = follow(task, optimizer, batches)
                found += table(f"{task.name}, {name} at {rate:g}, {kind}", measured)
                print(found[-2], found[-1], flush=True)
                total += measured
        found += table(f"all {len(total.secant.forwards):,} searches, {kind}", total)
        found.append(
            (
                f"all brackets scanned in float64, {kind}",
                "hold a rise",
                f"{total.held} of {total.scanned}",
            )
        )
    return found


def table(what: str, measured: Measured) -> list[Row]:
    unit = "forwards: mean, 99th percentile, most"
    return [(f"{what}: secant", unit, str(measured.secant)), (f"{what}: paper", unit, str(measured.paper))]


if __name__ == "__main__":
    for row in rows():
        print("| " + " | ".join(row) + " |")
