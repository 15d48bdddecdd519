"""The entry point `inspect`: what is given is checked, each question measured, all of it said in lines."""

import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from edgewise.advice.findings import QUESTIONS, Finding
from edgewise.advice.gi_adam import gi_adam_findings
from edgewise.advice.look import look_at
from edgewise.advice.oddities import odd_findings
from edgewise.advice.path import outcome_of, path_findings
from edgewise.advice.result import InspectionResult
from edgewise.advice.stability import critical_of, edge_of, stability_findings
from edgewise.advice.subject import Subject, a_subject
from edgewise.advice.trial import LEAST_UPDATES
from edgewise.arguments import a_function, nonnegative_count, positive_count
from edgewise.loss.checks import LossFunction
from edgewise.optimizers.stability import stability_limit

OnProgress: TypeAlias = Callable[
    [int, int, str], None
]  # updates' worth of work done, of how much, and what now
_LOOK, _EDGE, _GI_ADAM, _CRITICAL = 12, 40, 40, 30  # work, in updates, about


def inspect(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    max_updates: int = 200,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> InspectionResult:
    """Find what rate a model bears, whether it needs warmup, and what is odd; nothing is changed.

        η·λ^{P⁻¹H} beside the optimizer's stability limit,  η_c over a few batches,  a trial of the optimizer itself

    The curvature is measured on the first batch, the critical rate and the noise of gradients on the first four. Then
    comes a trial of `max_updates` updates: first as `EdgeWarmup` lets the rate rise, far beyond the one it has, then
    short runs on from there, each to another rate and down to 0. They tell the suggested rate, the largest one that
    trains, and how long a warmup is needed. All of it happens under isolation: parameters, optimizer, buffers and
    random numbers are brought back, bit for bit.

    Each line of advice has its number, what that means and what to do. What could not be measured advises nothing.

    Args:
        model: any module; measured in the train or eval mode it is in. Unchanged afterwards, bit for bit.
        optimizer: any whose `step()` needs no closure, on parameters of the model; unchanged afterwards. Groups keep
            the ratios of their learning rates; the first group's rate is the one that is judged.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batches: a list of batches or another re-iterable, such as a data loader, which may shuffle. Where they run out
            before the trial is over, they are read from the start: with `max_updates` of them, none comes twice.
        max_updates: of the trial, ≥ 20; all else costs about as much as 100 more.
        seed: of the start vector of the curvature, ≥ 0.
        on_progress: called with the work done so far, all of the work (both in updates, about), and what comes now.

    Returns:
        `InspectionResult`: rates, length of the warmup, and a line for each number.

    Raises:
        TypeError: an argument has the wrong type, batches can be read only once, a parameter is complex, or the
            optimizer needs a closure.
        ValueError: an argument is out of range, no parameter requires a gradient, the optimizer is another model's, the
            first group's rate is 0, a group maximizes, there is no batch, or several processes train the model.
        LossError: the loss at the current parameters is not a finite scalar, or depends on none of them.

    Examples:
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        >>> x = torch.randn(64, 32, 4)
        >>> loss_fn = lambda model, x: (model(x) - x.sum(1, keepdim=True)).square().mean()
        >>> result = inspect(model, optimizer, loss_fn, list(x), max_updates=60)
        >>> result.ok, 0.05 < result.lr_suggested < result.lr_largest
        (True, True)
    """
    if positive_count("max_updates", max_updates) < LEAST_UPDATES:
        raise ValueError(
            f"max_updates must be {LEAST_UPDATES} or greater, got {max_updates}: fewer updates show no rate."
        )
    nonnegative_count("seed", seed)
    if on_progress is not None:
        a_function("on_progress", on_progress, "(done, total, what comes now)", count=3)
    subject = a_subject(model, optimizer, loss_fn, batches, seed)
    limit = stability_limit(subject.optimizer)
    started = time.monotonic()
    work = _Work(_LOOK + _EDGE + _GI_ADAM + _CRITICAL + max_updates, on_progress)

    work.begin("losses and gradients", _LOOK)
    look = look_at(subject)
    work.begin("curvature", _EDGE)
    edge = edge_of(subject, limit)
    work.begin("a first step of GI-Adam", _GI_ADAM)
    lines = gi_adam_findings(subject, edge)
    work.begin("critical rate", _CRITICAL)
    critical = critical_of(subject)
    lines += stability_findings(subject, edge, critical)
    lines += odd_findings(subject, look, edge, critical)
    work.begin("trial", max_updates)
    outcome = outcome_of(subject, max_updates, work.reach)
    lines += path_findings(subject, outcome)
    work.end()
    return InspectionResult(
        lr=subject.rate,
        lr_suggested=outcome.lr,
        lr_largest=outcome.lr_largest,
        warmup_steps=outcome.warmup_steps,
        findings=_in_order(lines),
        trial=outcome.as_dict(),
        subject=_described(subject),
        num_updates=round(outcome.cost),
        seconds=time.monotonic() - started,
    )


class _Work:
    """Says how far the work has come."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total, self._on_progress = total, on_progress
        self._before = self._size = self._done = 0
        self._doing = ""

    def begin(self, doing: str, size: int) -> None:
        """Go on to another part, of so much work."""
        self._before += self._size
        self._size, self._done, self._doing = size, 0, doing
        self._tell()

    def reach(self, done: int, total: int) -> None:
        """So much of a part is done."""
        self._done = round(self._size * min(done / total, 1.0))
        self._tell()

    def end(self) -> None:
        """All is done."""
        self._before, self._size, self._done = self._total, 0, 0
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._before + self._done, self._total, self._doing)


def _in_order(lines: list[Finding]) -> tuple[Finding, ...]:
    """Return the lines, question by question; of what may be odd, what is odd first."""
    questions, levels = list(QUESTIONS), ["bad", "notice", "unknown", "good"]

    def place(line: Finding) -> tuple[int, int]:
        return questions.index(line.question), levels.index(line.level) if line.question == "odd" else 0

    return tuple(sorted(lines, key=place))


def _described(subject: Subject) -> dict[str, Any]:
    """Return what was inspected, in words and numbers."""
    parameters = list(subject.model.parameters())
    return {
        "model": type(subject.model).__name__,
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trained": sum(p.numel() for p in parameters if p.requires_grad),
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in parameters}),
        "device": str(parameters[0].device),
        "optimizer": type(subject.optimizer).__name__,
        "lr": subject.rate,
        "num_groups": len(subject.optimizer.param_groups),
        "is_fresh": subject.is_fresh,
        "batches": type(subject.batches).__name__,
        "num_batches_looked_at": len(subject.few),
        "torch": torch.__version__,
        "edgewise": metadata.version("edgewise"),
    }
