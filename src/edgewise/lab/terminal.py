"""Progress in the terminal, with the time left, and tables: of a sweep's findings, and of an inspection's."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgewise.lab import sweep
from edgewise.lab.configs import RunConfig
from edgewise.lab.ladders import Ladder
from edgewise.lab.overview import Row
from edgewise.lab.recipes import RECIPES, SCALES
from edgewise.lab.report import presentation
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.results import progress
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.store import Store

_MARKS = {  # of the lines of an inspection, by level
    "good": "[green]✓[/green]",
    "notice": "[bold yellow]![/bold yellow]",
    "bad": "[bold red]✗[/bold red]",
    "unknown": "[dim]?[/dim]",
}
_ROOMY, _WIDE = 76, 100  # columns that a bar needs, and one with a title
_TITLE_WIDTH = 18
_LINE_SECONDS = 10.0  # between two lines of progress, where no bar can move
_MOST_FAILURES = 20  # shown one by one
_STALE_SECONDS = 20  # a sweep that has not noted its progress for so long is gone

Clock = Callable[[], float]


@contextmanager
def bars(
    planned: dict[str, list[Ladder]], console: Console, clock: Clock = time.monotonic
) -> Iterator[sweep.Progress]:
    """Show how far each figure is, in optimizer steps and in runs, with the time left; yields what moves it.

    A bar a figure; in a log, where nothing can move, a line every ten seconds for all of them.
    """
    runs = {figure: list(chain.from_iterable(ladders)) for figure, ladders in planned.items()}
    totals = {figure: sum(config.num_steps for config in configs) for figure, configs in runs.items()}
    if not console.is_interactive:
        distinct = list({config.run_id: config for configs in runs.values() for config in configs}.values())
        total = sum(config.num_steps for config in distinct)
        lines = _Lines(console, clock)

        def tell(state: sweep.State) -> None:
            steps = sum(state.steps[config.run_id] for config in distinct)
            lines.tell(steps, total, f"runs {_counts(distinct, state)}")

        yield tell
        lines.end()
        return
    with Progress(*_columns(console.width), console=console) as shown:
        tasks: dict[str, Task] = {}

        def move(state: sweep.State) -> None:
            for figure, configs in runs.items():
                if figure not in tasks:
                    title = _short_title(figure) if console.width >= _WIDE else figure
                    task_id = shown.add_task(title, total=totals[figure], start=False, counts="")
                    tasks[figure] = next(task for task in shown.tasks if task.id == task_id)
                completed = sum(state.steps[config.run_id] for config in configs)
                if completed and not tasks[figure].started:
                    shown.start_task(tasks[figure].id)
                shown.update(tasks[figure].id, completed=completed, counts=_counts(configs, state))

        yield move


def _columns(width: int) -> list[ProgressColumn]:
    """Return what a line of progress is made of: without its bar and the time behind it where that is too much."""
    roomy = width >= _ROOMY
    return [
        TextColumn("{task.description}"),
        *([BarColumn(bar_width=16)] if roomy else []),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        *([TimeElapsedColumn()] if roomy else []),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    ]


class _Lines:
    """Says now and then, a line each, how far the work is and how much time is left."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console, self._clock = console, clock
        self._told = -math.inf  # when
        self._start: tuple[float, float] | None = None  # when the first step began, and what was done by then
        self._last = ""

    def tell(self, done: float, total: float | None, words: str) -> None:
        """So much is done, of so much; say so, if that has not been said just now."""
        now = self._clock()
        # Until something is done: the time that processes take to start tells nothing.
        if self._start is None or done <= self._start[1]:
            self._start = now, done
        share = f"{100 * done / total:.0f}%" if total else "0%"
        self._last = f"{share}  {words}{self._left(now, done, total)}"
        if now - self._told >= _LINE_SECONDS:
            self._print(now)

    def end(self) -> None:
        """Say how it ended, unless that was the last line."""
        if self._last:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        self._told = now
        self._console.print(self._last, soft_wrap=True, highlight=False)
        self._last = ""

    def _left(self, now: float, done: float, total: float | None) -> str:
        assert self._start is not None
        behind = done - self._start[1]
        if not total or behind <= 0 or done >= total:
            return ""
        seconds = math.ceil((total - done) * (now - self._start[0]) / behind)
        return f"  {timedelta(seconds=seconds)} left"


