"""Figures in the paper's layout, from stored runs alone, as PNG and PDF."""

import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edgewise.lab.recipes import (
    PhaseDiagrams,
    Quantity,
    Recipe,
    Table,
    Trajectories,
    stability_limits,
)
from edgewise.lab.report import panels
from edgewise.lab.report.presentation import Presentation
from edgewise.lab.results.phase_diagram import Cell, PhaseDiagram
from edgewise.lab.results.store import Absent, Run, Store

_LEGEND_INCHES = 1.8  # of one entry
_LARGE_DIAGRAM = 400  # cells: more are drawn small, without their numbers
_MOST_TICKS = 25
_MOST_NOTES = 4  # names of missing curves in a panel
_LONGEST_NAME = 100  # of a file

_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


def draw(recipe: Recipe | Presentation, runs: Sequence[Run | Absent]) -> Figure:
    """Return the recipe's figure; what is absent is marked as such."""
    with mpl.rc_context(_STYLE):
        match recipe.layout:
            case Trajectories():
                figure = _draw_trajectories(recipe.layout, runs)
            case PhaseDiagrams():
                figure = _draw_phase_diagrams(recipe.layout, runs)
            case Table():
                figure = _draw_table(recipe.layout, runs)
        figure.suptitle(_literal(f"{recipe.title} ({recipe.id})"), fontsize=11)
        return figure


def save_figures(store: Store, figures: Sequence[Presentation]) -> list[str]:
    """Draw the figures into DIR/figures and return the names of the PNG files, below DIR.

    Raises:
        StoreError: they cannot be written.
    """
    written = []
    for shown in figures:
        figure = draw(shown, shown.runs)
        for ending in ("pdf", "png"):
            with mpl.rc_context(_STYLE):
                picture = io.BytesIO()
                figure.savefig(picture, format=ending, dpi=160)
            store.write_file(f"figures/{name_of(shown.id)}.{ending}", picture.getvalue())
        written.append(f"figures/{name_of(shown.id)}.png")
    return written


def name_of(figure: str) -> str:
    """Return a figure's id as a name of files and of parts of the page: letters, digits, hyphens, underscores.

    >>> name_of("fig1"), name_of("../my figure")
    ('fig1', '---my-figure')
    """
    return re.sub(r"[^\w-]", "-", figure)[:_LONGEST_NAME]


def _literal(text: str) -> str:
    """Return a label as matplotlib shows it unchanged: between two dollars it reads mathematics."""
    return text.replace("$", r"\$")


def _draw_trajectories(layout: Trajectories, runs: Sequence[Run | Absent]) -> Figure:
    there, absent, quantities = panels.shown(layout, runs)
    planned = [run for run in runs if run.config.num_steps > 1]
    rows, lines = panels.labels(planned, layout.row), panels.labels(planned, layout.line)
    figure = Figure(figsize=(3.4 * len(quantities), 2.5 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), len(quantities), squeeze=False)
    for i, row in enumerate(rows):
        in_row = [run for run in there if layout.row(run.config) == row]
        for quantity, ax in zip(quantities, axes[i], strict=True):
            _finish_axes(ax, in_row, quantity)
            for run in in_row:
                line = lines.index(layout.line(run.config))
                _draw_curve(ax, run, quantity, panels.COLORS[line % len(panels.COLORS)])
            ax.set_title(_literal(row), loc="left", fontsize=9)
            if i == len(rows) - 1:
                ax.set_xlabel("step")
        _name_missing(axes[i, 0], layout, [run for run in absent if layout.row(run.config) == row])
    handles = [
        *(
            mpl.lines.Line2D([], [], color=panels.COLORS[i % len(panels.COLORS)], label=_literal(line))
            for i, line in enumerate(lines)
        ),
        mpl.lines.Line2D([], [], color="0.3", ls="--", lw=1, label="stability threshold"),
    ]
    if any(run.outcome["diverged"] for run in there):
        handles.append(mpl.lines.Line2D([], [], color="0.3", ls="", marker="x", label="diverged"))
    columns = min(len(handles), int(figure.get_figwidth() / _LEGEND_INCHES))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _name_missing(ax: Axes, layout: Trajectories, absent: Sequence[Absent]) -> None:
    """Say in a panel which of its curves are missing."""
    counts = Counter((layout.line(run.config), "error" if run.failed else "waiting") for run in absent)
    notes = [f"{line}: {why}" + (f" ({n} runs)" if n > 1 else "") for (line, why), n in counts.items()]
    if more := len(notes[_MOST_NOTES:]):
        notes[_MOST_NOTES:] = [f"and {more} more"]
    if notes:
        text = _literal("\n".join(["no curve of", *notes]))
        box = {"facecolor": panels.ERROR_COLOR, "edgecolor": "none", "alpha": 0.9, "pad": 2}
        ax.text(0.02, 0.97, text, transform=ax.transAxes, va="top", fontsize=7, bbox=box, zorder=5)


def _draw_curve(ax: Axes, run: Run, quantity: Quantity, color: str) -> None:
    steps, values = panels.curve(run, quantity)
    ax.plot(steps, values, color=color, lw=1.3)
    if run.outcome["diverged"] and len(steps):
        ax.plot(steps[-1], min(values[-1], ax.get_ylim()[1]), "x", color=color, clip_on=False)
    if quantity.threshold and not quantity.times_lr:
        for curve_of_limit in panels.thresholds(run):
            ax.plot(*curve_of_limit, "--", color=color, lw=0.9, alpha=0.8)


