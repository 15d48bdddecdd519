"""Would GI-Adam help: the preconditioned sharpness of a first step with v₀ = 0, and with v₀ = g₀²."""

import warnings
from typing import Any

import torch
from torch.optim import Adam, AdamW, Optimizer

from edgewise.advice.findings import Finding, unmeasured
from edgewise.advice.stability import MOST_PRODUCTS, RTOL, Edge
from edgewise.advice.subject import Subject
from edgewise.curvature import SharpnessResult, preconditioned_sharpness
from edgewise.errors import EdgewiseError
from edgewise.optimizers import GIAdam, GIAdamW
from edgewise.optimizers.stability import stability_limit

_TWINS: dict[type[Optimizer], tuple[type[Optimizer], type[Optimizer]]] = {
    Adam: (Adam, GIAdam),
    AdamW: (AdamW, GIAdamW),
    GIAdam: (Adam, GIAdam),
    GIAdamW: (AdamW, GIAdamW),
}
_NAME = "preconditioned sharpness of a first step"
_SHARED = ("lr", "betas", "eps", "weight_decay", "amsgrad")  # options, of both


def gi_adam_findings(subject: Subject, edge: Edge) -> list[Finding]:
    """Return the line on GI-Adam; none where the optimizer is not of Adam's family."""
    kind = type(subject.optimizer)
    if kind not in _TWINS:
        return []
    adam_class, gi_class = _TWINS[kind]
    adam, gi_adam = (_twin(subject.optimizer, cls) for cls in (adam_class, gi_class))
    try:
        known = edge.result if subject.is_fresh and edge.limit.ok else None
        first = (
            known if kind is adam_class and known is not None and known.ok else _measure(subject, adam, known)
        )
        second = _measure(subject, gi_adam, first)
    except (EdgewiseError, torch.OutOfMemoryError) as error:
        return [unmeasured("gi_adam", _NAME, str(error))]
    limit = stability_limit(adam)
    evidence = {
        "v0_zero": first.value,
        "v0_gradient": second.value,
        "residuals": [first.residual, second.residual],
        "status": [first.status.name, second.status.name],
        "num_hvps": first.num_hvps + second.num_hvps,
        "limit_at_first_step": limit.initial,
        "lr": subject.rate,
    }
    if not (first.ok and second.ok and limit.ok):
        worst = next(result.status for result in (first, second, limit) if not result.ok)
        return [unmeasured("gi_adam", _NAME, worst.value, **evidence)]
    return [_told(subject, first.value, second.value, limit.initial, gi_class, evidence)]


def _told(
    subject: Subject,
    zero: float,
    gradient: float,
    limit: float,
    gi_class: type[Optimizer],
    evidence: dict[str, Any],
) -> Finding:
    shares = [subject.rate * value / limit for value in (zero, gradient)]
    shown = (
        f"{zero:.3g} with v₀ = 0, {gradient:.3g} with v₀ = g₀²: the rate is at {shares[0]:.3g} and {shares[1]:.3g} of "
        f"the limit {limit:.3g}"
    )
    has, level = isinstance(subject.optimizer, GIAdam | GIAdamW), "good"
    advice = ""
    if shares[0] <= 1:
        meaning = "A first step of Adam is stable at this rate: GI-Adam is not needed for it."
    elif shares[1] <= 1:
        meaning = "A first step is beyond the limit with v₀ = 0, and below it with v₀ = g₀²."
        advice = f"Try ew.{gi_class.__name__} in the place of {_plain_name(gi_class)}: it takes the same arguments."
        level = "notice"
    else:
        meaning = "A first step is beyond the limit either way, though by less with v₀ = g₀²."
        advice = f"Try ew.{gi_class.__name__}, which takes the same arguments, and warm up besides."
        level = "notice"
    if advice and any(
        p.dtype.itemsize < 4 for group in subject.optimizer.param_groups for p in group["params"]
    ):
        advice = f"{advice} Keep parameters in float32 then: in half precision v₀ is never forgotten."
    if has and advice:
        meaning, advice = f"{meaning} You use it already.", ""
        level = "good" if shares[1] <= 1 else "notice"
    elif not subject.is_fresh and advice:
        meaning, advice = (
            f"{meaning} It matters at the start of training, which this optimizer has behind it.",
            "",
        )
        level = "good"
    return Finding(
        question="gi_adam",
        name=_NAME,
        value=gradient,
        shown=shown,
        meaning=meaning,
        advice=advice,
        level=level,  # type: ignore[arg-type]
        evidence=evidence,
    )


def _plain_name(gi_class: type[Optimizer]) -> str:
    return "torch.optim.AdamW" if gi_class is GIAdamW else "torch.optim.Adam"


def _twin(optimizer: Optimizer, cls: type[Optimizer]) -> Optimizer:
    """Return an optimizer of the class on the same groups, without a step behind it; only read from."""
    groups = [
        {"params": group["params"], **{name: group[name] for name in _SHARED}}
        for group in optimizer.param_groups
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of v in half precision, which is the line's own to say
        return cls(groups)  # type: ignore[call-arg]


def _measure(subject: Subject, optimizer: Optimizer, start: SharpnessResult | None) -> SharpnessResult:
    return preconditioned_sharpness(
        subject.model,
        subject.loss_fn,
        subject.few[:1],
        optimizer,
        start=start,
        rtol=RTOL,
        max_hvps=MOST_PRODUCTS,
        params=subject.patterns,
        seed=subject.seed,
    )
