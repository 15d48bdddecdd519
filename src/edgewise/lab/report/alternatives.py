"""What is to be seen in a figure, in words: for those who do not see it."""

from collections import Counter

from edgewise.lab.report import panels
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.ticks import number
from edgewise.lab.results.gains import Rule, rule
from edgewise.lab.results.phase_diagram import Cell, PhaseDiagram, Row


def text(shown: FigureResults) -> str:
    """Return what the figure shows of its runs."""
    match shown.panels:
        case panels.Curves() as curves:
            return f"{shown.title}. {_of_curves(curves)}"
        case panels.Diagrams() as diagrams:
            its = [f"{panel}: {_of_diagram(diagram)}" for panel, diagram in diagrams.diagrams.items()]
            return f"{shown.title}. {diagrams.layout.value.label} by {diagrams.rate_axis} and warmup. {' '.join(its)}"
        case panels.Cells() as cells:
            return f"{shown.title}. Table of {len(cells.rows)} rows and {len(cells.columns)} columns."
        case panels.Points() as points:
            its = [
                f"{panel}: {line}: {_of_rule(rule(found, points.tolerances[panel]))}"
                for panel, lines in points.panels.items()
                for line, found in lines.items()
            ]
            return f"{shown.title}. {points.label} by distance from the edge at the start. {' '.join(its)}"


def onset(its: Rule) -> str:
    """Return in words from which distance on warmup gains at all rates."""
    if its.onset is None:
        return "not at the largest rate"
    return f"{its.onset.distance:.3g} (η {its.onset.target})"


def boundary(diagram: PhaseDiagram, row: Row) -> str:
    """Return the failure boundary of a row in words, or why it is not known."""
    if not diagram.complete(row):
        return "not known: runs are missing"
    last = diagram.boundary(row)
    if not last:
        return "nothing trained"
    return f"{number(last)}{'' if fails_beyond(diagram, row) else ', the highest tried: none failed'}"


def fails_beyond(diagram: PhaseDiagram, row: Row) -> bool:
    """Whether a rate above the boundary of a row was tried."""
    kinds = diagram.cells[diagram.warmups.index(row)]
    beyond = kinds[sum(lr <= diagram.boundary(row) for lr in diagram.lr_targets) :]
    return bool({Cell.FAILED, Cell.DIVERGED} & set(beyond))


def _of_curves(shown: panels.Curves) -> str:
    names = ", ".join(quantity.label for quantity in shown.quantities)
    ends = Counter(bool(run.outcome["diverged"]) for run in shown.runs)
    missing = f", {len(shown.absent)} missing" if shown.absent else ""
    return (
        f"Curves over the steps of {names}, for {', '.join(shown.rows)}. A line each for {', '.join(shown.lines)}. "
        f"{len(shown.runs)} runs, {ends[True]} diverged{missing}."
    )


def _of_rule(its: Rule) -> str:
    return (
        f"gains at {its.missed} of {its.below} rates below 1, and at {its.found} of {its.beyond} from 1 on, of which "
        f"{its.decided} train with warmup alone."
    )


def _of_diagram(diagram: PhaseDiagram) -> str:
    rates = f"rates {number(diagram.lr_targets[0])} to {number(diagram.lr_targets[-1])}"
    if not diagram.value.of_training:
        return f"{rates}, {len(diagram.warmups)} rows."
    rows = [f"warmup {row}: failure boundary {boundary(diagram, row)}" for row in diagram.warmups]
    return f"{rates}. {'; '.join(rows)}."
