"""The training behind the cells of phase diagrams: what page.js shows of the one or two that are chosen."""

import json
import math
from typing import Any
from urllib.parse import quote

import numpy as np

from edgewise.lab.recipes.own import difference_label
from edgewise.lab.report import colors, panels, self_contained
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.report.plots import name_of
from edgewise.lab.report.ticks import number
from edgewise.lab.results.phase_diagram import CellValue, PhaseDiagram, row_of
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

_CURVE_POINTS = 80  # of each run behind a cell, of fewer than this:
_ALL_POINTS = 80_000


def section(store: Store, shown: FigureResults, diagrams: panels.Diagrams) -> str:
    """Return the choice of a cell and of another beside it, and the data of all."""
    name, cells = name_of(shown.id), _cells(store, shown, diagrams)
    return (
        f'<div class="cells" data-figure="{name}" data-colors="{" ".join(colors.OTHERS[:2])}" '
        f'data-first="{_best(diagrams, cells)}">'
        "<h3>Training behind a cell</h3>"
        "<p>Click a cell of the diagram to hold it here, and a second one to compare the two; or choose:</p>"
        f'<label>Cell <select id="cell-{name}"></select></label>'
        f'<label>beside <select id="beside-{name}"><option value="">none</option></select></label>'
        f'<div class="curves" id="curves-{name}" role="group" aria-label="Training loss and rate of the cells"></div>'
        f'<ul class="runs" id="runs-{name}" aria-live="polite"></ul>'
        f"{self_contained.packed(f'data-{name}', json.dumps(cells, separators=(',', ':'), allow_nan=False))}</div>"
    )


def _cells(store: Store, shown: FigureResults, diagrams: panels.Diagrams) -> dict[str, dict[str, Any]]:
    """Return panel-row-column → the cell's name and its runs, in the order of the runs."""
    about = difference_label([run.config for run in shown.runs])
    points = max(8, min(_CURVE_POINTS, _ALL_POINTS // max(1, len(shown.finished))))
    numbers = {panel: i for i, panel in enumerate(diagrams.diagrams)}
    cells: dict[str, dict[str, Any]] = {}
    for run in shown.runs:
        panel = diagrams.layout.panel(run.config)
        key = _key(numbers[panel], diagrams.diagrams[panel], run)
        cell = cells.setdefault(key, {"name": _name(panel, run), "runs": []})
        facts = {"id": run.config.run_id, "about": about(run.config)} | _link(store, run)
        cell["runs"].append(facts | _ended(run, diagrams.layout.value) | _curve(run, points))
    return cells


def _key(panel: int, diagram: PhaseDiagram, run: Run | Absent) -> str:
    row = diagram.warmups.index(row_of(run.config))
    return f"{panel}-{row}-{diagram.lr_targets.index(run.config.optimizer.lr)}"


def _name(panel: str, run: Run | Absent) -> str:
    where = f"η {number(run.config.optimizer.lr)} · warmup {row_of(run.config)}"
    return where if panel == panels.ONE_PANEL else f"{panel} · {where}"


def _best(diagrams: panels.Diagrams, cells: dict[str, Any]) -> str:
    """Return the cell with the best value of the first panel, which is shown until another is chosen."""
    diagram = next(iter(diagrams.diagrams.values()))
    sign = 1 if diagram.value.lower_is_better else -1
    best = [(sign * diagram.best(row)[1], i, diagram.best(row)[0]) for i, row in enumerate(diagram.warmups)]
    found = [(value, i, rate) for value, i, rate in best if math.isfinite(value)]
    if not found:
        return next(iter(cells), "")
    _, i, rate = min(found)
    return f"0-{i}-{diagram.lr_targets.index(rate)}"


def _link(store: Store, run: Run | Absent) -> dict[str, str]:
    """Return what to read of a run, below the folder: its config, or the traceback of one that failed."""
    if isinstance(run, Run):
        return {"link": f"runs/{run.config.run_id}/config.json", "to": "config"}
    file = store.failures.file(run.run_id)
    return {"link": f"failures/{quote(file.name)}", "to": "traceback"} if file.is_file() else {}


def _ended(run: Run | Absent, value: CellValue) -> dict[str, str]:
    """Return how a run ended, in words."""
    state = panels.state(run, value)
    if isinstance(run, Absent):
        return {"says": state if run.reason == "not trained yet" else f"{state}: {run.reason}"}
    number_of_it = value.of(run)
    measured = f", {value.label} {value.text(number_of_it)}" if math.isfinite(number_of_it) else ""
    after = f" after {run.outcome['num_steps']} steps" if run.outcome["diverged"] else ""
    return {"says": f"{state}{after}{measured}"}


def _curve(run: Run | Absent, points: int) -> dict[str, Any]:
    """Return few enough points of a run's loss and rate for a small plot; of one that is absent, none."""
    if isinstance(run, Absent):
        return {}
    steps = run.columns["step"]
    kept = np.unique(np.linspace(0, len(steps) - 1, min(points, len(steps))).astype(int))
    return {
        "diverged": bool(run.outcome["diverged"]),
        "step": [_short(x) for x in steps[kept]],
        "loss": [_short(x) for x in run.columns["train_loss"][kept]],
        "lr": [_short(x) for x in run.columns["lr"][kept]],
    }


def _short(x: float) -> float | None:
    return float(f"{x:.4g}") if math.isfinite(x) else None
