"""The report: one self-contained HTML page, from stored runs alone, readable offline."""

import csv
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from edgewise.lab import plots
from edgewise.lab.phase_diagram import Cell, PhaseDiagram, row_of
from edgewise.lab.recipes import (
    Claim,
    PhaseDiagrams,
    Quantity,
    Recipe,
    Table,
    Trajectories,
    recipe,
    stability_limits,
)
from edgewise.lab.store import Run, Store

_TEMPLATE = Path(__file__).with_name("report.html")
_CURVE_POINTS = 80  # of each run behind a cell, of fewer than this:
_ALL_POINTS = 80_000
_DASHED = {"dash": "dash", "width": 1.2}


def write_report(store: Store) -> Path:
    """Write DIR/report.html, claims.md, boundaries.csv and the figures beside them, and return the page.

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
    write_boundaries(store, [its_recipe for its_recipe, _ in results])
    (store.path / "claims.md").write_text(_claims_markdown(results), encoding="utf-8")
    path = store.path / "report.html"
    temporary = path.with_name(".report.html")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def all_claims(store: Store) -> list[tuple[Recipe, list[Claim]]]:
    """Return each figure's recipe with its claims, held against the stored runs."""
    pairs = [(recipe(figure.figure, store.recipe_file), store.runs_of(figure)) for figure in store.figures]
    return [(its_recipe, its_recipe.claims(runs)) for its_recipe, runs in pairs]


def _claims_markdown(results: list[tuple[Recipe, list[Claim]]]) -> str:
    """Return the claims of all figures as a Markdown table."""
    lines = ["| | finding | expected | measured |", "|---|---|---|---|"]
    for its_recipe, claims in results:
        lines.append(f"| **{its_recipe.id}** | **{its_recipe.title}** | | |")
        for claim in claims:
            cells = (text.replace("|", "\\|") for text in (claim.text, claim.expected, claim.measured))
            lines.append(f"| {'✓' if claim.holds else '✗'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_boundaries(store: Store, recipes: Sequence[Recipe]) -> None:
    """Write DIR/boundaries.csv: for each row of each phase diagram its failure boundary, best rate and best value."""
    lines: list[tuple[str, ...]] = [
        ("figure", "panel", "warmup", "boundary", "best rate", "best value", "value", "rate unit")
    ]
    for its_recipe, figure in zip(recipes, store.figures, strict=True):
        layout = its_recipe.layout
        if not (isinstance(layout, PhaseDiagrams) and layout.value.of_training):
            continue
        runs = store.runs_of(figure)
        for panel, diagram in plots.panel_diagrams(layout, runs).items():
            for row in diagram.warmups:
                numbers = (diagram.boundary(row), *diagram.best(row))
                unit = runs[0].config.optimizer.lr_unit
                lines.append((figure.figure, panel, str(row), *map(str, numbers), layout.value.label, unit))
    if len(lines) > 1:
        with (store.path / "boundaries.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(lines)


def _verdict(claims: list[Claim]) -> str:
    holding = sum(claim.holds for claim in claims)
    return f"{holding} of {len(claims)} findings hold in these runs."


def _section(its_recipe: Recipe, scale: str, runs: Sequence[Run], claims: list[Claim]) -> str:
    match its_recipe.layout:
        case Trajectories():
            body = _plot(its_recipe, _trajectories(its_recipe.layout, runs))
        case PhaseDiagrams():
            body = _plot(its_recipe, _phase_diagrams(its_recipe.layout, runs)) + _cells(its_recipe, runs)
        case Table():
            body = _table(its_recipe.layout, runs)
    return (
        f'<section id="{its_recipe.id}"><h2>{html.escape(its_recipe.title)} '
        f"<small>{its_recipe.id} at scale {scale}</small></h2>"
        f"<p>{html.escape(its_recipe.finding)}</p>"
        f"{body}{_claims_table(claims)}"
        f'<p class="files">As in the paper: <a href="figures/{its_recipe.id}.png">PNG</a>, '
        f'<a href="figures/{its_recipe.id}.pdf">PDF</a>.</p></section>'
    )


def _plot(its_recipe: Recipe, figure: go.Figure) -> str:
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{its_recipe.id}",  # not a random one: equal results, equal page
        config={"displaylogo": False, "responsive": True},
    )
    return f'<div class="plot" role="img" aria-label="{html.escape(its_recipe.title)}">{plot}</div>'


def _cells(its_recipe: Recipe, runs: Sequence[Run]) -> str:
    """Return the curves behind the cells: chosen from a list, with the keyboard, or by pointing at a cell."""
    layout = its_recipe.layout
    assert isinstance(layout, PhaseDiagrams)
    points = max(8, min(_CURVE_POINTS, _ALL_POINTS // max(1, len(runs))))
    curves: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        name = f"{layout.panel(run.config)} · η {run.config.optimizer.lr:g} · warmup {row_of(run.config)}"
        curves.setdefault(name, []).append(_thinned(run, points))
    options = "".join(f"<option>{html.escape(name)}</option>" for name in curves)
    content = json.dumps(curves, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="cell"><label for="cell-{its_recipe.id}">Training behind a cell (point at it, or choose): </label>'
        f'<select id="cell-{its_recipe.id}" data-figure="{its_recipe.id}">{options}</select>'
        f'<div class="curves" id="curves-{its_recipe.id}" role="img" aria-label="training loss of the cell"></div>'
        f'<script type="application/json" id="data-{its_recipe.id}">{content}</script></div>'
    )


def _thinned(run: Run, points: int) -> dict[str, Any]:
    """Return few enough points of a run's loss and rate for a small plot."""
    steps = run.columns["step"]
    kept = np.unique(np.linspace(0, len(steps) - 1, min(points, len(steps))).astype(int))
    loss, lr = run.columns["train_loss"][kept], run.columns["lr"][kept]
    return {
        "seed": run.config.seed,
        "step": steps[kept].astype(int).tolist(),
        "loss": [float(f"{x:.4g}") if math.isfinite(x) else None for x in loss],
        "lr": [float(f"{x:.4g}") for x in lr],
    }


def _table(layout: Table, runs: Sequence[Run]) -> str:
    rows, columns, texts = plots.table_cells(layout, runs)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
    body = "".join(
        f"<tr><th>{html.escape(row)}</th>{''.join(f'<td>{html.escape(t)}</td>' for t in its)}</tr>"
        for row, its in zip(rows, texts, strict=True)
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(layout.value.label)}: mean ± deviation (seeds)</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
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


def _phase_diagrams(layout: PhaseDiagrams, runs: Sequence[Run]) -> go.Figure:
    diagrams = plots.panel_diagrams(layout, runs)
    across = plots.panel_columns(len(diagrams))
    down = -(-len(diagrams) // across)
    rows = max(len(d.warmups) for d in diagrams.values())
    height = (130 + 70 * rows) * down + 100
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=list(diagrams),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        vertical_spacing=110 / height,
    )
    low, high = plots.color_limits(list(diagrams.values()))
    for i, (panel, diagram) in enumerate(diagrams.items()):
        at = {"row": i // across + 1, "col": i % across + 1}
        for trace in _heatmaps(diagram, low, high, showscale=i == 0):
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