def _counts(configs: list[RunConfig], state: sweep.State) -> str:
    """Return how many runs are done, of how many that are to be trained; how many are running, and failed."""
    ids = [config.run_id for config in configs]
    done = sum(run_id in state.finished for run_id in ids)
    beyond = sum(run_id in state.beyond and run_id not in state.finished for run_id in ids)
    failed = sum(run_id in state.failed for run_id in ids)
    running = sum(0 < state.steps[c.run_id] < c.num_steps and c.run_id not in state.failed for c in configs)
    parts = [f"{done}/{len(ids) - beyond}"]
    parts += [f"{running} running"] if running else []
    parts += [f"[bold red]{failed} failed[/bold red]"] if failed else []
    return " ".join(parts)


def status(store: Store, now: float) -> Table:
    """Return the table of what is done, running, failed, beyond the boundary and waiting, figure by figure."""
    finished, failed = store.runs.finished(), store.failures.ids()
    noted, steps = progress.read(store.folder)
    running = set(steps) - finished if abs(now - noted) < _STALE_SECONDS else set()
    title = escape(one_line(str(store.path)))
    table = Table(title=title, box=HORIZONTALS, padding=0, show_edge=False, expand=True)
    columns = ("figure", "scale", "runs", "done", "running", "failed", "beyond", "waiting")
    for name in columns:
        is_word = name in columns[:2]
        table.add_column(name, justify="left" if is_word else "right", no_wrap=not is_word, overflow="fold")
    for figure in store.figures:
        ids = set(figure.run_ids)
        beyond = (ids & store.beyond) - finished
        counts = (ids & finished, ids & running, ids & failed - finished, beyond)
        waiting = ids.difference(*counts)
        numbers = [len(part) for part in (ids, *counts, waiting)]
        table.add_row(escape(one_line(figure.figure)), escape(one_line(figure.scale)), *map(str, numbers))
    return table


def failures(store: Store) -> Text:
    """Return which runs failed, the last lines of their tracebacks, and where these are; empty if none did."""
    failed = store.failures.ids() - store.runs.finished()
    wanted = dict.fromkeys(run_id for figure in store.figures for run_id in figure.run_ids)
    run_ids = [run_id for run_id in wanted if run_id in failed]
    if not run_ids:
        return Text()
    names = presentation.names(store, run_ids)
    text = Text("failed, and tried again by the same command:\n", style="bold")
    for run_id in run_ids[:_MOST_FAILURES]:
        text.append(f"\n{names.get(run_id, run_id)}\n", style="not bold")
        text.append(f"  {one_line(store.failures.last_line(run_id))}\n", style="not bold red")
        text.append(f"  {one_line(str(store.failures.file(run_id)))}\n", style="not bold")
    if more := len(run_ids[_MOST_FAILURES:]):
        text.append(f"\nand {more} more in {one_line(str(store.path / 'failures'))}\n", style="not bold")
    return text


def findings(figures: Sequence[FigureResults], width: int) -> Table:
    """Return the table of claims, figure by figure: expected, measured, holds or not, or why they are not judged.

    Args:
        figures: with their claims.
        width: columns of the terminal; where they are few, what was expected and measured stands below a claim.
    """
    title, roomy = "Findings: expected, and measured here", width >= _ROOMY
    table = Table(title=title, box=HORIZONTALS, expand=True, show_header=roomy)
    for name, ratio in (("finding", 5), ("expected", 3), ("measured", 4))[: 3 if roomy else 1]:
        table.add_column(name, ratio=ratio)
    for shown in figures:
        table.add_row(f"[bold]{escape(shown.id)}  {escape(shown.title)}[/bold]")
        for claim in shown.claims:
            mark = "[green]✓[/green]" if claim.holds else "[bold red]✗ does not hold:[/bold red]"
            cells = f"{mark} {escape(claim.text)}", escape(claim.expected), escape(claim.measured)
            table.add_row(*cells if roomy else [_below(*cells)])
        if shown.note:
            table.add_row(f"[bold red]{escape(shown.note)}[/bold red]")
        table.add_section()
    return table


