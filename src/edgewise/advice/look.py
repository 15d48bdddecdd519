"""The losses and gradients of a few batches at the parameters as they are: what several questions are answered by."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise.advice.subject import Subject
from edgewise.isolation import isolated
from edgewise.loss.checks import calling, checked_loss, forward_only
from edgewise.loss.objective import Objective
from edgewise.loss.repeats import first_unrepeatable, repeated


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is seen at one point; gradients are those of the mean over the batches."""

    losses: list[float]  # of each batch
    dtype: torch.dtype  # of the loss as loss_fn returns it
    variation: float  # of the loss of the first batch, evaluated again from the same state; 0: it repeats
    culprit: str  # the module whose output varies; '' for none
    first: dict[
        str, Tensor | None
    ]  # gradient of the first batch, by parameter; None: the loss does not depend on it
    without: list[str]  # parameters without gradient: no batch's loss depends on them
    zero: list[str]  # parameters whose gradient is zero on every batch
    signal: float  # ‖E g‖², estimated without bias; may be negative where noise dominates
    noise: float  # E‖g − E g‖² of the gradient g of one batch; NaN: there is one batch only
    lost: (
        float | None
    )  # share of the entries with an update that one step does not change; None: no step was possible

    @property
    def loss(self) -> float:
        """The mean over the batches."""
        return math.fsum(self.losses) / len(self.losses)


def look_at(subject: Subject) -> Look:
    """Evaluate each of the few batches, with its gradient, and the first one again."""
    with isolated(subject.model, subject.optimizer) as snapshot:
        losses: list[float] = []
        first: dict[str, Tensor | None] = {}
        total: dict[str, Tensor] = {}
        squares = 0.0
        seen: set[str] = set()
        for batch in subject.few:
            objective = Objective(subject.model, subject.loss_fn, [batch], snapshot=snapshot)
            values, gradients = objective.values_and_gradients()
            named = dict(zip(objective.originals, gradients, strict=True))
            losses.append(values[0])
            first = first or named
            for name, gradient in named.items():
                if gradient is not None:
                    seen.add(name)
                    squares += float(gradient.double().square().sum())
                    total[name] = gradient + total[name] if name in total else gradient.clone()
        snapshot.rewind()
        variation, culprit = _variation(subject, losses[0])
        snapshot.rewind()
        with calling("loss_fn on the first batch", subject.few[0]):  # in the precision of the user's own
            plain = checked_loss(subject.loss_fn(subject.model, subject.few[0]).detach(), "the first batch")
        snapshot.rewind()
        lost = _lost_to_rounding(subject, first)
    number = len(losses)
    mean_square = sum(float((part.double() / number).square().sum()) for part in total.values())
    noise = (squares / number - mean_square) * number / (number - 1) if number > 1 else math.nan
    return Look(
        losses=losses,
        dtype=plain.dtype,
        variation=variation,
        culprit=culprit,
        first=first,
        without=[name for name in subject.names if name not in seen],
        zero=[name for name in subject.names if name in total and not bool(total[name].any())],
        signal=mean_square - noise / number if number > 1 else mean_square,
        noise=noise,
        lost=lost,
    )


def _variation(subject: Subject, known: float) -> tuple[float, str]:
    """Return by how much the first batch's loss varies at one point, and what is to blame."""
    with isolated(subject.model) as snapshot:
        objective = Objective(subject.model, subject.loss_fn, subject.few[:1], snapshot=snapshot)
        _, variation = repeated(known, objective.value)
        if variation <= objective.noise * abs(known):
            return 0.0, ""
        with forward_only():
            return variation, first_unrepeatable(subject.model, objective.value)


def _lost_to_rounding(subject: Subject, gradients: dict[str, Tensor | None]) -> float | None:
    """Return the share of entries with a gradient, in half precision, that the optimizer's step leaves as they are."""
    named = dict(subject.model.named_parameters())
    coarse = {
        name: gradient
        for name, gradient in gradients.items()
        if gradient is not None and name in subject.names and named[name].dtype.itemsize < 4
    }
    if not coarse:
        return None
    with isolated(subject.model, subject.optimizer) as snapshot:
        for name, gradient in coarse.items():
            named[name].grad = gradient.to(named[name].dtype)
        type(subject.optimizer).step(subject.optimizer)  # the class's: schedulers patch the instance's
        moved = kept = 0
        for name, gradient in coarse.items():
            due = gradient != 0
            same = named[name].detach() == snapshot.saved(named[name])
            kept += int((due & same).sum())
            moved += int((due & ~same).sum())
    return kept / (kept + moved) if kept + moved else None
