"""Progress in the terminal: a bar with the time left for each figure, and the table of findings at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from edgewise.lab import sweep
from edgewise.lab.recipes import Claim, Recipe, recipe
from edgewise.lab.work import Ladder

_TITLE_WIDTH = 24


@contextmanager
def bars(planned: dict[str, list[Ladder]], console: Console) -> Iterator[sweep.Progress]:
    """Show a bar a figure, in optimizer steps; yields the callback that moves them, and first shows them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Task] = {}

        def move(steps: dict[str, int]) -> None:
            for figure, ladders in planned.items():
                configs = list(chain.from_iterable(ladders))
                if figure not in tasks:
                    total = sum(config.num_steps for config in configs)
                    task_id = progress.add_task(_short_title(figure), total=total, start=False)
                    tasks[figure] = next(task for task in progress.tasks if task.id == task_id)
                completed = sum(steps[config.run_id] for config in configs)
                if completed and not tasks[figure].started:
                    progress.start_task(tasks[figure].id)
                progress.update(tasks[figure].id, completed=completed)

        yield move


def findings(results: list[tuple[Recipe, list[Claim]]]) -> Table:
    """Return the table of claims, figure by figure: expected, measured, holds or not."""
    table = Table(title="Findings of the paper: expected, and measured here", box=HORIZONTALS, expand=True)
    table.add_column("finding", ratio=5)
    table.add_column("expected", ratio=3)
    table.add_column("measured", ratio=4)
    for its_recipe, claims in results:
        table.add_row(f"[bold]{its_recipe.id}  {its_recipe.title}[/bold]")
        for claim in claims:
            mark = "[green]✓[/green]" if claim.holds else "[bold red]✗ does not hold:[/bold red]"
            table.add_row(f"{mark} {escape(claim.text)}", escape(claim.expected), escape(claim.measured))
        table.add_section()
    return table


def _short_title(figure: str) -> str:
    """Return the id and as much of the title as leaves room for the bar in 80 columns."""
    title = recipe(figure).title
    return f"{figure} {title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + '…'}"
