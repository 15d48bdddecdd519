"""The figures of the report, in plotly."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from edgewise.lab.recipes import Quantity, stability_limits
from edgewise.lab.report import panels
from edgewise.lab.report.ticks import number
from edgewise.lab.results.phase_diagram import Cell, PhaseDiagram
from edgewise.lab.results.runs import Run

_PATTERN = {"size": 8, "solidity": 0.15, "fgopacity": 0.5}
_HATCHES = {
    Cell.FAILED: {"shape": "/", "bgcolor": panels.FAILED_COLOR, "fgcolor": "#555555"},
    Cell.DIVERGED: {"shape": "x", "bgcolor": panels.DIVERGED_COLOR, "fgcolor": "#e6e6e6"},
    Cell.WAITING: {"shape": ".", "bgcolor": panels.WAITING_COLOR, "fgcolor": "#555555"},
    Cell.ERROR: {"shape": "\\", "bgcolor": panels.ERROR_COLOR, "fgcolor": "#555555"},
}
_STAR: dict[str, Any] = {
    "mode": "markers",
    "marker": {"symbol": "star", "size": 10, "color": "#ffffff", "line": {"color": "#1a1a1a", "width": 1.2}},
}
_MOST_TICKS = 25
_DASHED = {"dash": "dash", "width": 1.2}


def literal(text: str) -> str:
    """Return a label as plotly shows it unchanged: it reads some HTML, and fields in braces."""
    return html.escape(text, quote=False).replace("{", "&#123;").replace("$", "&#36;")


def curves(shown: panels.Curves) -> go.Figure:
    """Return curves over the steps, with their thresholds."""
    rows, columns = len(shown.rows), len(shown.quantities)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[
            literal(f"{row}: {quantity.label}") for row in shown.rows for quantity in shown.quantities
        ],
        vertical_spacing=0.16,
        horizontal_spacing=0.07,
    )
    named: set[str] = set()  # in the legend
    for run in shown.runs:
        line = shown.layout.line(run.config)
        row = shown.rows.index(shown.layout.row(run.config)) + 1
        for col, quantity in enumerate(shown.quantities, start=1):
            for trace in _curves(run, quantity, literal(line), shown.lines[line]):
                trace.showlegend = trace.showlegend and col == 1 and line not in named
                figure.add_trace(trace, row=row, col=col)
            named.add(line)
    for i, row_label in enumerate(shown.rows, start=1):
        for col, quantity in enumerate(shown.quantities, start=1):
            _style_axes(figure, shown.in_row(row_label), quantity, i, col)
    figure.update_xaxes(title_text="step", row=rows)
    if any(stability_limits(run) for run in shown.runs):
        _name(figure, "stability threshold", mode="lines", line=_DASHED | {"color": "gray"})
    if any(run.outcome["diverged"] for run in shown.runs):
        _name(figure, "diverged", mode="markers", marker={"color": "gray", "symbol": "x", "size": 8})
    return styled(figure, height=300 * rows + 90)


def _curves(run: Run, quantity: Quantity, name: str, color: str) -> list[go.Scatter]:
    steps, values = panels.curve(run, quantity)
    diverged = " (diverged)" if run.outcome["diverged"] else ""
    symbols = ["circle"] * (len(steps) - 1) + ["x"] if diverged and len(steps) else None
    curves = [
        go.Scatter(
            x=steps,
            y=values,
            name=name,
            legendgroup=name,
            showlegend=True,
            mode="lines+markers" if symbols else "lines",
            line={"color": color, "width": 1.7},
            marker={"symbol": symbols, "size": 7} if symbols else None,
            hovertemplate=f"{name}{diverged}<br>step %{{x}}<br>{literal(quantity.label)} %{{y:.3g}}<extra></extra>",
        )
    ]
    if quantity.threshold and not quantity.times_lr:
        curves += [
            go.Scatter(
                x=limit_steps,
                y=limits,
                legendgroup=name,
                showlegend=False,
                mode="lines",
                line=_DASHED | {"color": color},
                hovertemplate=f"{name}<br>step %{{x}}<br>threshold %{{y:.3g}}<extra></extra>",
            )
            for limit_steps, limits in panels.thresholds(run)
        ]
    return curves


def _style_axes(figure: go.Figure, runs: list[Run], quantity: Quantity, row: int, col: int) -> None:
    limits = panels.value_range(runs, quantity)
    if quantity.log:
        exponents = None if limits is None else [math.log10(limit) for limit in limits]
        figure.update_yaxes(type="log", range=exponents, row=row, col=col)
    else:
        figure.update_yaxes(range=limits, row=row, col=col)
    if quantity.threshold and quantity.times_lr:
        for limit in {limit for run in runs for limit in stability_limits(run)}:
            figure.add_hline(y=limit, line=_DASHED | {"color": "gray"}, row=row, col=col)


def phase_diagrams(shown: panels.Diagrams) -> go.Figure:
    """Return a heatmap for each panel, with the failure boundary; each trace has its panel's number as `meta`.

    Cell (i, j) is at [j − ½, j + ½] × [i − ½, i + ½].
    """
    shared = shown.layout.columns is None  # colours
    height = (130 + 70 * shown.most_warmups) * shown.down + 100
    figure = make_subplots(
        rows=shown.down,
        cols=shown.across,
        subplot_titles=["" if panel == panels.ONE_PANEL else literal(panel) for panel in shown.diagrams],
        horizontal_spacing=0.09 if shown.across > 1 else 0.05,
        vertical_spacing=110 / height,
    )
    for i, (diagram, ends) in enumerate(zip(shown.diagrams.values(), shown.limits, strict=True)):
        at = {"row": i // shown.across + 1, "col": i % shown.across + 1}
        for trace in _heatmaps(diagram, ends, shown.color_map, showscale=i == 0 and shared):
            trace.meta = i
            figure.add_trace(trace, **at)
        for mark in (*_hatches(diagram), _stars(diagram)):
            figure.add_trace(mark, **at)
        rates, rows = list(map(number, diagram.lr_targets)), [literal(str(row)) for row in diagram.warmups]
        figure.update_xaxes(_ticks(rates), **at)
        figure.update_yaxes(_ticks(rows), **at)
        if not shown.layout.value.of_training:
            continue
        for y, edge in _boundary_edges(diagram):
            line = {"color": panels.BOUNDARY_COLOR, "width": 4}
            figure.add_shape(type="line", x0=edge, x1=edge, y0=y - 0.5, y1=y + 0.5, line=line, **at)
    figure.update_xaxes(showgrid=False)
    figure.update_xaxes(title_text=shown.rate_axis, row=shown.down)
    figure.update_yaxes(showgrid=False)
    figure.update_yaxes(title_text="warmup length (steps)", col=1)
    _add_legend(figure, shown)
    return styled(figure, height=height)


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis on which cells have names, not more than fit."""
    stride = -(-len(names) // _MOST_TICKS)
    ticks = list(range(0, len(names), stride))
    return {"tickvals": ticks, "ticktext": [names[i] for i in ticks], "range": [-0.5, len(names) - 0.5]}


def _hatches(diagram: PhaseDiagram) -> list[go.Scatter]:
    """Return the hatching of the cells of each kind that has one, through which the pointer sees the cells."""
    found = []
    for cell, pattern in _HATCHES.items():
        corners: list[tuple[float | None, float | None]] = []
        for i, j in np.argwhere(diagram.cells == cell).tolist():
            corners += [(j - 0.5, i - 0.5), (j + 0.5, i - 0.5), (j + 0.5, i + 0.5), (j - 0.5, i + 0.5)]
            corners.append((None, None))  # each a shape of its own
        if corners:
            x, y = zip(*corners, strict=True)
            seen_through = pattern | {"bgcolor": "rgba(0,0,0,0)"}  # the cell and its word are below
            found.append(go.Scatter(x=x, y=y, showlegend=False, **_hatched(seen_through)))
    return found


def _hatched(pattern: dict[str, Any]) -> dict[str, Any]:
    return {"mode": "none", "fill": "toself", "hoverinfo": "skip", "fillpattern": _PATTERN | pattern}


def _stars(diagram: PhaseDiagram) -> go.Scatter:
    """Return a star in the best cell of each row that is known."""
    best = {i: diagram.best(row) for i, row in enumerate(diagram.warmups) if diagram.complete(row)}
    at = {i: diagram.lr_targets.index(rate) for i, (rate, value) in best.items() if math.isfinite(value)}
    return go.Scatter(
        x=list(at.values()), y=[i + 0.33 for i in at], showlegend=False, hoverinfo="skip", **_STAR
    )


def _add_legend(figure: go.Figure, shown: panels.Diagrams) -> None:
    _name(figure, "best of its row", **_STAR)
    if shown.layout.value.of_training:
        boundary = {
            "color": panels.BOUNDARY_COLOR,
            "symbol": "line-ns-open",
            "size": 12,
            "line": {"width": 4},
        }
        _name(figure, "failure boundary (blank beyond: not trained)", mode="markers", marker=boundary)
    words = {
        Cell.FAILED: "failed: learned nothing",
        Cell.DIVERGED: "× diverged",
        Cell.WAITING: "waiting: not trained yet",
        Cell.ERROR: "error: no result",
    }
    for cell, pattern in _HATCHES.items():
        if cell in shown.kinds:
            _name(figure, words[cell], **_hatched(pattern))


def _name(figure: go.Figure, name: str, **look: Any) -> None:
    """Add an entry to the legend."""
    figure.add_trace(go.Scatter(x=[None], y=[None], name=name, **look))


def _boundary_edges(diagram: PhaseDiagram) -> list[tuple[int, float]]:
    """Return, for each row that is known, the position right of its last trained cell; cell j is at [j − ½, j + ½]."""
    return [
        (i, sum(lr <= diagram.boundary(steps) for lr in diagram.lr_targets) - 0.5)
        for i, steps in enumerate(diagram.warmups)
        if diagram.complete(steps)
    ]


def _heatmaps(
    diagram: PhaseDiagram, ends: tuple[float, float], color_map: str, *, showscale: bool
) -> list[go.Heatmap]:
    """Return the trained cells coloured by their loss, and the others in the grey of their kind."""
    common: dict[str, Any] = {"xgap": 2, "ygap": 2, "hoverinfo": "text"}
    trained, label = _where(diagram, Cell.TRAINED), literal(diagram.value.label)
    maps = [
        go.Heatmap(
            z=trained,
            zmin=ends[0],
            zmax=ends[1],
            colorscale=color_map,
            showscale=showscale,
            colorbar={"title": literal(diagram.value.label), "thickness": 14},
            text=[["" if value is None else diagram.value.text(value) for value in row] for row in trained],
            texttemplate="%{text}",
            hovertext=_hover(diagram, f"{label} {{mean:.3g}}{{deviation}}"),
            **common,
        )
    ]
    with_value = f", {label} {{mean:.3g}}"
    for cell, word, color, value in (
        (Cell.FAILED, "fail", panels.FAILED_COLOR, with_value),
        (Cell.DIVERGED, "×", panels.DIVERGED_COLOR, with_value),
        (Cell.WAITING, "waiting", panels.WAITING_COLOR, ""),
        (Cell.ERROR, "error", panels.ERROR_COLOR, ""),
    ):
        if cell in (Cell.WAITING, Cell.ERROR) and not (diagram.cells == cell).any():
            continue
        marked = [[None if z is None else 0 for z in row] for row in _where(diagram, cell)]
        maps.append(
            go.Heatmap(
                z=marked,
                colorscale=[[0, color], [1, color]],
                showscale=False,
                text=[["" if z is None else word for z in row] for row in marked],
                texttemplate="%{text}",
                hovertext=_hover(diagram, f"{cell.value}{value}"),
                **common,
            )
        )
    return maps


def _hover(diagram: PhaseDiagram, text: str) -> list[list[str]]:
    """Return what is said of each cell under the pointer; the text has places for its value and deviation."""
    return [
        [
            f"η {number(lr)}, warmup {literal(str(row))}<br>"
            + text.replace("{mean:.3g}", f"{mean:.3g}").replace("{deviation}", _seed_deviation(deviation))
            for lr, mean, deviation in zip(diagram.lr_targets, means, deviations, strict=True)
        ]
        for row, means, deviations in zip(diagram.warmups, diagram.mean, diagram.deviation, strict=True)
    ]


def _seed_deviation(deviation: float) -> str:
    return f" ± {deviation:.3f}" if math.isfinite(deviation) else ""


def _where(diagram: PhaseDiagram, cell: Cell) -> list[list[float | None]]:
    """Return the value of the cells of one kind; 0 where it is not finite, nothing elsewhere."""
    return [
        [
            (float(loss) if math.isfinite(loss) else 0.0) if kind is cell else None
            for kind, loss in zip(kinds, losses, strict=True)
        ]
        for kinds, losses in zip(diagram.cells, diagram.mean, strict=True)
    ]


def styled(figure: go.Figure, *, height: int) -> go.Figure:
    """Return the figure without a background of its own, so that the page's light or dark shows through."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 20, "t": 50, "b": 90},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "gray"},
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={
            "orientation": "h",
            "yref": "container",
            "y": 0.0,
            "yanchor": "bottom",
            "x": 0.5,
            "xanchor": "center",
        },
    )
    look = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "exponentformat": "e"}
    figure.update_xaxes(look)
    figure.update_yaxes(look)
    return figure
