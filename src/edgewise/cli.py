"""The command line: parses, calls, prints."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

from edgewise.advice import setup_file
from edgewise.advice.inspection import inspect
from edgewise.arguments import known_name, positive_count
from edgewise.lab.errors import StoreError

try:
    import tyro
    from rich.console import Console

    from edgewise.lab import (
        command_line,
        cost_tables,
        estimate,
        overview,
        report,
        sweep,
        terminal,
        trial,
        user_errors,
    )
    from edgewise.lab.command_line import FAILED, INTERRUPTED, one_of, option
    from edgewise.lab.data import sources
    from edgewise.lab.engines import ENGINES
    from edgewise.lab.engines import engine as engine_of
    from edgewise.lab.ladders import Ladder, run_of
    from edgewise.lab.recipes import DEMO, PAPER, RECIPES, SCALES, recipe
    from edgewise.lab.recipes.own import SCALE as OWN
    from edgewise.lab.report import inspection, presentation
    from edgewise.lab.results.failures import Failures
    from edgewise.lab.results.files import Folder
    from edgewise.lab.results.store import Store
except ModuleNotFoundError as error:
    sys.exit(f"edgewise's command line needs the laboratory ({error}): pip install 'edgewise[lab]'")

Engine = Annotated[str, one_of(ENGINES)]
Scale = Annotated[str, one_of(SCALES)]
Slurm = Annotated[tuple[str, ...], option("NAME=VALUE", "none")]
Workers = Annotated[int | None, option("N", "all cores")]
ResultsFolder = Annotated[Path, tyro.conf.Positional, option("DIR")]
Flag = tyro.conf.FlagCreatePairsOff[bool]
Planned = dict[str, list[Ladder]]


def demo(*, out: Annotated[Path, option("DIR")] = Path("runs/demo"), workers: Workers = None) -> None:
    """Show the paper's main findings on embedded data: about three minutes on two cores, then a report.

    Args:
        out: results folder; a second call continues there.
        workers: processes that train.

    Examples:
        edgewise demo
    """
    _run(sweep.plan(DEMO, "demo"), "demo", out, "local", workers)


def list_figures(*, runs: Annotated[Path, option("DIR")] = Path("runs")) -> None:
    """List all figures and tables: how long each takes, and what of it has been trained.

    Args:
        runs: the folder whose results folders are looked into.

    Examples:
        edgewise list
        edgewise list | grep -i adam
    """
    terminal.show_overview(overview.rows(runs), Console())


def figure(
    name: Annotated[str, tyro.conf.Positional, option("FIGURE")],
    *,
    scale: Scale = "embedded",
    out: Annotated[Path | None, option("DIR", "runs/FIGURE-SCALE")] = None,
    engine: Engine = "local",
    slurm: Slurm = (),
    workers: Workers = None,
    stop_after: Annotated[int | None, option("N", "none: all steps")] = None,
    one_of_each: Flag = False,
    plan: Flag = False,
) -> None:
    """Train, draw and check one figure of the paper, or "all" of them.

    Args:
        name: fig1 to fig31, table1, all of these, edge-warmup, warmups or when-warmup: see edgewise list.
        scale: "embedded" (minutes on two cores), "demo" (smaller), "desk" (hours) or "paper" (needs data: see edgewise
            prepare).
        out: results folder; a second call continues there.
        engine: what runs the training: "local" (processes here), "vectorized" (many runs as a batch), "ray" or "slurm".
        slurm: settings of the jobs of engine "slurm", NAME=VALUE each: see docs/laboratory.md.
        workers: processes that train.
        stop_after: train the first so many steps of each run, in a folder of their own, to see what they cost.
        one_of_each: with --stop-after, of runs that differ in rate, warmup length and seed alone, the first only.
        plan: say what it comes to (runs, operations, time, memory, disk, data), and train nothing.

    Examples:
        edgewise figure fig3
        edgewise figure fig3 --scale demo --workers 2
        edgewise figure fig3 --scale paper --plan
        edgewise figure all --engine slurm --slurm partition=cpu time=120
    """
    known_name("figure", name, [*RECIPES, "all"])
    engine_of(engine, slurm)
    planned = sweep.plan(list(PAPER) if name == "all" else [name], scale)
    out = out or Path("runs") / trial.folder(f"{name}-{scale}", stop_after)
    _run_or_try(planned, scale, out, engine, workers, slurm, stop_after, one_of_each, plan)


def sweep_own(
    file: Annotated[Path, tyro.conf.Positional, option("FILE.py")],
    *,
    out: Annotated[Path | None, option("DIR", "runs/FILE")] = None,
    engine: Engine = "local",
    slurm: Slurm = (),
    workers: Workers = None,
    stop_after: Annotated[int | None, option("N", "none: all steps")] = None,
    one_of_each: Flag = False,
    plan: Flag = False,
) -> None:
    """Train, draw and check the runs of your own recipe.

    Args:
        file: a Python file with a function configs() that returns a list of RunConfig.
        out: results folder; a second call continues there.
        engine: what runs the training: "local" (processes here), "vectorized" (many runs as a batch), "ray" or "slurm".
        slurm: settings of the jobs of engine "slurm", NAME=VALUE each: see docs/laboratory.md.
        workers: processes that train.
        stop_after: train the first so many steps of each run, in a folder of their own, to see what they cost.
        one_of_each: with --stop-after, of runs that differ in rate, warmup length and seed alone, the first only.
        plan: say what it comes to (runs, operations, time, memory, disk, data), and train nothing.

    Examples:
        edgewise sweep recipe.py
        edgewise sweep recipe.py --engine vectorized
    """
    engine_of(engine, slurm)
    file = file.resolve()
    own = recipe(file.stem, file)
    planned, out = {own.id: own.ladders(OWN)}, out or Path("runs") / trial.folder(own.id, stop_after)
    _run_or_try(planned, OWN, out, engine, workers, slurm, stop_after, one_of_each, plan, file)


def status(directory: ResultsFolder) -> None:
    """Show what is done, running, failed and waiting in a results folder, and why and where runs failed.

    Args:
        directory: a folder made by edgewise demo, figure or sweep; its sweep may be running.

    Examples:
        edgewise status runs/fig3-embedded
    """
    store, console = Store.open(directory), Console()
    console.print(terminal.status(store, time.time()))
    if failed := terminal.failures(store):
        console.print(failed, soft_wrap=True)  # no path is broken
    _print_notices(store.notices(), console)


def rebuild_report(directory: ResultsFolder) -> None:
    """Rebuild the report and the figures of a results folder from what is there: nothing is trained, no recipe needed.

    Args:
        directory: a folder made by edgewise demo, figure or sweep.

    Examples:
        edgewise report runs/fig3-embedded
    """
    store = Store.open(directory)
    _print_notices(store.notices(), Console())
    _finish(store)


def prepare(
    name: Annotated[str, tyro.conf.Positional, option("DATA")],
    *,
    source: Annotated[Path | None, option("DIR", "downloaded")] = None,
) -> None:
    """Get a data set for figures at paper scale.

    Args:
        name: cifar10, cifar100, tiny-imagenet, wikitext-2 or wikitext-103.
        source: a folder with its Parquet, image or text files; without one it comes from huggingface.co.

    Examples:
        edgewise prepare cifar10
        edgewise prepare cifar10 --source my/files
    """
    print(sources.prepare(name, source))


def inspect_setup(
    target: Annotated[str, tyro.conf.Positional, option("FILE.py:FUNCTION")],
    *,
    max_updates: Annotated[int, option("N")] = 200,
    seed: Annotated[int, option("N")] = 0,
    json_file: Annotated[Path | None, option("FILE", "not written", name="json")] = None,
    page: Annotated[Path | None, option("FILE", "not written")] = None,
) -> None:
    """Find what rate your model bears, whether it needs warmup, and what is odd: a table, and a page if asked for.

    Args:
        target: a function that returns model, optimizer, loss_fn and batches; setup if only the file is named.
        max_updates: updates of the trial; all else costs about as much as 100 more.
        seed: of the start vector of the curvature.
        json_file: where to write all numbers and sentences as JSON.
        page: where to write the page: one HTML file, readable offline.

    Examples:
        edgewise inspect setup.py
        edgewise inspect train.py:setup --page inspect.html --json inspect.json
    """
    positive_count("max_updates", max_updates)
    for file in (json_file, page):
        command_line.check_writable(file)
    subject = setup_file.load(target, most=max_updates)
    console = Console()
    try:
        with terminal.inspecting(console) as move:
            result = inspect(*subject, max_updates=max_updates, seed=seed, on_progress=move).as_dict()
    except KeyboardInterrupt:
        command_line.leave(
            INTERRUPTED, "\nedgewise: interrupted; nothing was changed: run the same command again."
        )
    except Exception as error:
        if user_errors.own_line(error):
            raise setup_file.SetupError(setup_file.raised_by(error, target)) from error
        if isinstance(error, TypeError):  # what setup() returned is of the wrong kind
            raise setup_file.SetupError(f"{target}: {error}") from error
        raise
    console.print(terminal.inspection(result))
    console.print(result["text"], style="bold", soft_wrap=True, markup=False, highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        console.print(f"numbers: {json_file}", soft_wrap=True, markup=False, highlight=False)
    if page is not None:
        page.write_text(inspection.page_of(result), encoding="utf-8")
        console.print(f"page: {page}", soft_wrap=True, markup=False, highlight=False)


def _run_or_try(
    planned: Planned,
    scale: str,
    out: Path,
    engine: str,
    workers: int | None,
    slurm: tuple[str, ...],
    stop_after: int | None,
    one_of_each: bool,
    plan: bool,
    recipe_file: Path | None = None,
) -> None:
    if one_of_each and stop_after is None:
        raise ValueError("--one-of-each needs --stop-after: claims are held against all runs of a figure.")
    if stop_after is not None:
        planned = trial.first_steps(trial.one_of_each(planned) if one_of_each else planned, stop_after)
        scale = f"{scale}, first {stop_after} steps"
    if plan:
        _plan(planned, scale, out, workers)
        return
    not_judged = "" if stop_after is None else trial.NOT_JUDGED
    _run(planned, scale, out, engine, workers, slurm, recipe_file, not_judged)
    if stop_after is not None:
        Console().print(cost_tables.tried(trial.costs(Store.open(out), planned)))


def _plan(planned: Planned, scale: str, out: Path, workers: int | None) -> None:
    workers = os.cpu_count() or 1 if workers is None else positive_count("workers", workers)
    finished = sweep.finished(planned, scale, out)
    console = Console()
    with console.status("counting a step of each kind of run"):
        found = estimate.estimates(planned, finished)
    console.print(cost_tables.planned(found))
    for note in cost_tables.plan_notes(found, out, workers, len(finished)):
        console.print(note, soft_wrap=note[:5] in ("disk:", "data:"), markup=False, highlight=False)


def _run(
    planned: Planned,
    scale: str,
    out: Path,
    engine: str,
    workers: int | None,
    slurm: tuple[str, ...] = (),
    recipe_file: Path | None = None,
    not_judged: str = "",
) -> None:
    console = Console()
    try:
        with terminal.bars(planned, console) as move:
            store = sweep.run(
                planned,
                scale,
                out,
                engine=engine,
                slurm=slurm,
                workers=workers,
                recipe_file=recipe_file,
                not_judged=not_judged,
                on_progress=move,
                on_notice=lambda notice: _print_notices([notice], console),
            )
    except Exception as error:
        if run_id := run_of(error):  # the others are finished: shown, if that can be
            with contextlib.suppress(StoreError):
                _finish(Store.open(out))
            message = f"edgewise: run {run_id} raised {user_errors.in_short(error)}"
            command_line.leave(FAILED, user_errors.told(error, message, Failures(Folder(out)).file(run_id)))
        raise
    _finish(store)


def _finish(store: Store) -> None:
    figures = presentation.read(store)
    page = report.write_report(store, figures)
    console = Console()
    if any(shown.claims or shown.note for shown in figures):  # a sweep of one's own need not claim anything
        console.print(terminal.findings(figures, console.width))
    console.print(f"report: {page}", soft_wrap=True)


def _print_notices(notices: list[str], console: Console) -> None:
    for notice in notices:
        console.print(f"note: {notice}", soft_wrap=True, markup=False, highlight=False)


COMMANDS: dict[str, command_line.Command] = {
    "demo": demo,
    "list": list_figures,
    "inspect": inspect_setup,
    "figure": figure,
    "sweep": sweep_own,
    "status": status,
    "report": rebuild_report,
    "prepare": prepare,
}


def main() -> None:
    """Run the command line."""
    command_line.run(COMMANDS, "Learning-rate warmup that knows the edge of stability.")
