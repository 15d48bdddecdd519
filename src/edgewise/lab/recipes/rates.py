"""The paper's main finding, a claim of phase diagrams: the target rate decides, the length of the warmup hardly."""

import numpy as np

from edgewise.lab.recipes.recipe import Claim, number
from edgewise.lab.results.phase_diagram import Cell, PhaseDiagram


def decide(name: str, diagram: PhaseDiagram) -> Claim:
    """Return that the value improves with the target rate at a fixed length, and hardly with the length.

    Improvement over the rates: from the smallest rate that trains to the best one, at the longest warmup. Difference
    between the lengths: from the best length to the worst at one rate, in the median over the rates that train at
    every length. There is no constant to choose.

    The median, as length does matter next to the failure boundary. In the paper's released table (CIFAR-10, best test
    accuracies) lengths of 1 and 1,024 differ by 0.010, 0.021 and 0.045 with Adam at its three rates that train without
    warmup. The last of them is at the boundary.

    Args:
        name: of the panel.
        diagram: its rows are warmup lengths.
    """
    longest = diagram.warmups[-1]
    over_rates, best_rate = _over_rates(diagram)
    over_lengths = _over_lengths(diagram)
    return Claim(
        text=f"{name}: the target rate decides the {diagram.value.label}, the warmup's length hardly does",
        expected=f"gain of the best rate over the smallest at T_wrm = {longest} above the difference of the lengths at "
        "one rate (median over rates that train at every length)",
        measured=f"{number(over_rates)} (best at {best_rate:g}) beside {number(over_lengths)}",
        holds=bool(over_rates > over_lengths),
    )


def _over_rates(diagram: PhaseDiagram) -> tuple[float, float]:
    """Return by how much the best rate of the longest warmup is better than its smallest that trains, and that rate."""
    longest = diagram.warmups[-1]
    trained = diagram.trained(longest)
    if not trained:
        return np.nan, np.nan
    best_rate, best = diagram.best(longest)
    return abs(best - diagram.at(trained[0], longest)), best_rate


def _over_lengths(diagram: PhaseDiagram) -> float:
    """Return how far the lengths are apart at one rate, in the median over the rates that train at every length."""
    values = diagram.mean[:, np.all(diagram.cells == Cell.TRAINED, axis=0)]
    return float(np.median(np.ptp(values, axis=0))) if values.size else np.nan
