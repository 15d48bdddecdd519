"""Figures in the paper's layout, from stored runs alone, as PNG and PDF."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edgewise.lab.phase_diagram import Cell, CellValue, PhaseDiagram, phase_diagram
from edgewise.lab.recipes import (
    PhaseDiagrams,
    Quantity,
    Recipe,
    Table,
    Trajectories,
    stability_limits,
)
from edgewise.lab.store import Run, Store

Array = np.ndarray[Any, Any]

COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)  # Okabe & Ito: apart for every eye
_LEGEND_INCHES = 1.8  # of one entry
_LARGE_DIAGRAM = 400  # cells: more are drawn small, without their numbers
_MOST_TICKS = 25
_PANEL_COLUMNS = 3  # more panels stand in two rows
FAILED_COLOR, DIVERGED_COLOR, BOUNDARY_COLOR = "#d9d9d9", "#6f6f6f", "#D55E00"

_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


def draw(recipe: Recipe, runs: Sequence[Run]) -> Figure:
    """Return the recipe's figure."""
    with mpl.rc_context(_STYLE):
        match recipe.layout:
            case Trajectories():
                figure = _draw_trajectories(recipe.layout, runs)
            case PhaseDiagrams():
                figure = _draw_phase_diagrams(recipe.layout, runs)
            case Table():
                figure = _draw_table(recipe.layout, runs)
        figure.suptitle(f"{recipe.title} ({recipe.id})", fontsize=11)
        return figure


def save_figures(store: Store, recipes: Sequence[Recipe]) -> list[Path]:
    """Draw each of the store's figures into DIR/figures and return the PNG files."""
    folder = store.path / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for recipe, figure_runs in zip(recipes, store.figures, strict=True):
        figure = draw(recipe, store.runs_of(figure_runs))
        with mpl.rc_context(_STYLE):
            for ending in ("pdf", "png"):
                figure.savefig(folder / f"{recipe.id}.{ending}", dpi=160)
        written.append(folder / f"{recipe.id}.png")
    return written


def labels(runs: Sequence[Run], of: Any) -> list[str]:
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
    limits = stability_limits(run.config.optimizer)
    return [(run.columns["step"], limit / run.columns["lr"]) for limit in limits]


def value_range(runs: Sequence[Run], quantity: Quantity) -> tuple[float, float] | None:
    """Return where the runs that trained have their values, with room; a diverging run does not set the axis."""
    trained = [curve(run, quantity)[1] for run in runs if not run.outcome["diverged"]]
    values = np.concatenate([v[v > 0] for v in trained]) if trained else np.empty(0)
    if not len(values):
        return None
    if quantity.log:
        return float(values.min() / 2), float(values.max() * 4)
    return 0.0, float(values.max() * 1.1)


def shown(layout: Trajectories, runs: Sequence[Run]) -> tuple[list[Run], list[Quantity]]:
    """Return the runs with a trajectory (more than one step) and the quantities that any of them measured."""
    runs = [run for run in runs if run.config.num_steps > 1]
    return runs, [q for q in layout.quantities if any(q.column in run.columns for run in runs)]


