"""Is the rate stable at this point: curvature beside the optimizer's limit, and the critical rate of few batches."""

import math
from dataclasses import dataclass

import torch

from edgewise.advice.findings import Finding, unmeasured
from edgewise.advice.subject import Subject
from edgewise.critical import CriticalLRResult, critical_lr
from edgewise.curvature import SharpnessResult, preconditioned_sharpness, sharpness
from edgewise.errors import EdgewiseError
from edgewise.optimizers.stability import StabilityLimitResult

RTOL = 1e-2  # of a curvature: what is advised does not hang on a per cent
MOST_PRODUCTS = 100
_BRACKET = 1 / 8  # width of the critical rate's bracket, relative
_NEAR = 0.8  # of the limit
_MOST_SHOWN = 8  # parameters
_MOST_KEPT = 30


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The curvature of the first batch, and how far the rate may go with it."""

    limit: StabilityLimitResult
    result: SharpnessResult | None  # preconditioned where there is a limit, else plain; None: not measured
    reason: str  # why not
    bound: float  # of the rate × preconditioned sharpness: at the first step, or in the long run; NaN: none

    @property
    def lr(self) -> float:
        """The rate at the edge; infinite where nothing curves upwards, NaN where it is not known."""
        if self.result is None or not self.result.ok or not math.isfinite(self.bound):
            return math.nan
        return self.bound / self.result.value if self.result.value > 0 else math.inf


def edge_of(subject: Subject, limit: StabilityLimitResult) -> Edge:
    """Measure the curvature on the first batch."""
    bound = limit.initial if subject.is_fresh else limit.value
    result, reason = None, ""
    try:
        if limit.ok:
            result = preconditioned_sharpness(
                subject.model,
                subject.loss_fn,
                subject.few[:1],
                subject.optimizer,
                rtol=RTOL,
                max_hvps=MOST_PRODUCTS,
                params=subject.patterns,
                seed=subject.seed,
            )
        else:
            result = sharpness(
                subject.model,
                subject.loss_fn,
                subject.few[:1],
                rtol=RTOL,
                max_hvps=MOST_PRODUCTS,
                params=subject.patterns,
                seed=subject.seed,
            )
    except (EdgewiseError, torch.OutOfMemoryError) as error:
        reason = str(error)
    return Edge(limit=limit, result=result, reason=reason, bound=bound)


def critical_of(subject: Subject) -> CriticalLRResult | str:
    """Return the critical rate over the few batches, or why there is none."""
    try:
        return critical_lr(
            subject.model, subject.optimizer, subject.loss_fn, batches=subject.few, rtol=_BRACKET
        )
    except EdgewiseError as error:
        return str(error)


def stability_findings(subject: Subject, edge: Edge, critical: CriticalLRResult | str) -> list[Finding]:
    """Return the lines on this point."""
    return [_at_the_edge(subject, edge, critical), _of_parameters(edge), _critical(subject, critical)]


def _at_the_edge(subject: Subject, edge: Edge, critical: CriticalLRResult | str) -> Finding:
    name = "rate × preconditioned sharpness"
    limit, result = edge.limit, edge.result
    if result is None:
        return unmeasured("stability", name, edge.reason)
    evidence = {
        "lr": subject.rate,
        "sharpness": result.value,
        "residual": result.residual,
        "status": result.status.name,
        "num_hvps": result.num_hvps,
        "hvp": result.hvp,
        "hvp_error": result.hvp_error,
        "limit": limit.value,
        "limit_at_first_step": limit.initial,
        "limit_status": limit.status.name,
        "lr_at_edge": edge.lr,
    }
    if not limit.ok:
        return unmeasured(
            "stability", name, f"{type(subject.optimizer).__name__}: {limit.status.value}", **evidence
        )
    if not result.ok:
        return unmeasured("stability", name, f"The sharpness is {result}: {result.status.value}", **evidence)
    product = subject.rate * result.value
    error = subject.rate * (result.residual + result.hvp_error * abs(result.value))
    later = "" if limit.value == edge.bound else f", later {limit.value:.3g}"
    when = f"at the first step{later}" if subject.is_fresh else "in the long run"
    share = evidence["share"] = product / edge.bound
    shown = f"{product:.3g} ± {error:.1g}, {share:.3g} of the limit {edge.bound:.3g} {when}"
    if product - error > edge.bound:
        meaning = f"The rate is beyond the edge, {edge.lr:.3g}: updates overshoot along the top eigenvector."
        if not isinstance(critical, str) and critical.ok and subject.rate < critical.bracket[0]:
            meaning += " The coming one lowers the loss all the same, as it goes another way."
        advice = "Begin lower and warm up to a rate beyond: training moves to where curvature is lower first."
        level = "notice"
    elif share > _NEAR:
        meaning = f"The rate is at the edge of stability, {edge.lr:.3g}, up to {max(0.0, 1 - share):.0%}."
        advice = "Begin no higher: raise the rate by a warmup, as training moves to where curvature is lower."
        level = "notice"
    elif product > 0:
        meaning = f"The rate is stable here: the edge is at {edge.lr:.3g}, {1 / share:.3g} times as high."
        advice, level = "", "good"
    else:
        meaning = "Nothing curves upwards here: curvature sets no limit to the rate."
        advice, level = "", "good"
    return Finding(
        question="stability",
        name=name,
        value=product,
        shown=shown,
        meaning=meaning,
        advice=advice,
        level=level,  # type: ignore[arg-type]
        evidence=evidence,
    )


def _of_parameters(edge: Edge) -> Finding:
    name = "parameters that hold the top eigenvector"
    if edge.result is None or not edge.result.ok:
        status = edge.reason if edge.result is None else edge.result.status.value
        return unmeasured("stability", name, f"There is no eigenvector: {status}")
    if edge.result.value <= 0:
        return unmeasured("stability", name, "Nothing curves upwards here: no direction overshoots")
    shares = edge.result.by_parameter()
    top = dict(list(shares.items())[:_MOST_KEPT])
    named = ", ".join(f"{part} {share:.0%}" for part, share in list(top.items())[:3] if share >= 0.005)
    largest = next(iter(top))
    half = _fewest(shares)
    return Finding(
        question="stability",
        name=name,
        value=top[largest],
        shown=named,
        meaning=f"{half} of {len(shares)} parameters hold half of the direction that overshoots first.",
        level="good",
        evidence={"shares": top, "of": "P^-1/2 H P^-1/2" if edge.limit.ok else "H"},
    )


def _fewest(shares: dict[str, float]) -> int:
    """Return how many of the largest shares make half."""
    total = 0.0
    for number, share in enumerate(shares.values(), 1):
        total += share
        if total >= 0.5:
            return number
    return len(shares)


def _critical(subject: Subject, critical: CriticalLRResult | str) -> Finding:
    name = "critical rate of the coming update"
    if isinstance(critical, str):
        return unmeasured("stability", name, critical)
    evidence = {
        "lr": critical.lr,
        "bracket": critical.bracket,
        "interval": critical.interval,
        "status": critical.status.name,
        "num_forwards": critical.num_forwards,
        "noise_floor": critical.noise_floor,
        "slope": critical.slope,
        "loss": critical.loss,
        "num_batches": len(subject.few),
    }
    if not critical.ok:
        return unmeasured("stability", name, f"{critical.status.name}: {critical.status.value}", **evidence)
    low, high = critical.bracket
    number = len(subject.few)
    of = f"over {number} batches" if number > 1 else "on the only batch"
    spread = ""
    if critical.interval is not None:
        spread = "; over all batches between {:.3g} and {:.3g}, 95 % sure".format(*critical.interval)
    above, share = subject.rate > high, subject.rate / critical.lr
    return Finding(
        question="stability",
        name=name,
        value=critical.lr,
        shown=f"between {low:.3g} and {high:.3g} {of}{spread}",
        meaning=f"From this rate on, one update raises the loss of its own batches; yours is {share:.2g} of it.",
        advice="Begin below it: the coming update at your rate raises the loss." if above else "",
        level="bad" if above else "good",
        evidence=evidence,
    )
