"""What training costs, as tables in the terminal: as it was tried, and as it is planned."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import HORIZONTALS
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from edgewise.lab.data import sources
from edgewise.lab.errors import DataError
from edgewise.lab.estimate import GPU, GPU_FLOPS, GPU_SHARE, PRODUCTS, PRODUCTS_ON_BATCHES, Estimate
from edgewise.lab.trial import Cost, name_of

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PERIODS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def tried(costs: Sequence[Cost]) -> Group:
    """Return what first steps took, kind by kind, and what a whole run of the kind would take: 60 columns suffice."""
    table = _numbers("runs", "core-seconds a step", "peak memory", "a whole run")
    for i, its in enumerate(costs, start=1):
        table.add_row(
            str(i),
            f"{its.num_runs:,}",
            f"{its.seconds_a_step:.3g}",
            size(its.peak_memory),
            duration(its.seconds_whole),
        )
    return Group("First steps, in processes of one thread", _kinds(name_of(its.kind) for its in costs), table)


def planned(estimates: Sequence[Estimate]) -> Group:
    """Return what planned runs come to, kind by kind, and all together: 60 columns suffice."""
    table = _numbers("runs", "steps", "operations", "core time", "GPU time", "memory")
    for i, its in enumerate(estimates, start=1):
        mark = "" if its.on_gpu else " *"
        time = (duration(its.core_seconds), duration(its.gpu_seconds) + mark)
        table.add_row(
            str(i), f"{its.num_runs:,}", f"{its.num_steps:,}", f"{its.flops:.2g}", *time, size(its.memory)
        )
    table.add_section()
    runs, steps = (f"{sum(getattr(its, name) for its in estimates):,}" for name in ("num_runs", "num_steps"))
    flops, cores, gpu = (
        sum(getattr(its, name) for its in estimates) for name in ("flops", "core_seconds", "gpu_seconds")
    )
    largest = max((its.memory for its in estimates), default=0.0)
    table.add_row("all", runs, steps, f"{flops:.2g}", duration(cores), duration(gpu), size(largest))
    kinds = _kinds(f"{name_of(its.kind)}; {its.num_parameters:,} parameters" for its in estimates)
    return Group("What is to be trained, and what it comes to at most", kinds, table)


def _kinds(names: Iterable[str]) -> Table:
    """Return a numbered list: a name is as long as a terminal is wide, and would leave no room beside it."""
    listed = Table.grid(padding=(0, 2, 0, 0))
    for i, name in enumerate(names, start=1):
        listed.add_row(str(i), escape(name))
    return listed


def _numbers(*names: str) -> Table:
    table = Table("kind", box=HORIZONTALS, show_edge=False, padding=0)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    return table


def plan_notes(estimates: Sequence[Estimate], out: Path, workers: int, num_finished: int) -> list[str]:
    """Return what a plan needs, and what its numbers rest on, a sentence or two each."""
    cores = sum(its.core_seconds for its in estimates)
    memory = max((its.memory for its in estimates), default=0.0)
    longest = max((its.core_seconds / its.num_runs for its in estimates), default=0.0)
    notes = [
        f"time: {duration(cores / workers)} in {workers} processes of one thread here. Runs are independent: any "
        "number of cores shares them, on this machine (--workers) or on a cluster (--engine ray or slurm), down to the "
        f"longest run, {duration(longest)}.",
        f"memory: of one process; up to {size(workers * memory)} for {workers}.",
        f"disk: {size(sum(its.stored for its in estimates))} in {out}.",
        *_data_notes(dict.fromkeys(its.kind.data.name for its in estimates)),
    ]
    if num_finished:
        notes.append(f"finished: {num_finished:,} runs in {out}, which are not counted.")
    if any(not its.on_gpu for its in estimates):
        notes.append(
            "* trained on cores by every engine: augmentation, measured curvature and warmups that look at the loss "
            "are not batched. The GPU time is what their operations would come to."
        )
    notes.append(
        "rests on: operations of one gradient, counted, and its time here, in processor time of one thread; where "
        f"curvature is measured, {PRODUCTS} products with the Hessian each time, on random batches "
        f"{PRODUCTS_ON_BATCHES}, timed here as well; {GPU_SHARE:.0%} of the {GPU_FLOPS / 1e12:g} TFLOP/s of an {GPU} "
        "in float32, which small networks do not reach. Rates above the failure boundary are left out as training gets "
        "there. Not counted: evaluation, critical rates, and the initial sharpness."
    )
    return notes


def _data_notes(names: Iterable[str]) -> list[str]:
    notes = []
    for name in names:
        try:
            sources.check_prepared(name)
            kind = "prepared" if name in sources.SOURCES else "needs no download"
            notes.append(f"data: {name}, {kind}.")
        except DataError as error:
            notes.append(f"data: {error}")
    return notes


def size(number: float) -> str:
    """Return bytes in the unit that leaves few digits."""
    unit, name = next(((unit, name) for unit, name in _UNITS if number >= unit), (1.0, "B"))
    return f"{number / unit:.3g} {name}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that leaves few digits."""
    unit, name = next(((unit, name) for unit, name in _PERIODS if seconds >= unit), (1.0, "s"))
    return f"{seconds / unit:.3g} {name}"
