"""Layouts as data: what their functions return for the runs of a figure, instead of the functions."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from edgewise.arguments import positive_count
from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes.recipe import Gains, Layout, PhaseDiagrams, Quantity, Table, Trajectories
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.phase_diagram import CellValue, OutcomeEntry, row_of
from edgewise.lab.results.runs import Run

_MOST_DIGITS = 15  # of a number in a cell


def computed(layout: Layout) -> Callable[[Run], float] | None:
    """Return the function that cells have their values from, if those are no entries of the outcomes."""
    if isinstance(layout, Trajectories) or isinstance(layout.value.of, OutcomeEntry):
        return None
    return layout.value.of


def description(layout: Layout, config: RunConfig) -> str:
    """Return where in the figure a run is found."""
    match layout:
        case Trajectories():
            return f"{layout.row(config)}, {layout.line(config)}"
        case PhaseDiagrams():
            return f"{layout.panel(config)} · η {config.optimizer.lr:g} · warmup {row_of(config)}"
        case Gains():
            return f"{layout.line(config)} · η {config.optimizer.lr:g} · warmup {row_of(config)}"
        case Table():
            return f"{layout.row(config)}, {layout.column(config)}"


def to_data(layout: Layout, configs: Sequence[RunConfig]) -> dict[str, Any]:
    """Return the layout of these runs as plain values."""

    def labels(of: Callable[[RunConfig], str]) -> dict[str, str]:
        return {config.run_id: str(of(config)) for config in configs}

    match layout:
        case Trajectories():
            quantities = [asdict(quantity) for quantity in layout.quantities]
            shape = {"row": labels(layout.row), "line": labels(layout.line)}
            return {"kind": "trajectories", "quantities": quantities} | shape
        case PhaseDiagrams():
            shape = {"panel": labels(layout.panel)}
            value = _value_to_data(layout.value)
            return {"kind": "phase diagrams", "columns": layout.columns, "value": value} | shape
        case Table():
            shape = {"row": labels(layout.row), "column": labels(layout.column)}
            return {"kind": "table", "value": _value_to_data(layout.value)} | shape
        case Gains():
            tolerances = {config.run_id: float(layout.tolerance(config)) for config in configs}
            shape = {"panel": labels(layout.panel), "line": labels(layout.line)}
            return {"kind": "gains", "value": _value_to_data(layout.value), "tolerance": tolerances} | shape


def from_data(data: dict[str, Any], ids: dict[RunConfig, str], values: dict[str, float]) -> Layout:
    """Return the layout again, for the runs of these configs and ids.

    Args:
        data: from `to_data`.
        ids: config → run id.
        values: run id → what cells show, for a layout with a `computed` value.

    Raises:
        AttributeError, KeyError, TypeError or ValueError: the data were never written by `to_data`.
    """

    def label(name: str) -> Callable[[RunConfig], str]:
        return {config: one_line(data[name][run_id]) for config, run_id in ids.items()}.__getitem__

    match data["kind"]:
        case "trajectories":
            quantities = tuple(map(_quantity_from_data, data["quantities"]))
            return Trajectories(quantities=quantities, row=label("row"), line=label("line"))
        case "phase diagrams":
            columns = None if data["columns"] is None else positive_count("columns", data["columns"])
            value = _value_from_data(data["value"], ids, values)
            return PhaseDiagrams(panel=label("panel"), value=value, columns=columns)
        case "table":
            value = _value_from_data(data["value"], ids, values)
            return Table(row=label("row"), column=label("column"), value=value)
        case "gains":
            value = _value_from_data(data["value"], ids, values)
            tolerances = {config: float(data["tolerance"][run_id]) for config, run_id in ids.items()}
            return Gains(
                panel=label("panel"), line=label("line"), value=value, tolerance=tolerances.__getitem__
            )
        case kind:
            raise ValueError(f"unknown layout {kind!r}")


def _value_to_data(value: CellValue) -> dict[str, Any]:
    entry = value.of.name if isinstance(value.of, OutcomeEntry) else None
    names = ("label", "lower_is_better", "digits", "of_training")
    return {name: getattr(value, name) for name in names} | {"entry": entry}


def _value_from_data(data: dict[str, Any], ids: dict[RunConfig, str], values: dict[str, float]) -> CellValue:
    if data["digits"] not in range(_MOST_DIGITS + 1):
        raise ValueError(f"digits must be from 0 to {_MOST_DIGITS}, got {data['digits']!r}")
    entry = None if data["entry"] is None else OutcomeEntry(one_line(data["entry"]))
    return CellValue(
        label=one_line(data["label"]),
        of=entry or (lambda run: float(values[ids[run.config]])),
        lower_is_better=data["lower_is_better"] is True,
        digits=data["digits"],
        of_training=data["of_training"] is True,
    )


def _quantity_from_data(data: dict[str, Any]) -> Quantity:
    flags = {name: data[name] is True for name in ("log", "times_lr", "threshold")}
    return Quantity(column=one_line(data["column"]), label=one_line(data["label"]), **flags)
