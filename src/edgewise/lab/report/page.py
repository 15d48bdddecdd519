"""The report: one self-contained HTML page, from stored runs alone, readable offline."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from edgewise.lab.recipes import own
from edgewise.lab.report import (
    alternatives,
    cells,
    downloads,
    interactive,
    interactive_gains,
    panels,
    plots,
    presentation,
    self_contained,
    tables,
)
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.plots import name_of
from edgewise.lab.results import index, run_folder
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.store import Store

_OF_THE_PAPER = (
    "Why warm up the learning rate? Training is unstable when the rate exceeds about 2/λ, λ the largest curvature of "
    "the loss (for Adam, of the preconditioned loss). Warmup works by pushing λ down. Each figure below was trained "
    "and measured on this machine, and stands beside what it is to show. Those with a number are the paper's (Kalra & "
    "Barkeshli, NeurIPS 2024, arXiv 2406.09405)."
)
_CLAIMS = "claims.md"
_FILES = {
    presentation.RECIPE: "the recipe, as it was run",
    "boundaries.csv": "failure boundary and best rate of each row",
    _CLAIMS: "the findings as a Markdown table",
    presentation.PRESENTATION: "titles, labels and the settings of every planned run",
    index.NAME: "what the folder is to hold, with versions and machine",
    run_folder.RUNS: "every finished run: config.json, outcome.json, rows.parquet",
}


def write_report(store: Store, figures: Sequence[FigureResults] | None = None) -> Path:
    """Write DIR/report.html, boundaries.csv, the figures, and claims.md if there are any, and return the page.

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
    for shown in figures:
        downloads.write(store, shown)
    downloads.write_boundaries(store, figures)
    if _claims_anything(figures):
        store.write_file(_CLAIMS, _claims_markdown(figures))
    title = figures[0].title if _is_own(figures) else "edgewise"
    body = self_contained.filled(
        "page.html",
        make="edgewise sweep" if _is_own(figures) else "edgewise figure",
        heading=html.escape(title),
        lead=html.escape(figures[0].finding if _is_own(figures) else _OF_THE_PAPER),
        verdict=html.escape(_verdict(store, figures)),
        contents=_contents(figures),
        sections="\n".join(_section(store, shown, titled=not _is_own(figures)) for shown in figures),
        files=_files(store, figures),
        provenance=_provenance(store, figures),
    )
    store.write_file("report.html", self_contained.page(one_line(f"{title} · {store.path.name}"), body))
    return store.path / "report.html"


def _is_own(figures: Sequence[FigureResults]) -> bool:
    """Whether the page is of a sweep of one's own: then its title is the page's, and the paper has no part in it."""
    return len(figures) == 1 and figures[0].scale == own.SCALE


def _claims_anything(figures: Sequence[FigureResults]) -> bool:
    """Whether there are findings to tell of: a sweep of one's own need not have any."""
    return not _is_own(figures) or any(shown.claims or shown.note for shown in figures)


def _claims_markdown(figures: Sequence[FigureResults]) -> str:
    """Return the claims of all figures as a Markdown table."""
    lines = ["| | finding | expected | measured |", "|---|---|---|---|"]
    for shown in figures:
        lines.append(f"| **{markdown_cell(shown.id)}** | **{markdown_cell(shown.title)}** | | |")
        for claim in shown.claims:
            cells = map(markdown_cell, (claim.text, claim.expected, claim.measured))
            lines.append(f"| {'✓' if claim.holds else '✗'} | {' | '.join(cells)} |")
        if shown.note:
            lines.append(f"| | *{markdown_cell(shown.note)}* | | |")
    return "\n".join(lines) + "\n"


def markdown_cell(text: str) -> str:
    """Return a text as a cell of a Markdown table shows it: bars end a cell, and HTML would be taken for HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.replace("|", "\\|"))


def _verdict(store: Store, figures: Sequence[FigureResults]) -> str:
    claims = [claim for shown in figures for claim in shown.claims]
    open_ones = [shown.id for shown in figures if shown.note]
    parts = []
    if claims:
        parts.append(f"{sum(claim.holds for claim in claims)} of {len(claims)} findings hold in these runs.")
    if open_ones:
        parts.append(f"Not judged, or not on the runs there are now: the findings of {', '.join(open_ones)}.")
    if not parts and _is_own(figures):
        beyond = f" {len(store.beyond)} lie beyond the failure boundary, not trained." if store.beyond else ""
        return f"{len(figures[0].finished)} of {len(figures[0].runs)} runs are finished.{beyond}"
    return " ".join(parts) or "No findings are claimed of these runs."


def _contents(figures: Sequence[FigureResults]) -> str:
    """Return a list of the figures with their verdicts, where there are several."""
    if len(figures) < 2:
        return ""
    items = "".join(
        f'<li><a href="#{name_of(shown.id)}">{html.escape(shown.title)}</a> '
        f"<small>{html.escape(shown.id)}</small> {_count(shown)}</li>"
        for shown in figures
    )
    return f'<nav aria-label="Figures"><ul>{items}</ul></nav>'


def _count(shown: FigureResults) -> str:
    """Return how many of a figure's claims hold."""
    if not shown.claims:
        return "<small>not judged</small>" if shown.note else "<small>no findings claimed</small>"
    hold, number = sum(claim.holds for claim in shown.claims), len(shown.claims)
    return f'<span class="verdict {"holds" if hold == number else "fails"}">{hold} of {number} hold</span>'


def _section(store: Store, shown: FigureResults, *, titled: bool) -> str:
    """Return all there is of a figure; without its title and finding where the page has them at its head."""
    name = name_of(shown.id)
    where = f"{html.escape(shown.id)} at scale {html.escape(shown.scale)}"
    heading = f"<h2>{html.escape(shown.title)} <small>{where}</small></h2><p>{html.escape(shown.finding)}</p>"
    files = ", ".join(
        f'<a href="figures/{quote(name)}.{ending}">{ending.upper()}</a>' for ending in ("png", "pdf", "csv")
    )
    return (
        f'<section id="{name}">{heading if titled else "<h2>Results</h2>"}{tables.claims(shown)}{_body(store, shown)}'
        f'{tables.missing(store, shown)}<p class="files">Picture and data of the figure: {files}.</p></section>'
    )


def _body(store: Store, shown: FigureResults) -> str:
    place, alternative = f"plot-{name_of(shown.id)}", alternatives.text(shown)
    match shown.panels:
        case panels.Curves() as curves:
            plot = self_contained.plot(place, alternative, interactive.curves(curves))
            return plot + tables.runs(shown)
        case panels.Diagrams() as diagrams:
            plot = self_contained.plot(place, alternative, interactive.phase_diagrams(diagrams))
            return plot + tables.boundaries(diagrams) + cells.section(store, shown, diagrams)
        case panels.Cells() as values:
            return tables.values(values) + tables.runs(shown)
        case panels.Points() as points:
            plot = self_contained.plot(place, alternative, interactive_gains.points(points))
            return plot + tables.rules(points) + tables.runs(shown)


def _files(store: Store, figures: Sequence[FigureResults]) -> str:
    """Return links to what lies in the folder beside the page."""
    items = [
        f'<li><a href="{name}{"/" if name == run_folder.RUNS else ""}">{name}</a>: {what}</li>'
        for name, what in _FILES.items()
        if (store.path / name).exists() and (name != _CLAIMS or _claims_anything(figures))
    ]
    return f"<ul>{''.join(items)}</ul>"


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
    return f"<table><tbody>{rows}</tbody></table>"
