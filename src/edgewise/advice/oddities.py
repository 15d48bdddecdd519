"""What is odd: things that make measurements, or training itself, mean something else than they seem to."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from edgewise.advice.findings import Finding, unmeasured
from edgewise.advice.look import Look
from edgewise.advice.stability import Edge
from edgewise.advice.subject import Subject
from edgewise.critical import CriticalLRResult
from edgewise.optimizers.preconditioner import next_mean_square, next_step

_COARSE = 0.01  # share of entries, from which rounding or a vanishing second moment is worth a word
_NOISY = 10.0  # variance of a batch's gradient over the squared mean
_NAMED = 5  # parameters that are named


def odd_findings(subject: Subject, look: Look, edge: Edge, critical: CriticalLRResult | str) -> list[Finding]:
    """Return a line for each thing that was looked for, also where nothing is odd."""
    lines = [
        _repeats(look),
        _resolution(subject, look, critical),
        _rounding(look),
        _second_moments(subject, look),
        _without_gradient(subject, look),
        _left_out(subject),
        _zero_rates(subject),
        _scheduled(subject),
        _mode(subject),
        _noise(subject, look),
        _route(edge),
    ]
    return [line for line in lines if line is not None]


def _odd(name: str, value: float, shown: str, meaning: str, advice: str = "", **evidence: Any) -> Finding:
    """Return a line, which is worth a notice where it advises something."""
    return Finding(
        question="odd",
        name=name,
        value=value,
        shown=shown,
        meaning=meaning,
        advice=advice,
        level="notice" if advice else "good",
        evidence=evidence,
    )


def _repeats(look: Look) -> Finding:
    name = "variation of the loss at one point"
    if look.variation == 0:
        return _odd(
            name, 0.0, "0", "The loss repeats: the same batch, parameters and random state give it again."
        )
    blame = (
        f"the first module to differ is {look.culprit}" if look.culprit else "no module differs, loss_fn does"
    )
    return _odd(
        name,
        look.variation,
        f"{look.variation:.3g} of {look.losses[0]:.3g}",
        f"The loss does not repeat from the same random state: {blame}.",
        "Draw from the generators of torch, numpy or random, which are rewound; until then no curvature is measured.",
        culprit=look.culprit,
    )


def _resolution(subject: Subject, look: Look, critical: CriticalLRResult | str) -> Finding:
    name = "resolution of the loss"
    kind = str(look.dtype).removeprefix("torch.")
    step = torch.finfo(look.dtype).eps * abs(look.losses[0])
    slope = math.nan if isinstance(critical, str) else critical.slope
    change = abs(slope) * subject.rate
    evidence: dict[str, Any] = {"dtype": kind, "step": step, "change_of_an_update": change}
    if not math.isfinite(change):
        return _odd(
            name, step, f"{step:.2g} in {kind}", "What an update changes was not measured.", **evidence
        )
    shown = f"{step:.2g} in {kind}, where an update is to change the loss by {change:.2g}"
    if change < step:
        return _odd(
            name,
            step,
            shown,
            "What one update changes is lost in rounding: a warmup that looks at the loss sees steps, or nothing.",
            "Compute the loss in float32: logits.float() before the cross-entropy.",
            **evidence,
        )
    return _odd(name, step, shown, "The loss is precise enough to see what an update does.", **evidence)


def _rounding(look: Look) -> Finding | None:
    if look.lost is None:
        return None
    name = "updates lost to rounding"
    shown = f"{look.lost:.0%} of the entries"
    if look.lost > _COARSE:
        return _odd(
            name,
            look.lost,
            shown,
            "These parameters are of half precision, and an update at this rate is less than half of their last bit.",
            "Keep parameters in float32 and compute under torch.autocast.",
        )
    return _odd(name, look.lost, shown, "The updates are large enough for the precision of the parameters.")


def _second_moments(subject: Subject, look: Look) -> Finding | None:
    """Count entries whose √v̂, with the coming gradient in it, is below ε: there Adam's step is no longer normalised."""
    if not isinstance(subject.optimizer, Adam):
        return None
    named = dict(subject.model.named_parameters())
    small = silent = size = 0
    for group in subject.optimizer.param_groups:
        members = {id(parameter) for parameter in group["params"]}
        beta2 = float(group["betas"][1])
        for name in subject.names:
            gradient = look.first.get(name)
            if gradient is None or id(named[name]) not in members:
                continue
            state = subject.optimizer.state.get(named[name], {})
            root = _root(state, gradient, beta2)
            size += root.numel()
            silent += int((root == 0).sum())
            small += int(((root > 0) & (root < group["eps"])).sum())
    if size == 0:
        return None
    name = "second moments below ε"
    share = small / size
    shown = f"{share:.1%} of the entries, and {silent / size:.1%} are 0"
    evidence: dict[str, Any] = {"below_eps": small, "zero": silent, "entries": size}
    if share > _COARSE:
        return _odd(
            name,
            share,
            shown,
            "ε outweighs √v there: these entries move in proportion to their gradient, more slowly than the others.",
            "Lower eps, such as to 1e-10, if they are meant to train like the others; scaled-down losses do this.",
            **evidence,
        )
    return _odd(name, share, shown, "ε plays no part; entries at 0 have had no gradient yet.", **evidence)


def _root(state: dict[str, Tensor], gradient: Tensor, beta2: float) -> Tensor:
    if "exp_avg_sq" not in state:
        return gradient.abs()  # of GI-Adam more, by 1/√(1 − β₂)
    second = next_mean_square(state, "exp_avg_sq", gradient, beta2)
    return (second / (1 - beta2 ** next_step(state))).sqrt()


