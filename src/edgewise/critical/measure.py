"""The critical learning rate: where one step of the optimizer starts to raise the loss.

The direction is whatever the optimizer's own `step()` does, taken under isolation; the search sees only the loss
as a function of the learning rate.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import (
    TRAINING_ORDER,
    a_batch,
    a_closure,
    a_loss_function,
    a_loss_value,
    a_model,
    an_optimizer,
    known_name,
    positive_number,
)
from edgewise.critical.along import along_update, current_gradients, slope_along
from edgewise.critical.landscape import BatchesLoss
from edgewise.critical.results import CriticalLRResult
from edgewise.critical.searching import Method, Searching, search_along
from edgewise.isolation import isolated
from edgewise.loss.checks import LossFunction
from edgewise.loss.objective import Objective
from edgewise.optimizers.groups import rate_ratios
from edgewise.optimizers.update import Update, check_steps_alone
from edgewise.ranks import reshard, sharded_like


def critical_lr(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFunction,
    batch: Any = None,
    *,
    batches: Iterable[Any] | None = None,
    gradient: Literal["compute", "current"] = "compute",
    guess: float | CriticalLRResult | None = None,
    max_lr: float | None = None,
    rtol: float = 1 / 16,
    tolerance: float | None = None,
    max_forwards: int = 60,
    method: Method = "secant",
) -> CriticalLRResult:
    """Find the critical learning rate of the optimizer's next update on this batch.

        η_c = min{η > 0 : L(θ + ηu) > L(θ)}

    with u the update of the optimizer's own `step()` over its learning rate, momentum and weight decay included. On a
    quadratic η_c = −2 g·u / uᵀHu. This is the largest stable learning rate for this update on this batch, not a best
    learning rate.

    The search follows φ(η) = (L(θ + ηu) − L(θ))/η, whose value at 0 is g·u, known from the gradient, and which is
    affine on a quadratic. It goes by secants on log scales: two or three evaluations from a good guess. One more is
    made at θ, which must give the same loss again; where that differs by a little, the noise floor says so. A loss that
    is not finite counts as raised. The bracket holds one crossing; an earlier one, between two rates that were tried,
    may be missed, see `Status.MULTIPLE_CROSSINGS`.

    The loss is measured without autocast, in float32 or in the parameters' own precision if that is wider, over all
    ranks that train the model. All evaluations see the same dropout masks and buffers.

    Args:
        model: any module; unchanged afterwards, bit for bit.
        optimizer: any whose `step()` needs no closure, on parameters of the model; unchanged afterwards. Groups keep
            the ratios of their learning rates.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        batch: anything `loss_fn` takes but `None`; a loss that takes no data is given `()`, e.g.
        batches: in place of `batch`, several: L is their mean weighted by size, and `interval` says how well it
            is known.
        gradient: "compute" takes the gradient of `loss_fn` on the batch or batches. "current" uses `.grad` as it
            stands, after unscaling and clipping; after accumulation over micro-batches, pass all of these.
        guess: where a rise is expected, > 0; the current rate if not given. Of an earlier result for this loss, `lr`
            and `exponent` are expected, and the loss is taken to repeat.
        max_lr: where the search stops looking, > 0; no limit if not given.
        rtol: width of the bracket, relative, in (0, 1]: upper/lower − 1 ≤ rtol.
        tolerance: δ > 0: narrow the bracket also until the loss rises by at most δ|L(θ)| at its upper end, unless it
            jumps (width 2⁻¹⁰); any rise if not given.
        max_forwards: budget of loss evaluations, ≥ 1; two are made at least.
        method: "secant" is the search above. "paper" is that of Kalra & Barkeshli (2024, section 5): the rate is
            doubled until the loss rises, then bisected.

    Returns:
        `CriticalLRResult`; where it is not `ok`, its status says why there is no critical rate to report.

    Raises:
        TypeError: the optimizer needs a closure, a parameter is complex, or an argument has the wrong type.
        ValueError: an argument is out of range, both `batch` and `batches` are given, the optimizer has other
            parameters than the model, or "current" finds no gradient.
        LossError: the loss at the current parameters is not a finite scalar, depends on none of them, or is another
            one when it is evaluated again; the message then names the module that differs.

    Examples:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.02)
        >>> batch = torch.tensor([[2.0]])
        >>> found = critical_lr(model, sgd, lambda model, x: 0.5 * model(x).square().mean(), batch)
        >>> low, high = found.bracket
        >>> low <= 2 / 4 <= high  # H = 4, so that η_c = 2/H
        True
        >>> found.num_forwards
        4

    Reference: arXiv 2406.09405, section 5 and appendix.
    """
    a_model(model, TRAINING_ORDER)
    optimizer = an_optimizer("optimizer", optimizer, TRAINING_ORDER, has_rates=True)
    a_loss_function(loss_fn, TRAINING_ORDER)
    known_name("gradient", gradient, ("compute", "current"))
    _check_batch(batch, batches)
    current = _current_rate(optimizer)
    asked = Searching(
        guess=guess, max_lr=max_lr, rtol=rtol, tolerance=tolerance, max_forwards=max_forwards, method=method
    )
    check_steps_alone(optimizer)
    _check_members(optimizer, model)
    gradients = current_gradients(optimizer) if gradient == "current" else None

    with isolated(model, optimizer) as snapshot:
        objective = Objective(model, loss_fn, [batch] if batches is None else batches, snapshot=snapshot)
        parameters = list(objective.originals.values())
        values = None
        if gradients is None:
            values, gradients = _computed_gradients(objective, optimizer)
        loss = BatchesLoss(objective, values)
        first, ranks = asked.first(current), objective.ranks
        update = Update(
            optimizer, parameters, gradients, snapshot, ranks=ranks, first=first, dtype=objective.dtype
        )
        slope = slope_along(gradients, update.at(first), parameters, ranks)
        del gradients  # as large as the parameters
        result = search_along(asked, loss, update, slope, current=current, doubtful=gradient == "current")
        return replace(result, interval=loss.interval(*result.bracket)) if result.ok else result


def search_critical_lr(
    optimizer: Optimizer,
    closure: Callable[[], Tensor],
    asked: Searching,
    *,
    known: float | None = None,
) -> CriticalLRResult:
    """Do what `critical_lr(gradient="current")` documents, with the loss as a closure.

    Modules are found as they run. Parameters and inputs stay in the precision they have: in half precision, the noise
    floor tells whether that was enough. To see that the loss repeats costs no forward where the closure gives the
    `known` loss, of an earlier evaluation; where it does not, `UnrepeatableError` is raised.
    """
    optimizer = an_optimizer("optimizer", optimizer)
    a_closure(closure)
    a_loss_value("known", known)
    current = _current_rate(optimizer)
    first = asked.first(current)
    with along_update(optimizer, closure, first=first, known=known) as (loss, update, slope_at):
        return search_along(asked, loss, update, slope_at(first), current=current, doubtful=True)


def _current_rate(optimizer: Optimizer) -> float:
    """Return the first group's rate, the unit of what is searched, or raise where it is none."""
    rate_ratios(optimizer)  # raises where there are none
    return positive_number(
        "the learning rate of the first parameter group", float(optimizer.param_groups[0]["lr"])
    )