def _finish_axes(ax: Axes, runs: list[Run], quantity: Quantity) -> None:
    ax.set_ylabel(_literal(quantity.label))
    if quantity.log:
        ax.set_yscale("log")
    if limits := panels.value_range(runs, quantity):
        ax.set_ylim(*limits)
    if quantity.threshold and quantity.times_lr:
        for limit in {limit for run in runs for limit in stability_limits(run)}:
            ax.axhline(limit, ls="--", color="0.3", lw=0.9)
            ax.annotate(f"{limit:g}", (1.0, limit), xycoords=("axes fraction", "data"), fontsize=8)


def _draw_phase_diagrams(layout: PhaseDiagrams, runs: Sequence[Run | Absent]) -> Figure:
    diagrams = panels.panel_diagrams(layout, runs)
    across = panels.panel_columns(layout, len(diagrams))
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
    limits = panels.panel_limits(layout, list(diagrams.values()))
    cmap = mpl.colormaps[panels.color_map(layout.value)]
    for ax, (panel, diagram), ends in zip(axes.flat, diagrams.items(), limits, strict=False):
        _draw_cells(ax, diagram, mpl.colors.Normalize(*ends), cmap, with_numbers=not large)
        ax.set_title(_literal(panel), loc="left", fontsize=9)
    for ax in axes.flat[len(diagrams) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("warmup length $T_{wrm}$ (steps)")
    for ax in axes[-1]:
        ax.set_xlabel(panels.rate_axis(runs))
    for i in range(0, len(limits), layout.columns or len(limits)):
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(*limits[i]), cmap)
        its = axes[i // across] if layout.columns else axes.flat
        figure.colorbar(scale, ax=list(its), label=_literal(layout.value.label), pad=0.01)
    handles = _diagram_legend(layout, list(diagrams.values()))
    columns = min(len(handles), max(2, int(size[0] / _LEGEND_INCHES)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
    return figure


def _diagram_legend(layout: PhaseDiagrams, diagrams: Sequence[PhaseDiagram]) -> list[Any]:
    handles: list[Any] = [mpl.lines.Line2D([], [], color="0.2", ls="", marker="*", label="best of its row")]
    if layout.value.of_training:
        handles += [
            Patch(
                facecolor=panels.FAILED_COLOR, hatch="//", edgecolor="0.4", label="failed (learned nothing)"
            ),
            Patch(facecolor=panels.DIVERGED_COLOR, hatch="xx", edgecolor="0.9", label="diverged"),
            Patch(facecolor="white", edgecolor="0.8", label="not trained: beyond"),
            mpl.lines.Line2D([], [], color=panels.BOUNDARY_COLOR, lw=2, label="failure boundary"),
        ]
    kinds = {cell for diagram in diagrams for cell in diagram.cells.flat}
    if Cell.WAITING in kinds:
        handles.append(Patch(facecolor=panels.WAITING_COLOR, hatch="..", edgecolor="0.6", label="waiting"))
    if Cell.ERROR in kinds:
        handles.append(
            Patch(facecolor=panels.ERROR_COLOR, hatch="\\\\", edgecolor="0.4", label="error: no result")
        )
    return handles


def _draw_table(layout: Table, runs: Sequence[Run | Absent]) -> Figure:
    rows, columns, texts = panels.table_cells(layout, runs)
    figure = Figure(figsize=(1.9 * (len(columns) + 1), 0.32 * (len(rows) + 1) + 0.7), layout="constrained")
    ax = figure.subplots()
    ax.axis("off")
    table = ax.table(
        cellText=[[_literal(text) for text in its] for its in texts],
        rowLabels=list(map(_literal, rows)),
        colLabels=list(map(_literal, columns)),
        loc="center",
        cellLoc="center",
    )
    table.scale(1, 1.4)
    ax.set_title(f"{_literal(layout.value.label)}: mean ± deviation (seeds)", fontsize=9)
    return figure


def _draw_cells(ax: Axes, diagram: PhaseDiagram, norm: Any, cmap: Any, *, with_numbers: bool) -> None:
    """Draw cell (i, j) over [j, j + 1] × [i, i + 1]."""
    trained = np.where(diagram.cells == Cell.TRAINED, diagram.mean, np.nan)
    ax.pcolor(trained, norm=norm, cmap=cmap, edgecolors="white", linewidth=1)
    for kind, color, hatch, hatch_color in (
        (Cell.FAILED, panels.FAILED_COLOR, "//", "0.45"),
        (Cell.DIVERGED, panels.DIVERGED_COLOR, "xx", "0.9"),
        (Cell.WAITING, panels.WAITING_COLOR, "..", "0.6"),
        (Cell.ERROR, panels.ERROR_COLOR, "\\\\", "0.4"),
    ):
        if (diagram.cells == kind).any():
            its = np.where(diagram.cells == kind, 0.0, np.nan)
            one_color = mpl.colors.ListedColormap([color])
            ax.pcolor(its, cmap=one_color, hatch=hatch, edgecolors=hatch_color, linewidth=0.5)
    if with_numbers:
        _write_numbers(ax, diagram, norm, cmap)
    for i, steps in enumerate(diagram.warmups):
        if not diagram.complete(steps):
            continue
        edge = sum(lr <= diagram.boundary(steps) for lr in diagram.lr_targets)
        if diagram.value.of_training:
            ax.plot([edge, edge], [i, i + 1], color=panels.BOUNDARY_COLOR, lw=2.5, clip_on=False, zorder=3)
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
    box = {"facecolor": panels.FAILED_COLOR, "edgecolor": "none", "pad": 0.8}  # readable on the hatches
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
