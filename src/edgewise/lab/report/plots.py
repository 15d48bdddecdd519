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

from edgewise.lab.recipes import Quantity, stability_limits
from edgewise.lab.report import panels
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.ticks import log_ticks, number
from edgewise.lab.results.phase_diagram import Cell, PhaseDiagram
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

_LETTER_INCHES = 0.08  # of a row's name
_NARROWEST = 5.5  # inches: room for the title
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


def draw(shown: FigureResults) -> Figure:
    """Return the figure; what is absent is marked as such."""
    with mpl.rc_context(_STYLE):
        match shown.panels:
            case panels.Curves() as curves:
                figure = _draw_curves(curves)
            case panels.Diagrams() as diagrams:
                figure = _draw_diagrams(diagrams)
            case panels.Cells() as cells:
                figure = _draw_table(cells)
            case panels.Points() as points:
                figure = _draw_points(points)
        figure.suptitle(_literal(f"{shown.title} ({shown.id})"), fontsize=11)
        return figure


def save_figures(store: Store, figures: Sequence[FigureResults]) -> list[str]:
    """Draw the figures into DIR/figures and return the names of the PNG files, below DIR.

    Raises:
        StoreError: they cannot be written.
    """
    written = []
    for shown in figures:
        figure = draw(shown)
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


def _draw_curves(shown: panels.Curves) -> Figure:
    rows, columns = len(shown.rows), len(shown.quantities)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, row in enumerate(shown.rows):
        in_row = shown.in_row(row)
        for quantity, ax in zip(shown.quantities, axes[i], strict=True):
            _finish_axes(ax, in_row, quantity)
            for run in in_row:
                _draw_curve(ax, run, quantity, shown.lines[shown.layout.line(run.config)])
            ax.set_title(_literal(row), loc="left", fontsize=9)
            if i == rows - 1:
                ax.set_xlabel("step")
        absent = [run for run in shown.absent if shown.layout.row(run.config) == row]
        _name_missing(axes[i, 0], [(shown.layout.line(run.config), run) for run in absent])
    handles = [
        mpl.lines.Line2D([], [], color=color, label=_literal(line)) for line, color in shown.lines.items()
    ]
    if any(stability_limits(run) for run in shown.runs):
        handles.append(mpl.lines.Line2D([], [], color="0.3", ls="--", lw=1, label="stability threshold"))
    if any(run.outcome["diverged"] for run in shown.runs):
        handles.append(mpl.lines.Line2D([], [], color="0.3", ls="", marker="x", label="diverged"))
    in_a_row = _legend_columns(len(handles), figure.get_figwidth())
    figure.legend(handles=handles, loc="outside lower center", ncols=in_a_row)
    return figure


def _legend_columns(entries: int, inches: float) -> int:
    """Return how many entries stand in a row: in as few rows as fit, each as full as the others.

    >>> _legend_columns(5, 10.2), _legend_columns(6, 10.2)
    (5, 3)
    """
    rows = math.ceil(entries / max(2, int(inches / _LEGEND_INCHES)))
    return math.ceil(entries / rows)


def _name_missing(ax: Axes, absent: Sequence[tuple[str, Absent]]) -> None:
    """Say in a panel which of its curves are missing: line label and run of each."""
    counts = Counter((line, "error" if run.failed else "waiting") for line, run in absent)
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
        if quantity.log:
            ticks = log_ticks(*limits)
            ax.set_yticks(ticks, list(map(number, ticks)))
            ax.set_yticks([], minor=True)
    if quantity.threshold and quantity.times_lr:
        for limit in {limit for run in runs for limit in stability_limits(run)}:
            ax.axhline(limit, ls="--", color="0.3", lw=0.9)
            ax.annotate(f"{limit:g}", (1.0, limit), xycoords=("axes fraction", "data"), fontsize=8)


def _draw_diagrams(shown: panels.Diagrams) -> Figure:
    columns = max(len(diagram.lr_targets) for diagram in shown.diagrams.values())
    large = columns * shown.most_warmups > _LARGE_DIAGRAM
    cell = (0.12, 0.12) if large else (0.62, 0.55)
    longest = max(len(str(row)) for diagram in shown.diagrams.values() for row in diagram.warmups)
    width, height = (
        (cell[0] * columns + 0.7 + _LETTER_INCHES * longest) * shown.across,
        (cell[1] * shown.most_warmups + 1.3) * shown.down + 0.6,
    )
    width = max(width, _NARROWEST)
    figure = Figure(figsize=(width, height), layout="constrained")
    side_by_side = shown.layout.columns
    same_rows = len({diagram.warmups for diagram in shown.diagrams.values()}) == 1
    axes = figure.subplots(shown.down, shown.across, squeeze=False, sharey=same_rows and side_by_side is None)
    cmap = mpl.colormaps[shown.color_map]
    for ax, (panel, diagram), ends in zip(axes.flat, shown.diagrams.items(), shown.limits, strict=False):
        _draw_cells(ax, diagram, mpl.colors.Normalize(*ends), cmap, with_numbers=not large)
        ax.set_title("" if panel == panels.ONE_PANEL else _literal(panel), loc="left", fontsize=9)
    for ax in axes.flat[len(shown.diagrams) :]:
        ax.remove()
    used = list(axes.flat[: len(shown.diagrams)])
    for ax in axes[:, 0]:
        ax.set_ylabel("warmup length $T_{wrm}$ (steps)")
    for ax in used[-shown.across :]:  # the lowest of each column
        ax.set_xlabel(shown.rate_axis)
    for i in range(0, len(shown.limits), side_by_side or len(shown.limits)):
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(*shown.limits[i]), cmap)
        beside = used[i : i + side_by_side] if side_by_side else used
        figure.colorbar(scale, ax=beside, label=_literal(shown.layout.value.label), pad=0.01)
    handles = _diagram_legend(shown)
    in_a_row = _legend_columns(len(handles), width)
    figure.legend(handles=handles, loc="outside lower center", ncols=in_a_row, fontsize=8)
    return figure


