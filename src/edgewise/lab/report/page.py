"""The report: one self-contained HTML page, from stored runs alone, readable offline."""

import csv
import html
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
from plotly.offline import get_plotlyjs

from edgewise.lab.recipes import Claim
from edgewise.lab.report import interactive, panels, plots, presentation, self_contained
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.plots import name_of
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

_TEMPLATE = Path(__file__).with_name("page.html")
_SCRIPT = Path(__file__).with_name("page.js")
_CURVE_POINTS = 80  # of each run behind a cell, of fewer than this:
_ALL_POINTS = 80_000
_MOST_MISSING = 20  # named one by one


def write_report(store: Store, figures: Sequence[FigureResults] | None = None) -> Path:
    """Write DIR/report.html, claims.md, boundaries.csv and the figures beside them, and return the page.

    What is missing is marked as such. No recipe is needed: what a page says is in the folder, see
    `edgewise.lab.report.presentation`.

    Args:
        store: the results folder.
        figures: from `presentation.read`, if it was called already.

    Raises:
        StoreError: the folder does not say how its figures are shown, or cannot be written to.
    """
    figures = presentation.read(store) if figures is None else figures
    plots.save_figures(store, figures)
    scripts = {"plotly": get_plotlyjs(), "script": _SCRIPT.read_text(encoding="utf-8")}
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        scripts,
        policy=self_contained.policy(list(scripts.values())),
        title=html.escape(one_line(f"edgewise · {store.path.name}")),
        verdict=html.escape(_verdict(figures)),
        sections="\n".join(_section(store, shown) for shown in figures),
        provenance=_provenance(store, figures),
    )
    write_boundaries(store, figures)
    store.write_file("claims.md", _claims_markdown(figures))
    store.write_file("report.html", page)
    return store.path / "report.html"


def _claims_markdown(figures: Sequence[FigureResults]) -> str:
    """Return the claims of all figures as a Markdown table."""
    lines = ["| | finding | expected | measured |", "|---|---|---|---|"]
    for shown in figures:
        lines.append(f"| **{_markdown(shown.id)}** | **{_markdown(shown.title)}** | | |")
        for claim in shown.claims:
            cells = map(_markdown, (claim.text, claim.expected, claim.measured))
            lines.append(f"| {'✓' if claim.holds else '✗'} | {' | '.join(cells)} |")
        if shown.note:
            lines.append(f"| | *{_markdown(shown.note)}* | | |")
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    """Return a text as a cell of a Markdown table shows it: bars end a cell, and HTML would be taken for HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.replace("|", "\\|"))


def write_boundaries(store: Store, figures: Sequence[FigureResults]) -> None:
    """Write DIR/boundaries.csv: for each row of each phase diagram its failure boundary, best rate and best value.

    They are empty for rows of which runs are missing.
    """
    lines: list[tuple[str, ...]] = [
        ("figure", "panel", "warmup", "boundary", "best rate", "best value", "value", "rate unit")
    ]
    for shown in figures:
        if not (isinstance(shown.panels, panels.Diagrams) and shown.panels.layout.value.of_training):
            continue
        unit = shown.runs[0].config.optimizer.lr_unit if shown.runs else ""
        for panel, diagram in shown.panels.diagrams.items():
            for row in diagram.warmups:
                known = diagram.complete(row)
                numbers = map(str, (diagram.boundary(row), *diagram.best(row))) if known else ("", "", "")
                lines.append((shown.id, panel, str(row), *numbers, diagram.value.label, unit))
    if len(lines) > 1:
        table = io.StringIO()
        csv.writer(table).writerows(lines)
        store.write_file("boundaries.csv", table.getvalue())


def _verdict(figures: Sequence[FigureResults]) -> str:
    claims = [claim for shown in figures for claim in shown.claims]
    open_ones = [shown.id for shown in figures if shown.note]
    parts = []
    if claims:
        parts.append(f"{sum(claim.holds for claim in claims)} of {len(claims)} findings hold in these runs.")
    if open_ones:
        parts.append(f"Not judged, or not on the runs there are now: the findings of {', '.join(open_ones)}.")
    return " ".join(parts) or "No findings are claimed of these runs."


def _section(store: Store, shown: FigureResults) -> str:
    match shown.panels:
        case panels.Curves() as curves:
            body = self_contained.plot(f"plot-{name_of(shown.id)}", shown.title, interactive.curves(curves))
        case panels.Diagrams() as diagrams:
            body = self_contained.plot(
                f"plot-{name_of(shown.id)}", shown.title, interactive.phase_diagrams(diagrams)
            )
            body += _cells(shown)
        case panels.Cells() as cells:
            body = _table(cells)
    name = name_of(shown.id)
    return (
        f'<section id="{name}"><h2>{html.escape(shown.title)} '
        f"<small>{html.escape(shown.id)} at scale {html.escape(shown.scale)}</small></h2>"
        f"<p>{html.escape(shown.finding)}</p>"
        f"{body}{_missing(store, shown)}{_claims_table(shown)}"
        f'<p class="files">As in the paper: <a href="figures/{quote(name)}.png">PNG</a>, '
        f'<a href="figures/{quote(name)}.pdf">PDF</a>.</p></section>'
    )


def _missing(store: Store, shown: FigureResults) -> str:
    """Return which runs of the figure are missing and why: those that failed one by one, the others together."""
    if not shown.absent:
        return ""
    failed = [run for run in shown.absent if run.failed]
    items = [_why(store, shown, run) for run in failed[:_MOST_MISSING]]
    if more := len(failed[_MOST_MISSING:]):
        items.append(f"and {more} more that failed: edgewise status names their tracebacks")
    for reason in dict.fromkeys(run.reason for run in shown.absent if not run.failed):
        names = [_name(shown, run) for run in shown.absent if not run.failed and run.reason == reason]
        rest = f" and {len(names) - _MOST_MISSING} more" if len(names) > _MOST_MISSING else ""
        items.append(html.escape(f"{reason}: {'; '.join(names[:_MOST_MISSING])}{rest}"))
    counts = {"ended with an error": len(failed), "waiting": len(shown.absent) - len(failed)}
    parts = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return (
        f'<div class="missing"><p>{len(shown.absent)} of {len(shown.runs)} runs are missing: {parts}. '
        f"The same command again trains them.</p><ul>{''.join(f'<li>{item}</li>' for item in items)}</ul></div>"
    )


def _why(store: Store, shown: FigureResults, run: Absent) -> str:
    file = store.failures.file(run.run_id)
    link = f' (<a href="failures/{quote(file.name)}">traceback</a>)' if file.is_file() else ""
    return f"{html.escape(_name(shown, run))}: <code>{html.escape(run.reason)}</code>{link}"


def _name(shown: FigureResults, run: Absent) -> str:
    return f"{shown.where(run.config)}, seed {run.config.seed}"


def _cells(shown: FigureResults) -> str:
    """Return the curves behind the cells: chosen from a list, with the keyboard, or by pointing at a cell."""
    runs, name = shown.finished, name_of(shown.id)
    if not runs:
        return ""
    points = max(8, min(_CURVE_POINTS, _ALL_POINTS // len(runs)))
    curves: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        curves.setdefault(shown.where(run.config), []).append(_thinned(run, points))
    options = "".join(f'<option value="{html.escape(cell)}">{html.escape(cell)}</option>' for cell in curves)
    return (
        f'<div class="cell"><label for="cell-{name}">Training behind a cell (point at it, or choose): </label>'
        f'<select id="cell-{name}" data-figure="{name}">{options}</select>'
        f'<div class="curves" id="curves-{name}" role="img" aria-label="training loss of the cell"></div>'
        f"{self_contained.data(f'data-{name}', json.dumps(curves, separators=(',', ':'), allow_nan=False))}</div>"
    )


def _thinned(run: Run, points: int) -> dict[str, Any]:
    """Return few enough points of a run's loss and rate for a small plot."""
    steps = run.columns["step"]
    kept = np.unique(np.linspace(0, len(steps) - 1, min(points, len(steps))).astype(int))
    return {
        "seed": run.config.seed,
        "step": [_short(x) for x in steps[kept]],
        "loss": [_short(x) for x in run.columns["train_loss"][kept]],
        "lr": [_short(x) for x in run.columns["lr"][kept]],
    }


