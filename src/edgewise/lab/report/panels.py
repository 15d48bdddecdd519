"""What the figures show, whichever library draws them: curves, diagrams, tables and points, from stored runs alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import PhaseDiagrams, Quantity, Table, Trajectories, stability_limits
from edgewise.lab.recipes.recipe import Gains, Layout
from edgewise.lab.report import colors
from edgewise.lab.results.gains import Gain, gains
from edgewise.lab.results.phase_diagram import Cell, CellValue, PhaseDiagram, kind_of, phase_diagram
from edgewise.lab.results.runs import Absent, Run

Array = np.ndarray[Any, Any]

FAILED_COLOR, DIVERGED_COLOR, BOUNDARY_COLOR = "#d9d9d9", "#6f6f6f", colors.VERMILLION
ERROR_COLOR, WAITING_COLOR = "#f3d3e4", "#dfe9f5"

ONE_PANEL = "all runs"  # the label of a panel that needs none
GAINS_ACROSS = 2  # panels of gains, side by side
DISTANCE = "target rate × initial sharpness ÷ its limit"
_PANEL_COLUMNS = 3  # more panels stand in two rows


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Panels of curves over the steps: a row of panels for each row label, a column for each quantity."""

    layout: Trajectories
    rows: tuple[str, ...]
    lines: dict[str, str]
    """Label → colour, the same whatever is missing."""
    quantities: tuple[Quantity, ...]
    """Those that any run measured; all, while no run is there."""
    runs: tuple[Run, ...]
    absent: tuple[Absent, ...]

    @classmethod
    def of(cls, layout: Trajectories, runs: Sequence[Run | Absent]) -> "Curves":
        """Return the panels of these runs, without those of one step, which have no trajectory."""
        planned = [run for run in runs if run.config.num_steps > 1]
        there = tuple(run for run in planned if isinstance(run, Run))
        lines: dict[str, RunConfig] = {}
        for run in planned:
            lines.setdefault(layout.line(run.config), run.config)
        measured = tuple(q for q in layout.quantities if any(q.column in run.columns for run in there))
        return cls(
            layout=layout,
            rows=_labels(planned, layout.row),
            lines=colors.of_lines(lines),
            quantities=measured if there else layout.quantities,
            runs=there,
            absent=tuple(run for run in planned if isinstance(run, Absent)),
        )

    def in_row(self, row: str) -> list[Run]:
        """Return the runs with a curve in a row of panels."""
        return [run for run in self.runs if self.layout.row(run.config) == row]


