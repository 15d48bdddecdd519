"""A figure of the report: what its recipe says, its runs, the claims on them and the panels that show them."""

from dataclasses import dataclass
from functools import cached_property

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import Claim
from edgewise.lab.recipes.recipe import Layout
from edgewise.lab.report import layouts, panels
from edgewise.lab.results.runs import Absent, Run


@dataclass(frozen=True, kw_only=True)
class FigureResults:
    """A figure with its results; `edgewise.lab.report.presentation.read` makes those of a folder."""

    id: str
    scale: str
    title: str
    finding: str
    layout: Layout
    """The recipe's; read from a folder, its functions look up what those of the recipe returned."""
    runs: tuple[Run | Absent, ...]
    """All that the figure is made of, in the recipe's order, without those beyond the failure boundary."""
    claims: tuple[Claim, ...] = ()
    """As the recipe judged them."""
    note: str = ""
    """On how many runs they were judged, if not on all, or why they were not."""

    @cached_property
    def panels(self) -> panels.Curves | panels.Diagrams | panels.Cells | panels.Points:
        """What there is to draw, arranged once for the pictures, the page and the tables."""
        return panels.panels_of(self.layout, self.runs)

    @property
    def finished(self) -> list[Run]:
        """The runs that are there."""
        return [run for run in self.runs if isinstance(run, Run)]

    @property
    def absent(self) -> list[Absent]:
        """The runs that are not."""
        return [run for run in self.runs if isinstance(run, Absent)]

    def where(self, config: RunConfig) -> str:
        """Return where in the figure the runs of a config are found, whatever their seed."""
        return layouts.description(self.layout, config)