def _draw_trajectories(layout: Trajectories, runs: Sequence[Run]) -> Figure:
    runs, quantities = shown(layout, runs)
    rows, lines = labels(runs, layout.row), labels(runs, layout.line)
    figure = Figure(figsize=(3.4 * len(quantities), 2.5 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(quantities), squeeze=False)
    for i, row in enumerate(rows):
        in_row = [run for run in runs if layout.row(run.config) == row]
        for quantity, ax in zip(quantities, axes[i], strict=True):
            _finish_axes(ax, in_row, quantity)
            for run in in_row:
                _draw_curve(ax, run, quantity, COLORS[lines.index(layout.line(run.config)) % len(COLORS)])
            ax.set_title(row, loc="left", fontsize=9)
            if i == len(rows) - 1:
                ax.set_xlabel("step")
    handles = [
        *(
            mpl.lines.Line2D([], [], color=COLORS[i % len(COLORS)], label=line)
            for i, line in enumerate(lines)
        ),
        mpl.lines.Line2D([], [], color="0.3", ls="--", lw=1, label="stability threshold"),
    ]
    if any(run.outcome["diverged"] for run in runs):
        handles.append(mpl.lines.Line2D([], [], color="0.3", ls="", marker="x", label="diverged"))
    columns = min(len(handles), int(figure.get_figwidth() / _LEGEND_INCHES))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _draw_curve(ax: Axes, run: Run, quantity: Quantity, color: str) -> None:
    steps, values = curve(run, quantity)
    ax.plot(steps, values, color=color, lw=1.3)
    if run.outcome["diverged"] and len(steps):
        ax.plot(steps[-1], min(values[-1], ax.get_ylim()[1]), "x", color=color, clip_on=False)
    if quantity.threshold and not quantity.times_lr:
        for curve_of_limit in thresholds(run):
            ax.plot(*curve_of_limit, "--", color=color, lw=0.9, alpha=0.8)


def _finish_axes(ax: Axes, runs: list[Run], quantity: Quantity) -> None:
    ax.set_ylabel(quantity.label)
    if quantity.log:
        ax.set_yscale("log")
    if limits := value_range(runs, quantity):
        ax.set_ylim(*limits)
    if quantity.threshold and quantity.times_lr:
        for limit in {limit for run in runs for limit in stability_limits(run.config.optimizer)}:
            ax.axhline(limit, ls="--", color="0.3", lw=0.9)
            ax.annotate(f"{limit:g}", (1.0, limit), xycoords=("axes fraction", "data"), fontsize=8)


def color_limits(diagrams: Sequence[PhaseDiagram]) -> tuple[float, float]:
    """Return the smallest and largest value over the trained cells."""
    trained = np.concatenate([d.mean[d.cells == Cell.TRAINED] for d in diagrams])
    trained = trained[np.isfinite(trained)]
    return (float(trained.min()), float(trained.max())) if len(trained) else (0.0, 1.0)


def panel_diagrams(layout: PhaseDiagrams, runs: Sequence[Run]) -> dict[str, PhaseDiagram]:
    """Return panel label → diagram."""
    return {
        panel: phase_diagram([run for run in runs if layout.panel(run.config) == panel], layout.value)
        for panel in labels(runs, layout.panel)
    }


def color_map(value: CellValue) -> str:
    """Return the name of the colours, which matplotlib and plotly share: bright is good."""
    return "viridis_r" if value.lower_is_better else "viridis"


def rate_axis(runs: Sequence[Run]) -> str:
    """Return what the columns of the diagrams count."""
    in_sharpness = any(run.config.optimizer.lr_unit == "1/sharpness" for run in runs)
    return "target learning rate × λ₀" if in_sharpness else "target learning rate"


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


def _draw_phase_diagrams(layout: PhaseDiagrams, runs: Sequence[Run]) -> Figure:
    diagrams = panel_diagrams(layout, runs)
    across = panel_columns(layout, len(diagrams))
    down = -(-len(diagrams) // across)
    columns, rows = (
        max(len(d.lr_targets) for d in diagrams.values()),
        max(len(d.warmups) for d in diagrams.values()),
    )
    large = columns * rows > _LARGE_DIAGRAM
    cell = (0.12, 0.12) if large else (0.62, 0.55)
    size = ((cell[0] * columns + 1) * across, (cell[1] * rows + 1.3) * down + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=layout.columns is None)
    limits = panel_limits(layout, list(diagrams.values()))
    cmap = mpl.colormaps[color_map(layout.value)]
    for ax, (panel, diagram), ends in zip(axes.flat, diagrams.items(), limits, strict=False):
        _draw_cells(ax, diagram, mpl.colors.Normalize(*ends), cmap, with_numbers=not large)
        ax.set_title(panel, loc="left", fontsize=9)
    for ax in axes.flat[len(diagrams) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("warmup length $T_{wrm}$ (steps)")
    for ax in axes[-1]:
        ax.set_xlabel(rate_axis(runs))
    for i in range(0, len(limits), layout.columns or len(limits)):
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(*limits[i]), cmap)
        its = axes[i // across] if layout.columns else axes.flat
        figure.colorbar(scale, ax=list(its), label=layout.value.label, pad=0.01)
    handles: list[Any] = [mpl.lines.Line2D([], [], color="0.2", ls="", marker="*", label="best of its row")]
    if layout.value.of_training:
        handles += [
            Patch(facecolor=FAILED_COLOR, hatch="//", edgecolor="0.4", label="failed (learned nothing)"),
            Patch(facecolor=DIVERGED_COLOR, hatch="xx", edgecolor="0.9", label="diverged"),
            Patch(facecolor="white", edgecolor="0.8", label="not trained: beyond"),
            mpl.lines.Line2D([], [], color=BOUNDARY_COLOR, lw=2, label="failure boundary"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def table_cells(layout: Table, runs: Sequence[Run]) -> tuple[list[str], list[str], list[list[str]]]:
    """Return row labels, column labels, and the texts between: mean ± sample deviation, and over how many seeds."""
    rows, columns = labels(runs, layout.row), labels(runs, layout.column)
    texts: list[list[str]] = []
    for row in rows:
        texts.append([])
        for column in columns:
            values = [
                layout.value.of(run)
                for run in runs
                if (layout.row(run.config), layout.column(run.config)) == (row, column)
            ]
            texts[-1].append(_mean_and_deviation(values, layout.value.digits))
    return rows, columns, texts


def _mean_and_deviation(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f} ({len(values)})" if len(values) > 1 else mean


def _draw_table(layout: Table, runs: Sequence[Run]) -> Figure:
    rows, columns, texts = table_cells(layout, runs)
    figure = Figure(figsize=(1.9 * (len(columns) + 1), 0.32 * (len(rows) + 1) + 0.7), layout="constrained")
    ax = figure.subplots()
    ax.axis("off")
    table = ax.table(cellText=texts, rowLabels=rows, colLabels=columns, loc="center", cellLoc="center")
    table.scale(1, 1.4)
    ax.set_title(f"{layout.value.label}: mean ± deviation (seeds)", fontsize=9)
    return figure


def _draw_cells(ax: Axes, diagram: PhaseDiagram, norm: Any, cmap: Any, *, with_numbers: bool) -> None:
    """Draw cell (i, j) over [j, j + 1] × [i, i + 1]."""
    trained = np.where(diagram.cells == Cell.TRAINED, diagram.mean, np.nan)
    ax.pcolor(trained, norm=norm, cmap=cmap, edgecolors="white", linewidth=1)
    for kind, color, hatch, hatch_color in (
        (Cell.FAILED, FAILED_COLOR, "//", "0.45"),
        (Cell.DIVERGED, DIVERGED_COLOR, "xx", "0.9"),
    ):
        if (diagram.cells == kind).any():
            its = np.where(diagram.cells == kind, 0.0, np.nan)
            one_color = mpl.colors.ListedColormap([color])
            ax.pcolor(its, cmap=one_color, hatch=hatch, edgecolors=hatch_color, linewidth=0.5)
    if with_numbers:
        _write_numbers(ax, diagram, norm, cmap)
    for i, steps in enumerate(diagram.warmups):
        edge = sum(lr <= diagram.boundary(steps) for lr in diagram.lr_targets)
        if diagram.value.of_training:
            ax.plot([edge, edge], [i, i + 1], color=BOUNDARY_COLOR, lw=2.5, clip_on=False, zorder=3)
        best_lr, best_loss = diagram.best(steps)
        if math.isfinite(best_loss):
            j = diagram.lr_targets.index(best_lr)
            ax.plot(j + 0.5, i + 0.8, "*", color=_ink(cmap(norm(best_loss))), ms=6)
    ax.set(xlim=(0, len(diagram.lr_targets)), ylim=(0, len(diagram.warmups)))
    _label_ticks(ax.xaxis, [f"{lr:g}" for lr in diagram.lr_targets], rotation=45)
    _label_ticks(ax.yaxis, [str(row) for row in diagram.warmups])
    ax.grid(visible=False)


def _write_numbers(ax: Axes, diagram: PhaseDiagram, norm: Any, cmap: Any) -> None:
    """Write the value into each cell that has one."""
    box = {"facecolor": FAILED_COLOR, "edgecolor": "none", "pad": 0.8}  # readable on the hatches
    for (i, j), kind in np.ndenumerate(diagram.cells):
        if kind in (Cell.TRAINED, Cell.FAILED):
            value = float(diagram.mean[i, j])
            style: dict[str, Any] = (
                {"bbox": box} if kind is Cell.FAILED else {"color": _ink(cmap(norm(value)))}
            )
            at = (j + 0.5, i + 0.42)
            ax.text(*at, diagram.value.text(value), ha="center", va="center", fontsize=7, **style)


def _label_ticks(axis: Axis, texts: Sequence[str], **options: Any) -> None:
    """Name the cells along an axis, not more than fit."""
    stride = -(-len(texts) // _MOST_TICKS)
    axis.set_ticks(np.arange(0, len(texts), stride) + 0.5, list(texts[::stride]), **options)


def _ink(face: Any) -> str:
    """Return black or white, whichever reads better on a colour."""
    red, green, blue = face[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
