"""The tables of the page: claims, boundaries, values, runs and what is missing, as HTML in which all texts are text."""

import html
from urllib.parse import quote

from edgewise.lab.recipes import Claim, Trajectories
from edgewise.lab.report import alternatives, panels
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.ticks import number
from edgewise.lab.results.gains import Rule, rule
from edgewise.lab.results.phase_diagram import TEST_LOSS, PhaseDiagram, Row
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

_MOST_MISSING = 20  # named one by one
_MOST_ROWS = 16  # of boundaries that stand open


def claims(shown: FigureResults) -> str:
    """Return the verdict on each claim, and why there is none."""
    note = f'<p class="missing">Findings {html.escape(shown.note)}</p>' if shown.note else ""
    if not shown.claims:
        return note
    head = "<tr><th>verdict</th><th>finding</th><th>expected</th><th>measured here</th></tr>"
    rows = "".join(map(_claims_row, shown.claims))
    return f'{note}<table class="claims"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _claims_row(claim: Claim) -> str:
    return (
        f'<tr class="{"holds" if claim.holds else "fails"}"><td>{"holds" if claim.holds else "does not hold"}</td>'
        f'<td>{html.escape(claim.text)}</td><td data-label="expected">{html.escape(claim.expected)}</td>'
        f'<td data-label="measured">{html.escape(claim.measured)}</td></tr>'
    )


def boundaries(diagrams: panels.Diagrams) -> str:
    """Return best rate and failure boundary of each row of each diagram; nothing where training is not what counts."""
    if not diagrams.layout.value.of_training:
        return ""
    several = len(diagrams.diagrams) > 1
    columns = (
        *(("panel",) if several else ()),
        "warmup",
        "best rate",
        f"{diagrams.layout.value.label} there",
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*columns, "failure boundary"))
    rows = [
        f"<tr>{f'<td>{html.escape(panel)}</td>' if several else ''}{_boundary_cells(diagram, row)}</tr>"
        for panel, diagram in diagrams.diagrams.items()
        for row in diagram.warmups
    ]
    table = (
        '<div class="scroll" role="group" tabindex="0" aria-label="Best rate and failure boundary of each row">'
        f'<table class="boundaries"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    title = "Best rate and failure boundary"
    if len(rows) > _MOST_ROWS:
        return f"<details><summary>{title} of {len(rows)} rows</summary>{table}</details>"
    return f"<h3>{title}</h3>{table}"


def _boundary_cells(diagram: PhaseDiagram, row: Row) -> str:
    rate, value = diagram.best(row)
    known = diagram.complete(row) and diagram.boundary(row) > 0
    best = (number(rate), diagram.value.text(value)) if known else ("–", "–")
    texts = (str(row), *best, alternatives.boundary(diagram, row))
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)


def runs(shown: FigureResults) -> str:
    """Return all runs of a figure: where in it each is found, how it ended, and its config."""
    value = TEST_LOSS if isinstance(shown.layout, Trajectories) else shown.layout.value
    rows = "".join(
        f"<tr><td>{html.escape(shown.where(run.config))}</td><td>{run.config.seed}</td>"
        f"<td>{html.escape(panels.state(run, value))}</td><td>{_config(run)}</td></tr>"
        for run in shown.runs
    )
    head = "<tr><th>run</th><th>seed</th><th>became</th><th>config</th></tr>"
    return (
        f"<details><summary>{len(shown.runs)} runs</summary>"
        f"<table><thead>{head}</thead><tbody>{rows}</tbody></table></details>"
    )


def _config(run: Run | Absent) -> str:
    run_id = run.config.run_id
    return f'<a href="runs/{run_id}/config.json">{run_id}</a>' if isinstance(run, Run) else run_id


def missing(store: Store, shown: FigureResults) -> str:
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


def rules(shown: panels.Points) -> str:
    """Return for each line how the rule fares by which warmup is needed where training starts beyond the edge."""
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "",
            "starts stable: gains",
            "starts at the edge or beyond: gains",
            "decides",
            "gains at all from",
        )
    )
    body = "".join(
        f"<tr><th>{html.escape(line)}</th>{_rule_cells(rule(found, shown.tolerances[panel]))}</tr>"
        for panel, lines in shown.panels.items()
        for line, found in lines.items()
    )
    title = "Where warmup gains, in numbers of rates"
    return (
        f'<h3>{title}</h3><div class="scroll" role="group" tabindex="0" aria-label="{title}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _rule_cells(its: Rule) -> str:
    texts = (
        f"{its.missed} of {its.below}",
        f"{its.found} of {its.beyond}",
        str(its.decided),
        alternatives.onset(its),
    )
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)


def values(shown: panels.Cells) -> str:
    """Return a figure that is a table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown.columns)
    body = "".join(
        f"<tr><th>{html.escape(row)}</th>{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>"
        for row, texts in zip(shown.rows, shown.texts, strict=True)
    )
    title = html.escape(shown.title)
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
