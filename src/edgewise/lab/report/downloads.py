"""The numbers behind the figures, as CSV files beside the page."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence

from edgewise.lab.recipes import Table
from edgewise.lab.report import panels
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.plots import name_of
from edgewise.lab.results.phase_diagram import row_of
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

_FORMULA = ("=", "+", "-", "@", "\t")  # what a spreadsheet takes a text that begins so for


def write(store: Store, shown: FigureResults) -> None:
    """Write DIR/figures/NAME.csv: a row for each run, for each of its steps where it shows curves, for each gain.

    Raises:
        StoreError: it cannot be written.
    """
    match shown.panels:
        case panels.Curves() as curves:
            lines = _of_curves(curves)
        case panels.Diagrams() as diagrams:
            lines = _of_diagrams(diagrams, shown.runs)
        case panels.Cells():
            lines = _of_table(shown)
        case panels.Points() as points:
            lines = _of_points(points)
    store.write_file(f"figures/{name_of(shown.id)}.csv", _csv(lines))


def write_boundaries(store: Store, figures: Sequence[FigureResults]) -> bool:
    """Write DIR/boundaries.csv: for each row of each phase diagram its failure boundary, best rate and best value.

    They are empty for rows of which runs are missing.

    Returns:
        Whether there is any such diagram, and so the file.

    Raises:
        StoreError: it cannot be written.
    """
    lines: list[tuple[object, ...]] = [
        ("figure", "panel", "warmup", "boundary", "best rate", "best value", "value", "rate unit")
    ]
    for shown in figures:
        if not (isinstance(shown.panels, panels.Diagrams) and shown.panels.layout.value.of_training):
            continue
        unit = shown.runs[0].config.optimizer.lr_unit if shown.runs else ""
        for panel, diagram in shown.panels.diagrams.items():
            for row in diagram.warmups:
                numbers = (
                    (diagram.boundary(row), *diagram.best(row)) if diagram.complete(row) else ("", "", "")
                )
                lines.append((shown.id, panel, row, *numbers, diagram.value.label, unit))
    if len(lines) == 1:
        return False
    store.write_file("boundaries.csv", _csv(lines))
    return True


def _of_curves(shown: panels.Curves) -> Iterator[Sequence[object]]:
    columns = list(dict.fromkeys(("lr", *(quantity.column for quantity in shown.quantities))))
    yield ("run", "row", "line", "seed", "step", *columns)
    for run in shown.runs:
        config = run.config
        labels = config.run_id, shown.layout.row(config), shown.layout.line(config), config.seed
        series = [run.columns.get(column) for column in columns]
        for i, step in enumerate(run.columns["step"]):
            yield (*labels, int(step), *("" if values is None else _number(values[i]) for values in series))


def _of_diagrams(shown: panels.Diagrams, runs: Sequence[Run | Absent]) -> Iterator[Sequence[object]]:
    value = shown.layout.value
    yield ("run", "panel", "warmup", "rate", "seed", "state", value.label)
    for run in runs:
        config = run.config
        at = config.run_id, shown.layout.panel(config), row_of(config), config.optimizer.lr, config.seed
        yield (*at, panels.state(run, value), _number(value.of(run)) if isinstance(run, Run) else "")


def _of_points(shown: panels.Points) -> Iterator[Sequence[object]]:
    yield ("panel", "line", "rate", "seed", "distance", "gain")
    for panel, lines in shown.panels.items():
        for line, found in lines.items():
            for gain in found:
                at = panel, line, gain.config.optimizer.lr, gain.config.seed
                yield (*at, gain.distance, gain.value)


def _of_table(shown: FigureResults) -> Iterator[Sequence[object]]:
    layout = shown.layout
    assert isinstance(layout, Table)
    yield ("run", "row", "column", "seed", "state", layout.value.label)
    for run in shown.runs:
        config = run.config
        at = config.run_id, layout.row(config), layout.column(config), config.seed
        yield (
            *at,
            panels.state(run, layout.value),
            _number(layout.value.of(run)) if isinstance(run, Run) else "",
        )


def _number(value: float) -> object:
    return "" if math.isnan(value) else float(value)  # not measured


def _csv(lines: Iterable[Sequence[object]]) -> str:
    table = io.StringIO()
    csv.writer(table).writerows([_plain(value) for value in line] for line in lines)
    return table.getvalue()


def _plain(value: object) -> object:
    """Return a text that no spreadsheet takes for a formula; numbers as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