def _short(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _table(shown: panels.Cells) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *shown.columns))
    body = "".join(
        f"<tr><th>{html.escape(row)}</th>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
        for row, texts in zip(shown.rows, shown.texts, strict=True)
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(shown.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _claims_table(shown: FigureResults) -> str:
    note = f'<p class="missing">Findings {html.escape(shown.note)}</p>' if shown.note else ""
    if not shown.claims:
        return note
    rows = "".join(map(_claims_row, shown.claims))
    head = "<tr><th>finding</th><th>expected</th><th>measured here</th><th></th></tr>"
    return f'{note}<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _claims_row(claim: Claim) -> str:
    return (
        f'<tr class="{"holds" if claim.holds else "fails"}"><td>{html.escape(claim.text)}</td>'
        f"<td>{html.escape(claim.expected)}</td><td>{html.escape(claim.measured)}</td>"
        f"<td>{'holds' if claim.holds else 'does not hold'}</td></tr>"
    )


def _provenance(store: Store, figures: Sequence[FigureResults]) -> str:
    outcomes = {run.config: run.outcome for shown in figures for run in shown.finished}  # figures share runs
    seconds = sum(outcome["seconds"] for outcome in outcomes.values())
    facts = store.provenance | {
        "runs": str(len(outcomes)),
        "training time, all processes": f"{seconds:.0f} s",
    }
    rows = "".join(
        f"<tr><td>{html.escape(one_line(str(k)))}</td><td>{html.escape(one_line(str(v)))}</td></tr>"
        for k, v in facts.items()
    )
    if (store.path / presentation.RECIPE).is_file():
        link = f'<a href="{presentation.RECIPE}">{presentation.RECIPE}</a>, as it was run'
        rows += f"<tr><td>recipe</td><td>{link}</td></tr>"
    return f"<table><tbody>{rows}</tbody></table>"
