"""The figures of the report, in plotly."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from edgewise.lab import plots
from edgewise.lab.phase_diagram import Cell, PhaseDiagram
from edgewise.lab.recipes import PhaseDiagrams, Quantity, Trajectories, stability_limits
from edgewise.lab.store import Run

_DASHED = {"dash": "dash", "width": 1.2}


def trajectories(layout: Trajectories, runs: Sequence[Run]) -> go.Figure:
    """Return curves over the steps, with their thresholds."""
    runs, quantities = plots.shown(layout, runs)
    rows, lines = plots.labels(runs, layout.row), plots.labels(runs, layout.line)
    titles = [f"{row}: {quantity.label}" for row in rows for quantity in quantities]
    figure = make_subplots(
        rows=len(rows),
        cols=len(quantities),
        subplot_titles=titles,
        vertical_spacing=0.16,
        horizontal_spacing=0.07,
    )
    for run in runs:
        line = layout.line(run.config)
        color = plots.COLORS[lines.index(line) % len(plots.COLORS)]
        row = rows.index(layout.row(run.config)) + 1
        for col, quantity in enumerate(quantities, start=1):
            for trace in _curves(run, quantity, line, color):
                trace.showlegend = trace.showlegend and row == 1 and col == 1
                figure.add_trace(trace, row=row, col=col)
    for i, row_label in enumerate(rows, start=1):
        in_row = [run for run in runs if layout.row(run.config) == row_label]
        for col, quantity in enumerate(quantities, start=1):
            _style_axes(figure, in_row, quantity, i, col)
    figure.update_xaxes(title_text="step", row=len(rows))
    figure.add_trace(
        go.Scatter(
            x=[None], y=[None], mode="lines", line=_DASHED | {"color": "gray"}, name="stability threshold"
        )
    )
    return _styled(figure, height=300 * len(rows) + 90)


def _curves(run: Run, quantity: Quantity, name: str, color: str) -> list[go.Scatter]:
    steps, values = plots.curve(run, quantity)
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
            hovertemplate=f"{name}{diverged}<br>step %{{x}}<br>{quantity.label} %{{y:.3g}}<extra></extra>",
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
            for limit_steps, limits in plots.thresholds(run)
        ]
    return curves


def _style_axes(figure: go.Figure, runs: list[Run], quantity: Quantity, row: int, col: int) -> None:
    limits = plots.value_range(runs, quantity)
    if quantity.log:
        exponents = None if limits is None else [math.log10(limit) for limit in limits]
        figure.update_yaxes(type="log", range=exponents, exponentformat="power", dtick=1, row=row, col=col)
    else:
        figure.update_yaxes(range=limits, row=row, col=col)
    if quantity.threshold and quantity.times_lr:
        for limit in {limit for run in runs for limit in stability_limits(run.config.optimizer)}:
            figure.add_hline(y=limit, line=_DASHED | {"color": "gray"}, row=row, col=col)


def phase_diagrams(layout: PhaseDiagrams, runs: Sequence[Run]) -> go.Figure:
    """Return a heatmap for each panel, with the failure boundary; each trace has its panel as `meta`."""
    diagrams = plots.panel_diagrams(layout, runs)
    across = plots.panel_columns(layout, len(diagrams))
    down = -(-len(diagrams) // across)
    rows = max(len(d.warmups) for d in diagrams.values())
    height = (130 + 70 * rows) * down + 100
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=list(diagrams),
        shared_yaxes=layout.columns is None,
        horizontal_spacing=0.05,
        vertical_spacing=110 / height,
    )
    limits = plots.panel_limits(layout, list(diagrams.values()))
    for i, (panel, diagram) in enumerate(diagrams.items()):
        low, high = limits[i]
        at = {"row": i // across + 1, "col": i % across + 1}
        for trace in _heatmaps(diagram, low, high, showscale=i == 0 and layout.columns is None):
            trace.meta = panel
            figure.add_trace(trace, **at)
        if not layout.value.of_training:
            continue
        for y, edge in enumerate(_boundary_edges(diagram)):
            line = {"color": plots.BOUNDARY_COLOR, "width": 4}
            figure.add_shape(type="line", x0=edge, x1=edge, y0=y - 0.5, y1=y + 0.5, line=line, **at)
    figure.update_xaxes(type="category")
    figure.update_xaxes(title_text=plots.rate_axis(runs), row=down)
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_yaxes(title_text="warmup length (steps)", col=1)
    if layout.value.of_training:
        _add_legend(figure)
    return _styled(figure, height=height)


def _add_legend(figure: go.Figure) -> None:
    for name, marker in (
        ("failed: learned nothing", {"color": plots.FAILED_COLOR, "symbol": "square", "size": 12}),
        ("diverged", {"color": plots.DIVERGED_COLOR, "symbol": "square", "size": 12}),
        (
            "failure boundary (blank beyond: not trained)",
            {"color": plots.BOUNDARY_COLOR, "symbol": "line-ns-open", "size": 12, "line": {"width": 4}},
        ),
    ):
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name))


def _boundary_edges(diagram: PhaseDiagram) -> list[float]:
    """Return, for each row, the position right of its last trained cell; cell j is at [j − ½, j + ½]."""
    return [
        sum(lr <= diagram.boundary(steps) for lr in diagram.lr_targets) - 0.5 for steps in diagram.warmups
    ]


def _heatmaps(diagram: PhaseDiagram, low: float, high: float, *, showscale: bool) -> list[go.Heatmap]:
    """Return the trained cells coloured by their loss, and the others in the grey of their kind."""
    x = [f"{lr:g}" for lr in diagram.lr_targets]
    y = [str(steps) for steps in diagram.warmups]
    common: dict[str, Any] = {"x": x, "y": y, "xgap": 2, "ygap": 2}
    trained = _where(diagram, Cell.TRAINED)
    maps = [
        go.Heatmap(
            z=trained,
            zmin=low,
            zmax=high,
            colorscale=plots.color_map(diagram.value),
            showscale=showscale,
            colorbar={"title": diagram.value.label, "thickness": 14},
            text=[["" if value is None else diagram.value.text(value) for value in row] for row in trained],
            texttemplate="%{text}",
            customdata=[[_seed_deviation(x) for x in row] for row in diagram.deviation],
            hovertemplate=f"η %{{x}}, warmup %{{y}}<br>{diagram.value.label} %{{z:.3f}}%{{customdata}}<extra></extra>",
            **common,
        )
    ]
    for cell, word, color in (
        (Cell.FAILED, "fail", plots.FAILED_COLOR),
        (Cell.DIVERGED, "diverged", plots.DIVERGED_COLOR),
    ):
        marked = [[None if value is None else 0 for value in row] for row in _where(diagram, cell)]
        maps.append(
            go.Heatmap(
                z=marked,
                customdata=diagram.mean,
                colorscale=[[0, color], [1, color]],
                showscale=False,
                text=[["" if value is None else word for value in row] for row in marked],
                texttemplate="%{text}",
                hovertemplate=f"η %{{x}}, warmup %{{y}}<br>{word}, {diagram.value.label} %{{customdata:.2f}}"
                "<extra></extra>",
                **common,
            )
        )
    return maps


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


def _styled(figure: go.Figure, *, height: int) -> go.Figure:
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
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    return figure
