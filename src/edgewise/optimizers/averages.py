"""Of which moving averages an optimizer makes its updates, by the names that torch's optimizers give them."""

from typing import Any

from torch.optim import Optimizer


def num_averages(optimizer: Optimizer) -> int:
    """Return how many averages an update is made of: two under Adam and its kin, of gradients and squares."""
    return 2 if any("betas" in group for group in optimizer.param_groups) else 1


def heavy_ball(optimizer: Optimizer) -> float:
    """Return β of `momentum`, under which the first update is 1 − β of a long one; 0 without."""
    return max(float(group.get("momentum") or 0.0) for group in optimizer.param_groups)


def momentum(optimizer: Optimizer) -> float:
    """Return β, of `momentum` or the first of `betas`; 0 without."""
    return max(heavy_ball(optimizer), *(_first_beta(group) for group in optimizer.param_groups))


def _first_beta(group: dict[str, Any]) -> float:
    return float((group.get("betas") or (0.0,))[0])