def _check_batch(batch: Any, batches: Iterable[Any] | None) -> None:
    """Raise unless there is one batch, or a collection of them."""
    if batch is not None and batches is not None:
        raise ValueError("got both batch and batches: pass one batch, or a list of several as batches=.")
    if batch is None and batches is None:
        raise TypeError(
            "got neither batch nor batches: pass the batch that loss_fn takes, or several as batches=."
        )
    a_batch(batch)


def _check_members(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise if the optimizer trains what is not the model's: the loss along its update would leave that out."""
    reshard(model)
    own = set(model.parameters())
    for i, group in enumerate(optimizer.param_groups):
        foreign = [p for p in group["params"] if p not in own and p.requires_grad]
        if foreign:
            raise ValueError(
                f"parameter group {i} of the optimizer holds {len(foreign)} parameters that are not the model's: pass "
                "the model that holds them all, such as a module around the model and the loss's own parameters."
            )


def _computed_gradients(
    objective: Objective, optimizer: Optimizer
) -> tuple[list[float], dict[Tensor, Tensor]]:
    """Return the losses of the batches, and the gradient as `.grad` would hold it."""
    members = {p for group in optimizer.param_groups for p in group["params"]}
    values, gradients = objective.values_and_gradients()
    pairs = zip(objective.originals.values(), gradients, strict=True)
    return values, {p: sharded_like(p, g.to(p.dtype)) for p, g in pairs if g is not None and p in members}
