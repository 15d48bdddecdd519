"""What the figures show, whichever library draws them: curves, diagrams and tables, from stored runs alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgewise.lab.recipes import PhaseDiagrams, Quantity, Table, Trajectories, stability_limits
from edgewise.lab.results.phase_diagram import Cell, CellValue, PhaseDiagram, phase_diagram
from edgewise.lab.results.store import Absent, Run

Array = np.ndarray[Any, Any]

COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)  # Okabe & Ito: apart for every eye
FAILED_COLOR, DIVERGED_COLOR, BOUNDARY_COLOR = "#d9d9d9", "#6f6f6f", "#D55E00"
ERROR_COLOR, WAITING_COLOR = "#f3d3e4", "#dfe9f5"

_PANEL_COLUMNS = 3  # more panels stand in two rows


def labels(runs: Sequence[Run | Absent], of: Any) -> list[str]:
    """Return the distinct labels of the runs, in their order."""
    return list(dict.fromkeys(of(run.config) for run in runs))


def curve(run: Run, quantity: Quantity) -> tuple[Array, Array]:
    """Return steps and values of a quantity, finite ones only."""
    steps, values = run.measured(quantity.column)
    if quantity.times_lr:
        values = values * run.columns["lr"][steps.astype(int)]
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def thresholds(run: Run) -> list[tuple[Array, Array]]:
    """Return steps and limit/η_t, the curvature at which the run's rate becomes unstable, for each of its limits."""
    return [(run.columns["step"], limit / run.columns["lr"]) for limit in stability_limits(run)]


def value_range(runs: Sequence[Run], quantity: Quantity) -> tuple[float, float] | None:
    """Return where the runs that trained have their values, with room; a diverging run does not set the axis."""
    trained = [curve(run, quantity)[1] for run in runs if not run.outcome["diverged"]]
    values = np.concatenate([v[v > 0] for v in trained]) if trained else np.empty(0)
    if not len(values):
        return None
    if quantity.log:
        return float(values.min() / 2), float(values.max() * 4)
    return 0.0, float(values.max() * 1.1)


def shown(
    layout: Trajectories, runs: Sequence[Run | Absent]
) -> tuple[list[Run], list[Absent], list[Quantity]]:
    """Return the runs with a trajectory (more than one step), those absent, and the quantities that any measured."""
    there = [run for run in runs if isinstance(run, Run) and run.config.num_steps > 1]
    absent = [run for run in runs if isinstance(run, Absent) and run.config.num_steps > 1]
    measured = [q for q in layout.quantities if any(q.column in run.columns for run in there)]
    return there, absent, measured if there else list(layout.quantities)


def panel_diagrams(layout: PhaseDiagrams, runs: Sequence[Run | Absent]) -> dict[str, PhaseDiagram]:
    """Return panel label → diagram."""
    return {
        panel: phase_diagram([run for run in runs if layout.panel(run.config) == panel], layout.value)
        for panel in labels(runs, layout.panel)
    }


def color_limits(diagrams: Sequence[PhaseDiagram]) -> tuple[float, float]:
    """Return the smallest and largest value over the trained cells."""
    trained = np.concatenate([d.mean[d.cells == Cell.TRAINED] for d in diagrams])
    trained = trained[np.isfinite(trained)]
    return (float(trained.min()), float(trained.max())) if len(trained) else (0.0, 1.0)


def panel_limits(layout: PhaseDiagrams, diagrams: Sequence[PhaseDiagram]) -> list[tuple[float, float]]:
    """Return the ends of the colours of each panel."""
    line = layout.columns or len(diagrams)
    lines = (diagrams[start : start + line] for start in range(0, len(diagrams), line))
    return [color_limits(its) for its in lines for _ in its]


def panel_columns(layout: PhaseDiagrams, number: int) -> int:
    """Return in how many columns so many panels stand."""
    if layout.columns is not None:
        return min(layout.columns, number)
    return number if number <= _PANEL_COLUMNS else -(-number // 2)


def color_map(value: CellValue) -> str:
    """Return the name of the colours, which matplotlib and plotly share: bright is good."""
    return "viridis_r" if value.lower_is_better else "viridis"


def rate_axis(runs: Sequence[Run | Absent]) -> str:
    """Return what the columns of the diagrams count."""
    in_sharpness = any(run.config.optimizer.lr_unit == "1/sharpness" for run in runs)
    return "target learning rate × λ₀" if in_sharpness else "target learning rate"


def table_cells(layout: Table, runs: Sequence[Run | Absent]) -> tuple[list[str], list[str], list[list[str]]]:
    """Return row labels, column labels, and the texts between: mean ± sample deviation, and over how many seeds."""
    rows, columns = labels(runs, layout.row), labels(runs, layout.column)
    texts: list[list[str]] = []
    for row in rows:
        texts.append([])
        for column in columns:
            its = [
                run for run in runs if (layout.row(run.config), layout.column(run.config)) == (row, column)
            ]
            values = [layout.value.of(run) for run in its if isinstance(run, Run)]
            missing = f", {len(its) - len(values)} missing" if len(values) < len(its) else ""
            texts[-1].append(_mean_and_deviation(values, layout.value.digits) + missing)
    return rows, columns, texts


def _mean_and_deviation(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f} ({len(values)})" if len(values) > 1 else mean
