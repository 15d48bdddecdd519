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
from edgewise.errors import EdgewiseError
from edgewise.lab.errors import StoreError

try:
    import tyro
    from rich.console import Console

    from edgewise.lab import cost_tables, estimate, report, sweep, terminal, trial
    from edgewise.lab.data import sources
    from edgewise.lab.engines import engine as engine_of
    from edgewise.lab.ladders import Ladder
    from edgewise.lab.recipes import DEMO, PAPER, RECIPES, recipe
    from edgewise.lab.recipes.own import SCALE as OWN
    from edgewise.lab.report import inspection, presentation
    from edgewise.lab.results.store import Store
except ModuleNotFoundError as error:
    sys.exit(f"edgewise's command line needs the laboratory ({error}): pip install 'edgewise[lab]'")


Flag = tyro.conf.FlagCreatePairsOff[bool]
Planned = dict[str, list[Ladder]]


def demo(*, out: Path = Path("runs/demo"), workers: int | None = None) -> None:
    """Show the paper's main findings on embedded data: two and a half minutes on two cores, then a report.

    Args:
        out: results folder; a second call continues there.
        workers: processes; all cores if not given.
    """
    _run(sweep.plan(DEMO, "demo"), "demo", out, "local", workers)


def figure(
    name: Annotated[str, tyro.conf.Positional],
    *,
    scale: str = "embedded",
    out: Path | None = None,
    engine: str = "local",
    workers: int | None = None,
    stop_after: int | None = None,
    one_of_each: Flag = False,
    plan: Flag = False,
) -> None:
    """Train, draw and check one figure of the paper, or "all" of them.

    Args:
        name: fig1 to fig31, table1, all of these, edge-warmup or warmups.
        scale: "embedded" (minutes on two cores), "demo" (smaller), "desk" (hours) or "paper" (needs data: see edgewise
            prepare).
        out: results folder, runs/NAME-SCALE if not given; a second call continues there.
        engine: what runs the training: "local", "vectorized" or "ray".
        workers: processes; all cores if not given.
        stop_after: train the first so many steps of each run, in a folder of their own, to see what they cost.
        one_of_each: with --stop-after, of runs that differ in rate, warmup length and seed alone, the first only.
        plan: say what it comes to (runs, operations, time, memory, disk, data), and train nothing.
    """
    known_name("figure", name, [*RECIPES, "all"])
    engine_of(engine)
    planned = sweep.plan(list(PAPER) if name == "all" else [name], scale)
    out = out or Path("runs") / _folder(f"{name}-{scale}", stop_after)
    _run_or_try(planned, scale, out, engine, workers, stop_after, one_of_each, plan)


def sweep_own(
    file: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path | None = None,
    engine: str = "local",
    workers: int | None = None,
    stop_after: int | None = None,
    one_of_each: Flag = False,
    plan: Flag = False,
) -> None:
    """Train, draw and check the runs of your own recipe.

    Args:
        file: a Python file with a function configs() that returns a list of RunConfig.
        out: results folder, runs/NAME if not given; a second call continues there.
        engine: what runs the training: "local", "vectorized" or "ray".
        workers: processes; all cores if not given.
        stop_after: train the first so many steps of each run, in a folder of their own, to see what they cost.
        one_of_each: with --stop-after, of runs that differ in rate, warmup length and seed alone, the first only.
        plan: say what it comes to (runs, operations, time, memory, disk, data), and train nothing.
    """
    engine_of(engine)
    file = file.resolve()
    own = recipe(file.stem, file)
    planned, out = {own.id: own.ladders(OWN)}, out or Path("runs") / _folder(own.id, stop_after)
    _run_or_try(planned, OWN, out, engine, workers, stop_after, one_of_each, plan, file)


def status(directory: Annotated[Path, tyro.conf.Positional]) -> None:
    """Show what is done, running, failed and waiting in a results folder, and why and where runs failed.

    Args:
        directory: a folder made by edgewise demo, figure or sweep; its sweep may be running.
    """
    store, console = Store.open(directory), Console()
    console.print(terminal.status(store, time.time()))
    if failed := terminal.failures(store):
        console.print(failed, soft_wrap=True)  # no path is broken
    _print_notices(store.notices(), console)


