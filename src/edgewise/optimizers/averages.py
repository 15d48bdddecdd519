"""Of which moving averages an optimizer makes its updates, by the names that torch's optimizers give them."""

from typing import Any

from torch.optim import Optimizer


def num_averages(optimizer: Optimizer) -> int:
    """Return how many averages an update is made of: two under Adam and its kin, of gradients and squares."""
    return 2 if any("betas" in group for group in optimizer.param_groups) else 1


def momentum(optimizer: Optimizer) -> float:
    """Return β, of `momentum` or the first of `betas`; 0 without. The largest of the groups'."""
    return max(max(_heavy_ball(group), _first_beta(group)) for group in optimizer.param_groups)


def first_share(optimizer: Optimizer) -> float:
    """Return which share the first update is of a long one, the gradient being the same: 1 but under `momentum` β.

    It is (1 − β)/(1 − τ), τ the dampening, and (1 − β)(1 + β) after Nesterov. Where updates are made orthogonal, as
    Muon's are, their length does not depend on β: 1. RMSprop's first update is more than that, as its average of
    squares begins at 0. Of groups that differ the smallest share counts.
    """
    return min(_first_share(group) for group in optimizer.param_groups)


def _first_share(group: dict[str, Any]) -> float:
    if "ns_steps" in group:  # Muon's Newton–Schulz iteration
        return 1.0
    beta, dampening = _heavy_ball(group), float(group.get("dampening") or 0.0)
    ahead = 1 + beta if group.get("nesterov") else 1.0
    return min(1.0, (1 - beta) * ahead / (1 - dampening)) if dampening < 1 else 1.0


def _heavy_ball(group: dict[str, Any]) -> float:
    return float(group.get("momentum") or 0.0)


def _first_beta(group: dict[str, Any]) -> float:
    return float((group.get("betas") or (0.0,))[0])