@dataclass(frozen=True, kw_only=True)
class Diagrams:
    """Phase diagrams side by side."""

    layout: PhaseDiagrams
    diagrams: dict[str, PhaseDiagram]
    """Panel label → diagram."""
    limits: tuple[tuple[float, float], ...]
    """The ends of the colours of each panel."""
    rate_axis: str
    """What the columns of the diagrams count."""

    @classmethod
    def of(cls, layout: PhaseDiagrams, runs: Sequence[Run | Absent]) -> "Diagrams":
        """Arrange the runs of each panel."""
        diagrams = {
            panel: phase_diagram([run for run in runs if layout.panel(run.config) == panel], layout.value)
            for panel in _labels(runs, layout.panel)
        }
        in_sharpness = any(run.config.optimizer.lr_unit == "1/sharpness" for run in runs)
        return cls(
            layout=layout,
            diagrams=diagrams,
            limits=_limits(list(diagrams.values()), layout.columns or len(diagrams)),
            rate_axis="target learning rate × λ₀" if in_sharpness else "target learning rate",
        )

    @property
    def across(self) -> int:
        """How many panels stand side by side."""
        number = len(self.diagrams)
        if self.layout.columns is not None:
            return min(self.layout.columns, number)
        return number if number <= _PANEL_COLUMNS else -(-number // 2)

    @property
    def down(self) -> int:
        """How many lines of panels there are."""
        return -(-len(self.diagrams) // self.across)

    @property
    def most_warmups(self) -> int:
        """How many rows the tallest diagram has."""
        return max(len(diagram.warmups) for diagram in self.diagrams.values())

    @property
    def kinds(self) -> set[Cell]:
        """What became of the cells, over all panels."""
        return {cell for diagram in self.diagrams.values() for cell in diagram.cells.flat}

    @property
    def color_map(self) -> str:
        """The name of the colours, which matplotlib and plotly share: bright is good."""
        return "viridis_r" if self.layout.value.lower_is_better else "viridis"


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A table of values."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    """Of each row, in each column: mean ± sample deviation, and over how many seeds."""

    @classmethod
    def of(cls, layout: Table, runs: Sequence[Run | Absent]) -> "Cells":
        """Return the table of these runs; what is absent is counted."""
        rows, columns = _labels(runs, layout.row), _labels(runs, layout.column)
        texts = tuple(tuple(_cell_text(layout, runs, (row, column)) for column in columns) for row in rows)
        title = f"{layout.value.label}: mean ± deviation (seeds)"
        return cls(title=title, rows=rows, columns=columns, texts=texts)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Gains over distances from the edge: panels of points, those of a line in one colour."""

    panels: dict[str, dict[str, tuple[Gain, ...]]]
    """Panel label → line label → its rates, nearest first; also lines and panels of which none is known yet."""
    tolerances: dict[str, float]
    """Panel label → what a gain must be above to count."""
    colors: dict[str, dict[str, str]]
    """Panel label → line label → its colour."""
    label: str
    """What is gained."""

    @classmethod
    def of(cls, layout: Gains, runs: Sequence[Run | Absent]) -> "Points":
        """Arrange the gains of each panel and line."""
        inside: dict[str, dict[str, list[Run | Absent]]] = {}
        for run in runs:
            lines = inside.setdefault(layout.panel(run.config), {})
            lines.setdefault(layout.line(run.config), []).append(run)
        return cls(
            panels={
                panel: {line: gains(its, layout.value) for line, its in lines.items()}
                for panel, lines in inside.items()
            },
            tolerances={layout.panel(run.config): layout.tolerance(run.config) for run in runs},
            colors={
                panel: colors.of_lines({line: its[0].config for line, its in lines.items()})
                for panel, lines in inside.items()
            },
            label=layout.value.label,
        )

    def ends(self, panel: str) -> tuple[float, float]:
        """Return where a panel's axis ends; gains that are not finite stand there."""
        every = [gain for its in self.panels[panel].values() for gain in its]
        finite = [gain.value for gain in every if np.isfinite(gain.value)]
        low, high = min((0.0, *finite)), max((3 * self.tolerances[panel], *finite))
        margin = 0.25 * (high - low)
        return low - (margin if any(gain.value == -np.inf for gain in every) else margin / 4), high + margin

    def heights(self, panel: str, line: str) -> list[float]:
        """Return where the points of a line stand: at their gains, or near an end of the axis, each line at its own."""
        low, high = self.ends(panel)
        inset = 0.025 * (high - low) * (1 + list(self.panels[panel]).index(line))
        at = {np.inf: high - inset, -np.inf: low + inset}
        return [at.get(gain.value, gain.value) for gain in self.panels[panel][line]]


def panels_of(layout: Layout, runs: Sequence[Run | Absent]) -> Curves | Diagrams | Cells | Points:
    """Return what a figure of this layout shows of these runs."""
    match layout:
        case Trajectories():
            return Curves.of(layout, runs)
        case PhaseDiagrams():
            return Diagrams.of(layout, runs)
        case Table():
            return Cells.of(layout, runs)
        case Gains():
            return Points.of(layout, runs)


def curve(run: Run, quantity: Quantity) -> tuple[Array, Array]:
    """Return steps and values of a quantity, finite ones only."""
    steps, values = run.measured(quantity.column)
    if quantity.times_lr:
        values = values * run.columns["lr"][steps.astype(int)]
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def thresholds(run: Run) -> list[tuple[Array, Array]]:
    """Return steps and limit/η_t, the curvature at which the run's rate becomes unstable, for each of its limits."""
    return [(run.columns["step"], limit / run.columns["lr"]) for limit in stability_limits(run)]


def state(run: Run | Absent, value: CellValue) -> str:
    """Return what became of a run, in a word."""
    return kind_of(run, value).value


def value_range(runs: Sequence[Run], quantity: Quantity) -> tuple[float, float] | None:
    """Return where the runs that trained have their values, with room; a diverging run does not set the axis."""
    trained = [curve(run, quantity)[1] for run in runs if not run.outcome["diverged"]]
    values = np.concatenate([v[v > 0] for v in trained]) if trained else np.empty(0)
    if not len(values):
        return None
    if quantity.log:
        return float(values.min() / 2), float(values.max() * 4)
    return 0.0, float(values.max() * 1.1)


def color_limits(diagrams: Sequence[PhaseDiagram]) -> tuple[float, float]:
    """Return the smallest and largest value over the trained cells."""
    trained = np.concatenate([d.mean[d.cells == Cell.TRAINED] for d in diagrams])
    trained = trained[np.isfinite(trained)]
    return (float(trained.min()), float(trained.max())) if len(trained) else (0.0, 1.0)


def _limits(diagrams: Sequence[PhaseDiagram], line: int) -> tuple[tuple[float, float], ...]:
    """Return the ends of the colours of each diagram; those in one line of so many share them."""
    lines = (diagrams[start : start + line] for start in range(0, len(diagrams), line))
    return tuple(color_limits(together) for together in lines for _ in together)


def _labels(runs: Sequence[Run | Absent], of: Callable[[RunConfig], str]) -> tuple[str, ...]:
    """Return the distinct labels of the runs, in their order."""
    return tuple(dict.fromkeys(of(run.config) for run in runs))


def _cell_text(layout: Table, runs: Sequence[Run | Absent], at: tuple[str, str]) -> str:
    inside = [run for run in runs if (layout.row(run.config), layout.column(run.config)) == at]
    values = [layout.value.of(run) for run in inside if isinstance(run, Run)]
    missing = f", {len(inside) - len(values)} missing" if len(values) < len(inside) else ""
    return _mean_and_deviation(values, layout.value.digits) + missing


def _mean_and_deviation(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f} ({len(values)})" if len(values) > 1 else mean