def rebuild_report(directory: Annotated[Path, tyro.conf.Positional]) -> None:
    """Rebuild the report and the figures of a results folder from what is there: nothing is trained, no recipe needed.

    Args:
        directory: a folder made by edgewise demo, figure or sweep.
    """
    store = Store.open(directory)
    _print_notices(store.notices(), Console())
    _finish(store)


def prepare(name: Annotated[str, tyro.conf.Positional], *, source: Path | None = None) -> None:
    """Get a data set for figures at paper scale.

    Args:
        name: cifar10, cifar100, tiny-imagenet, wikitext-2 or wikitext-103.
        source: a folder with its Parquet, image or text files; downloaded from huggingface.co if not given.
    """
    print(sources.prepare(name, source))


def inspect_setup(
    target: Annotated[str, tyro.conf.Positional],
    *,
    max_updates: int = 200,
    seed: int = 0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    page: Path | None = None,
) -> None:
    """Find what rate your model bears, whether it needs warmup, and what is odd: a table, and a page if asked for.

    Args:
        target: FILE.py:FUNCTION, a function that returns model, optimizer, loss_fn and batches.
        max_updates: of the trial; all else costs about as much as 100 more.
        seed: of the start vector of the curvature.
        json_file: where to write all numbers and sentences as JSON.
        page: where to write the page: one HTML file, readable offline.
    """
    positive_count("max_updates", max_updates)
    for file in (json_file, page):
        if file is not None and file.is_dir():
            raise ValueError(f"{file} cannot be written: it is a folder; name a file in it.")
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{file} cannot be written: there is no folder {file.absolute().parent}.")
    subject = setup_file.load(target, most=max_updates)
    console = Console()
    try:
        with terminal.inspecting(console) as move:
            result = inspect(*subject, max_updates=max_updates, seed=seed, on_progress=move).as_dict()
    except KeyboardInterrupt:
        sys.exit("\nedgewise: interrupted; nothing was changed, and nothing is kept.")
    except Exception as error:
        if setup_file.user_lines(error):
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


def _folder(name: str, stop_after: int | None) -> str:
    return name if stop_after is None else f"{name}-first-{stop_after}"


def _run_or_try(
    planned: Planned,
    scale: str,
    out: Path,
    engine: str,
    workers: int | None,
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
    _run(planned, scale, out, engine, workers, recipe_file, not_judged)
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
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def _run(
    planned: Planned,
    scale: str,
    out: Path,
    engine: str,
    workers: int | None,
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
                workers=workers,
                recipe_file=recipe_file,
                not_judged=not_judged,
                on_progress=move,
                on_notice=lambda notice: _print_notices([notice], console),
            )
    except Exception as error:
        if _of_a_run(error):  # the others are finished: shown, if that can be, before it is raised
            with contextlib.suppress(StoreError):
                _finish(Store.open(out))
        raise
    _finish(store)


def _of_a_run(error: Exception) -> bool:
    """Whether the error is one from inside a run, which it notes."""
    return bool(getattr(error, "__notes__", None))


def _finish(store: Store) -> None:
    figures = presentation.read(store)
    page = report.write_report(store, figures)
    console = Console()
    console.print(terminal.findings(figures))
    console.print(f"report: {page}", soft_wrap=True)


def _print_notices(notices: list[str], console: Console) -> None:
    for notice in notices:
        console.print(f"note: {notice}", soft_wrap=True, markup=False, highlight=False)


def main() -> None:
    """Run the command line."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "demo": demo,
                "inspect": inspect_setup,
                "figure": figure,
                "sweep": sweep_own,
                "status": status,
                "report": rebuild_report,
                "prepare": prepare,
            },
            prog="edgewise",
            description="Learning-rate warmup that knows the edge of stability.",
        )
    except (EdgewiseError, ValueError) as error:
        if _of_a_run(error):  # a bug there wants its traceback
            raise
        sys.exit(f"edgewise: {error}")
    except KeyboardInterrupt:
        sys.exit("\nedgewise: interrupted; finished runs are kept, run the same command again to continue.")


if __name__ == "__main__":
    main()
