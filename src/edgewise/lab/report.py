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

from edgewise.lab import interactive, plots
from edgewise.lab.phase_diagram import row_of
from edgewise.lab.recipes import (
    Claim,
    PhaseDiagrams,
    Recipe,
    Table,
    Trajectories,
    recipe,
)
from edgewise.lab.store import Run, Store

_TEMPLATE = Path(__file__).with_name("report.html")
_CURVE_POINTS = 80  # of each run behind a cell, of fewer than this:
_ALL_POINTS = 80_000

Results = list[tuple[Recipe, list[Claim]]]  # each figure's recipe, and its claims on the stored runs


def write_report(store: Store, results: Results | None = None) -> Path:
    """Write DIR/report.html, claims.md, boundaries.csv and the figures beside them, and return the page.

    Args:
        store: the results folder.
        results: from `all_claims`, if it was called already.

    Raises:
        StoreError: a run of the sweep is missing.
    """
    results = results or all_claims(store)
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


def all_claims(store: Store) -> Results:
    """Return each figure's recipe with its claims, held against the stored runs."""
    pairs = [(recipe(figure.figure, store.recipe_file), store.runs_of(figure)) for figure in store.figures]
    return [(its_recipe, its_recipe.claims(runs)) for its_recipe, runs in pairs]


def _claims_markdown(results: Results) -> str:
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
            body = _plot(its_recipe, interactive.trajectories(its_recipe.layout, runs))
        case PhaseDiagrams():
            body = _plot(its_recipe, interactive.phase_diagrams(its_recipe.layout, runs)) + _cells(
                its_recipe, runs
            )
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