def _diagram_legend(shown: panels.Diagrams) -> list[Any]:
    handles: list[Any] = [mpl.lines.Line2D([], [], color="0.2", ls="", marker="*", label="best of its row")]
    if shown.layout.value.of_training:
        failed = "failed (learned nothing)"
        handles += [
            Patch(facecolor=panels.FAILED_COLOR, hatch="//", edgecolor="0.4", label=failed),
            Patch(facecolor=panels.DIVERGED_COLOR, hatch="xx", edgecolor="0.9", label="diverged"),
            Patch(facecolor="white", edgecolor="0.8", label="not trained: beyond"),
            mpl.lines.Line2D([], [], color=panels.BOUNDARY_COLOR, lw=2, label="failure boundary"),
        ]
    if Cell.WAITING in shown.kinds:
        handles.append(Patch(facecolor=panels.WAITING_COLOR, hatch="..", edgecolor="0.6", label="waiting"))
    if Cell.ERROR in shown.kinds:
        no_result = "error: no result"
        handles.append(Patch(facecolor=panels.ERROR_COLOR, hatch="\\\\", edgecolor="0.4", label=no_result))
    return handles


def _draw_points(shown: panels.Points) -> Figure:
    down = -(-len(shown.panels) // panels.GAINS_ACROSS)
    figure = Figure(figsize=(5.2 * panels.GAINS_ACROSS, 3.0 * down + 0.8), layout="constrained")
    axes = figure.subplots(down, panels.GAINS_ACROSS, squeeze=False, sharex=True)
    for ax, (panel, lines) in zip(axes.flat, shown.panels.items(), strict=False):
        for line in lines:
            _draw_gains(ax, shown, panel, line)
        ax.axvline(1, ls="--", color="0.3", lw=0.9)
        ax.axhline(shown.tolerances[panel], ls=":", color="0.3", lw=0.9)
        ax.set(xscale="log", ylim=shown.ends(panel))
        ax.set_title(_literal(panel), loc="left", fontsize=9)
        ax.legend(fontsize=7)
    for ax in axes.flat[len(shown.panels) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel(_literal(shown.label))
    for ax in axes[-1]:
        ax.set_xlabel(panels.DISTANCE)
    looks: list[tuple[str, dict[str, Any]]] = [
        ("gains", {"marker": "o"}),
        ("gains no more than the dotted line", {"marker": "o", "mfc": "none"}),
        ("trains with warmup alone", {"marker": "^"}),
        ("trains without alone", {"marker": "v"}),
    ]
    handles = [mpl.lines.Line2D([], [], color="0.3", ls="", label=label, **look) for label, look in looks]
    handles.append(mpl.lines.Line2D([], [], color="0.3", ls="--", lw=1, label="stability limit at the start"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def _draw_gains(ax: Axes, shown: panels.Points, panel: str, line: str) -> None:
    """Draw the points of a line, each by what the gain is; the first artist of them is the legend's."""
    found, heights = shown.panels[panel][line], shown.heights(panel, line)
    color = shown.colors[panel][line]
    ax.plot([], [], "o", color=color, label=_literal(line))
    for gain, height in zip(found, heights, strict=True):
        marker = "o" if math.isfinite(gain.value) else "^" if gain.value > 0 else "v"
        face = color if gain.value > shown.tolerances[panel] else "none"
        ax.plot(gain.distance, height, marker, color=color, mfc=face, ms=5, alpha=0.8)


def _draw_table(shown: panels.Cells) -> Figure:
    size = 1.9 * (len(shown.columns) + 1), 0.32 * (len(shown.rows) + 1) + 0.7
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    ax.axis("off")
    table = ax.table(
        cellText=[list(map(_literal, texts)) for texts in shown.texts],
        rowLabels=list(map(_literal, shown.rows)),
        colLabels=list(map(_literal, shown.columns)),
        loc="center",
        cellLoc="center",
    )
    table.scale(1, 1.4)
    ax.set_title(_literal(shown.title), fontsize=9)
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
            marked = np.where(diagram.cells == kind, 0.0, np.nan)
            one_color = mpl.colors.ListedColormap([color])
            ax.pcolor(marked, cmap=one_color, hatch=hatch, edgecolors=hatch_color, linewidth=0.5)
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
    _label_ticks(ax.xaxis, list(map(number, diagram.lr_targets)), rotation=45)
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