def _below(claim: str, expected: str, measured: str) -> Group:
    """Return a claim, and below it what was expected and what was measured."""
    parts = Table.grid(padding=(0, 2))
    parts.add_row("  expected", expected)
    parts.add_row("  measured", measured)
    return Group(claim, parts)


@contextmanager
def inspecting(console: Console, clock: Clock = time.monotonic) -> Iterator[Callable[[int, int, str], None]]:
    """Show how far an inspection is, what comes now and the time left: a bar, or lines as for a sweep.

    Yields what moves it: done, of how much, and what now.
    """
    if not console.is_interactive:
        lines = _Lines(console, clock)
        yield lines.tell
        lines.end()
        return
    roomy = console.width >= _ROOMY
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=24 if roomy else 8),
        TaskProgressColumn(),
        *([TimeElapsedColumn()] if roomy else []),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("reading batches", total=None)
        yield lambda done, total, doing: shown.update(task, completed=done, total=total, description=doing)


def show_overview(rows: Sequence[Row], console: Console) -> None:
    """Show all figures: a table, or a line each where it goes into a file or another program."""
    if not console.is_interactive:
        for row in rows:
            trained = row.trained or "-"
            line = f"{row.figure:<12}  {row.takes:<7}  {trained:<20}  {row.title}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        return
    table = Table(box=HORIZONTALS, padding=(0, 1, 0, 0), show_edge=False)
    for name, is_broken in (("figure", False), ("what it shows", True), ("takes", False), ("trained", True)):
        table.add_column(name, no_wrap=not is_broken)
    for row in rows:
        table.add_row(*map(escape, (row.figure, row.title, row.takes, row.trained or "-")))
    console.print(table)
    scales = ", ".join(SCALES)
    console.print(f"Times are about those at scale embedded on two cores. Scales: {scales}.", highlight=False)


def inspection(result: Mapping[str, Any]) -> Table:
    """Return the table of an inspection, from its dict: by question, each number, what it means and what to do."""
    subject = result["subject"]
    title = f"{one_line(subject['model'])} with {one_line(subject['optimizer'])} at {result['lr']:.3g}"
    table = Table(title=escape(title), box=HORIZONTALS, expand=True)
    table.add_column("measured", ratio=4)
    table.add_column("what it means, and what to do", ratio=5)
    for key, question in result["questions"].items():
        lines = [line for line in result["findings"] if line["question"] == key]
        if not lines:
            continue
        table.add_row(f"[bold]{escape(question)}[/bold]")
        fine = [line for line in lines if line["level"] == "good"] if key == "odd" else []
        for line in lines:
            if line not in fine:
                table.add_row(*_row(line))
        if fine:
            names = "; ".join(escape(one_line(line["name"])) for line in fine)
            table.add_row(f"{_MARKS['good']} {len(fine)} things are in order", names)
        table.add_section()
    return table


def _row(line: Mapping[str, Any]) -> tuple[str, str]:
    mark = _MARKS.get(line["level"], _MARKS["unknown"])
    number = f"{mark} {escape(one_line(line['name']))}: {escape(one_line(line['shown']))}"
    advice = f" [bold]{escape(one_line(line['advice']))}[/bold]" if line["advice"] else ""
    return number, f"{escape(one_line(line['meaning']))}{advice}"


def _short_title(figure: str) -> str:
    """Return the id and the beginning of the title."""
    title = RECIPES[figure].title if figure in RECIPES else ""
    if not title:
        return figure
    return f"{figure} {title if len(title) <= _TITLE_WIDTH else title[: _TITLE_WIDTH - 1] + '…'}"