def _without_gradient(subject: Subject, look: Look) -> Finding:
    name, absent = "parameters without gradient", [*look.without, *look.zero]
    shown = f"{len(absent)} of {len(subject.names)}"
    if not absent:
        return _odd(name, 0, shown, "Every parameter that is trained has a gradient on these batches.")
    meaning, advice = [], []
    if look.without:
        meaning.append(f"The loss does not depend on {_number(look.without, absent)}: they do not train.")
        advice.append(
            "Freeze them, leave them out of the optimizer, or find what detaches them from the loss."
        )
    if look.zero:
        meaning.append(f"The gradient of {_number(look.zero, absent)} is zero on these batches.")
        advice.append(
            "A zero gradient is as it should be before weights that begin at 0, such as LoRA's A; else look for dead "
            "units or data that is missing."
        )
    return _odd(
        name,
        len(absent),
        f"{shown}: {_listed(absent)}",
        " ".join(meaning),
        " ".join(advice),
        without=look.without[:100],
        zero=look.zero[:100],
    )


def _left_out(subject: Subject) -> Finding:
    name, left_out = "parameters that the optimizer leaves out", subject.left_out
    total = len(left_out) + len(subject.names)
    shown = f"{len(left_out)} of {total}"
    if not left_out:
        return _odd(name, 0, shown, "Every parameter that requires a gradient is in the optimizer.")
    return _odd(
        name,
        len(left_out),
        f"{shown}: {_listed(left_out)}",
        "They require a gradient, and nothing moves them; all that is measured here leaves them where they are.",
        "Add them to the optimizer, or call requires_grad_(False) on them.",
        names=left_out[:100],
    )


def _zero_rates(subject: Subject) -> Finding:
    rates = [float(group["lr"]) for group in subject.optimizer.param_groups]
    at_zero = [i for i, rate in enumerate(rates) if rate == 0]
    name, shown = "groups at rate 0", f"{len(at_zero)} of {len(rates)}"
    if not at_zero:
        return _odd(name, 0, shown, "Every group trains.", rates=rates)
    return _odd(
        name,
        len(at_zero),
        f"{shown}: {', '.join(map(str, at_zero))}",
        "Their parameters do not train, whatever the rate of the others: ratios of rates are kept by every warmup.",
        "Set their rate, or freeze their parameters.",
        rates=rates,
    )


def _scheduled(subject: Subject) -> Finding | None:
    """Tell of a first group's rate that a scheduler holds low while the optimizer is fresh: a warmup's, most likely."""
    target = subject.optimizer.param_groups[0].get("initial_lr")
    if target is None or not subject.is_fresh or not subject.rate < float(target):
        return None
    return _odd(
        "rate as a scheduler has left it",
        subject.rate,
        f"{subject.rate:.3g}, where it was made with {float(target):.3g}",
        "A scheduler or a warmup holds the rate below the one it was made with: what is said of yours is of the lower.",
        "To ask about the rate it was made with, make no scheduler before.",
        initial_lr=float(target),
    )


def _mode(subject: Subject) -> Finding:
    modules = list(subject.model.modules())
    off = sum(not module.training for module in modules)
    name, shown = "modules in eval mode", f"{off} of {len(modules)}"
    if not subject.model.training:
        return _odd(
            name,
            off,
            shown,
            "The model was inspected as in evaluation, without dropout, and with fixed statistics of BatchNorm.",
            "Call model.train() in setup() where training does; from_pretrained returns models in eval mode.",
        )
    return _odd(name, off, shown, "The model was inspected as it trains.")


def _noise(subject: Subject, look: Look) -> Finding:
    name = "noise of a batch's gradient"
    if not math.isfinite(look.noise):
        return unmeasured("odd", name, "It takes two batches or more; there is one.")
    number = len(look.losses)
    evidence: dict[str, Any] = {"noise": look.noise, "signal": look.signal, "num_batches": number}
    if look.noise == 0 or look.signal <= 0:
        if look.noise == 0:
            return _odd(name, 0.0, "0", "All batches have the same gradient.", **evidence)
        return unmeasured(
            "odd",
            name,
            f"It hides the mean gradient: {number} batches are too few to tell by how much",
            **evidence,
        )
    ratio = look.noise / look.signal
    shown = f"{ratio:.2g} times the squared mean, over {number} batches"
    if ratio > _NOISY:
        return _odd(
            name,
            ratio,
            shown,
            "Most of a gradient is noise: the edge of single batches says less about the rate than the trial does.",
            f"Larger batches bear larger rates here, up to about {ratio:.0f} times this size.",
            **evidence,
        )
    return _odd(name, ratio, shown, "A batch's gradient points much as the mean does.", **evidence)


def _route(edge: Edge) -> Finding:
    name, result = "route of the second derivative", edge.result
    if result is None:
        return unmeasured("odd", name, edge.reason)
    evidence: dict[str, Any] = {"hvp": result.hvp, "reason": result.hvp_reason, "error": result.hvp_error}
    shown = f"{result.hvp}, error {result.hvp_error:.1g}"
    if not result.hvp_reason:
        return _odd(name, result.hvp_error, shown, "Products with the Hessian are exact.", **evidence)
    reason = result.hvp_reason.splitlines()[0].rstrip(".")
    how = (
        "differences of gradients, with this error bar" if result.hvp == "difference" else f"by {result.hvp}"
    )
    return _odd(name, result.hvp_error, shown, f"Products with the Hessian are {how}: {reason}.", **evidence)


def _number(some: Sequence[str], of: Sequence[str]) -> str:
    return "them" if len(some) == len(of) else f"{len(some)} of them"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
