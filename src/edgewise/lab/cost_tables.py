"""What training costs, as tables in the terminal: as it was tried, and as it is planned."""

from collections.abc import Sequence

from rich.box import HORIZONTALS
from rich.markup import escape
from rich.table import Table

from edgewise.lab.trial import Cost, name_of

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PERIODS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def tried(costs: Sequence[Cost]) -> Table:
    """Return the table of what first steps took, kind by kind, and what a whole run of the kind would take."""
    table = Table(title="First steps, in processes of one thread", box=HORIZONTALS, expand=True)
    table.add_column("kind of run", ratio=1)
    for name in ("runs", "core-seconds a step", "peak memory", "a whole run"):
        table.add_column(name, justify="right")
    for cost in costs:
        numbers = (f"{cost.seconds_a_step:.3g}", size(cost.peak_memory), duration(cost.seconds_whole))
        table.add_row(escape(name_of(cost.kind)), str(cost.num_runs), *numbers)
    return table


def size(number: float) -> str:
    """Return bytes in the unit that leaves few digits."""
    unit, name = next(((unit, name) for unit, name in _UNITS if number >= unit), (1.0, "B"))
    return f"{number / unit:.3g} {name}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that leaves few digits."""
    unit, name = next(((unit, name) for unit, name in _PERIODS if seconds >= unit), (1.0, "s"))
    return f"{seconds / unit:.3g} {name}"
