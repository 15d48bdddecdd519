"""What a recipe of one's own shows in a cell, under its public name; diagrams are in `edgewise.lab.results`."""

from edgewise.lab.results.phase_diagram import CellValue, OutcomeEntry

__all__ = ["CellValue", "OutcomeEntry"]
