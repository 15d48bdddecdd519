"""Progress in the terminal: a bar with the time left for each figure, and the table of findings at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from edgewise.lab import sweep
from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import Claim, Recipe, recipe


@contextmanager
def bars(planned: dict[str, tuple[RunConfig, ...]], console: Console) -> Iterator[sweep.Progress]:
    """Show a bar a figure, in optimizer steps; yields the callback that moves them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            figure: progress.add_task(
                f"{figure}: {recipe(figure).title}",
                total=sum(config.num_steps for config in configs),
                start=False,
            )
            for figure, configs in planned.items()
        }

        def move(steps: dict[str, int]) -> None:
            for figure, configs in planned.items():
                completed = sum(steps[config.run_id] for config in configs)
                if completed and progress.tasks[tasks[figure]].start_time is None:
                    progress.start_task(tasks[figure])
                progress.update(tasks[figure], completed=completed)

        yield move


def findings(results: list[tuple[Recipe, list[Claim]]]) -> Table:
    """Return the table of claims: expected, measured, holds or not."""
    table = Table(title="What the paper says, and what was measured here", show_lines=False, expand=False)
    for column in ("figure", "finding", "expected", "measured", ""):
        table.add_column(column, overflow="fold")
    for its_recipe, claims in results:
        for i, claim in enumerate(claims):
            mark = "[green]holds[/green]" if claim.holds else "[bold red]does not hold[/bold red]"
            table.add_row(its_recipe.id if i == 0 else "", claim.text, claim.expected, claim.measured, mark)
        table.add_section()
    return table
