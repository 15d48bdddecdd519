"""The report: one self-contained HTML page, from stored runs alone, readable offline."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from edgewise.lab import plots
from edgewise.lab.phase_diagram import Cell, PhaseDiagram
from edgewise.lab.recipes import (
    Claim,
    PhaseDiagrams,
    Quantity,
    Recipe,
    Trajectories,
    late_stability_limit,
    recipe,
)
from edgewise.lab.store import Run, Store

_TEMPLATE = Path(__file__).with_name("report.html")
_DASHED = {"dash": "dash", "width": 1.2}


def write_report(store: Store) -> Path:
    """Write DIR/report.html and the figures beside it, and return the page.

    Raises:
        StoreError: a run of the sweep is missing.
    """
    results = all_claims(store)
    plots.save_figures(store, [its_recipe for its_recipe, _ in results])
    sections = [
        _section(its_recipe, figure_runs.scale, store.runs_of(figure_runs), claims)
        for figure_runs, (its_recipe, claims) in zip(store.figures, results, strict=True)
    ]
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"edgewise · {store.path.name}"),
        verdict=_verdict([claim for _, claims in results for claim in claims]),
        sections="\n".join(sections),
        provenance=_provenance(store),
        plotly=get_plotlyjs(),
    )
    path = store.path / "report.html"
    temporary = path.with_name(".report.html")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def all_claims(store: Store) -> list[tuple[Recipe, list[Claim]]]:
    """Return each figure's recipe with its claims, held against the stored runs."""
    pairs = [(recipe(figure.figure), store.runs_of(figure)) for figure in store.figures]
    return [(its_recipe, its_recipe.claims(runs)) for its_recipe, runs in pairs]


def _verdict(claims: list[Claim]) -> str:
    holding = sum(claim.holds for claim in claims)
    return f"{holding} of {len(claims)} findings hold in these runs."


def _section(its_recipe: Recipe, scale: str, runs: Sequence[Run], claims: list[Claim]) -> str:
    match its_recipe.layout:
        case Trajectories():
            figure = _trajectories(its_recipe.layout, runs)
        case PhaseDiagrams():
            figure = _phase_diagrams(its_recipe.layout, runs)
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{its_recipe.id}",  # not a random one: equal results, equal page
        config={"displaylogo": False, "responsive": True},
    )
    return (
        f'<section id="{its_recipe.id}"><h2>{html.escape(its_recipe.title)} '
        f"<small>{its_recipe.id} at scale {scale}</small></h2>"
        f"<p>{html.escape(its_recipe.finding)}</p>"
        f'<div class="plot" role="img" aria-label="{html.escape(its_recipe.title)}">{plot}</div>'
        f"{_claims_table(claims)}"
        f'<p class="files">As in the paper: <a href="figures/{its_recipe.id}.png">PNG</a>, '
        f'<a href="figures/{its_recipe.id}.pdf">PDF</a>.</p></section>'
    )


def _claims_table(claims: list[Claim]) -> str:
    rows = "".join(
        f'<tr class="{"holds" if claim.holds else "fails"}"><td>{html.escape(claim.text)}</td>'
        f"<td>{html.escape(claim.expected)}</td><td>{html.escape(claim.measured)}</td>"
        f"<td>{'holds' if claim.holds else 'does not hold'}</td></tr>"
        for claim in claims
    )
    head = "<tr><th>finding</th><th>expected</th><th>measured here</th><th></th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _provenance(store: Store) -> str:
    run_ids = {run_id for figure in store.figures for run_id in figure.run_ids} - store.beyond
    seconds = sum(store.outcome(run_id)["seconds"] for run_id in run_ids)
    facts = store.provenance | {"runs": str(len(run_ids)), "training time, all processes": f"{seconds:.0f} s"}
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f"<table><tbody>{rows}</tbody></table>"


def _trajectories(layout: Trajectories, runs: Sequence[Run]) -> go.Figure:
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
        limit_steps, limits = plots.threshold(run)
        curves.append(
            go.Scatter(
                x=limit_steps,
                y=limits,
                legendgroup=name,
                showlegend=False,
                mode="lines",
                line=_DASHED | {"color": color},
                hovertemplate=f"{name}<br>step %{{x}}<br>threshold %{{y:.3g}}<extra></extra>",
            )
        )
    return curves


def _style_axes(figure: go.Figure, runs: list[Run], quantity: Quantity, row: int, col: int) -> None:
    limits = plots.value_range(runs, quantity)
    if quantity.log:
        exponents = None if limits is None else [math.log10(limit) for limit in limits]
        figure.update_yaxes(type="log", range=exponents, exponentformat="power", dtick=1, row=row, col=col)
    else:
        figure.update_yaxes(range=limits, row=row, col=col)
    if quantity.threshold and quantity.times_lr:
        for limit in {late_stability_limit(run.config.optimizer) for run in runs}:
            figure.add_hline(y=limit, line=_DASHED | {"color": "gray"}, row=row, col=col)


def _phase_diagrams(layout: PhaseDiagrams, runs: Sequence[Run]) -> go.Figure:
    diagrams = plots.panel_diagrams(layout, runs)
    figure = make_subplots(
        rows=1, cols=len(diagrams), subplot_titles=list(diagrams), shared_yaxes=True, horizontal_spacing=0.05
    )
    low, high = plots.color_limits(list(diagrams.values()))
    for col, diagram in enumerate(diagrams.values(), start=1):
        for trace in _heatmaps(diagram, low, high, showscale=col == 1):
            figure.add_trace(trace, row=1, col=col)
        for steps, edges in zip(diagram.warmups, _boundary_edges(diagram), strict=True):
            y = diagram.warmups.index(steps)
            line = {"color": plots.BOUNDARY_COLOR, "width": 4}
            figure.add_shape(
                type="line", x0=edges, x1=edges, y0=y - 0.5, y1=y + 0.5, line=line, row=1, col=col
            )
    figure.update_xaxes(title_text="target learning rate", type="category")
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_yaxes(title_text="warmup length (steps)", col=1)
    for name, marker in (
        ("failed: learned nothing", {"color": plots.FAILED_COLOR, "symbol": "square", "size": 12}),
        ("diverged", {"color": plots.DIVERGED_COLOR, "symbol": "square", "size": 12}),
        (
            "failure boundary",
            {"color": plots.BOUNDARY_COLOR, "symbol": "line-ns-open", "size": 12, "line": {"width": 4}},
        ),
    ):
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name))
    return _styled(figure, height=130 + 70 * max(len(d.warmups) for d in diagrams.values()) + 100)


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
            colorscale="Viridis_r",
            showscale=showscale,
            colorbar={"title": "test loss", "thickness": 14},
            text=[["" if value is None else f"{value:.2f}" for value in row] for row in trained],
            texttemplate="%{text}",
            hovertemplate="η %{x}, warmup %{y}<br>test loss %{z:.3f}<extra></extra>",
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
                hovertemplate=f"η %{{x}}, warmup %{{y}}<br>{word}, test loss %{{customdata:.2f}}<extra></extra>",
                **common,
            )
        )
    return maps


def _where(diagram: PhaseDiagram, cell: Cell) -> list[list[float | None]]:
    """Return the test loss of the cells of one kind; 0 where it is not finite, nothing elsewhere."""
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
