"""What training costs, as tables in the terminal: as it was tried, and as it is planned."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import HORIZONTALS
from rich.markup import escape
from rich.table import Table

from edgewise.lab.data import sources
from edgewise.lab.errors import DataError
from edgewise.lab.estimate import GPU, GPU_FLOPS, GPU_SHARE, GRADIENTS_A_PRODUCT, PRODUCTS, Estimate
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


def planned(estimates: Sequence[Estimate]) -> Table:
    """Return the table of what planned runs come to, kind by kind, and all together."""
    table = Table(title="What is to be trained, and what it comes to at most", box=HORIZONTALS, expand=True)
    table.add_column("kind of run", ratio=1)
    for name in ("runs", "steps", "parameters", "operations", "core time", "GPU time", "memory a process"):
        table.add_column(name, justify="right")
    for its in estimates:
        mark = "" if its.on_gpu else " *"
        time = (duration(its.core_seconds), duration(its.gpu_seconds) + mark)
        numbers = (f"{its.num_runs:,}", f"{its.num_steps:,}", f"{its.num_parameters:,}", f"{its.flops:.2g}")
        table.add_row(escape(name_of(its.kind)), *numbers, *time, size(its.memory))
    table.add_section()
    runs, steps = (f"{sum(getattr(its, name) for its in estimates):,}" for name in ("num_runs", "num_steps"))
    flops, cores, gpu = (
        sum(getattr(its, name) for its in estimates) for name in ("flops", "core_seconds", "gpu_seconds")
    )
    largest = max((its.memory for its in estimates), default=0.0)
    table.add_row("all", runs, steps, "", f"{flops:.2g}", duration(cores), duration(gpu), size(largest))
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
        f"memory: up to {size(workers * memory)} for {workers} processes.",
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
        "rests on: operations of one gradient, counted, and its time here, in processor time of one thread; "
        f"{PRODUCTS} products of {GRADIENTS_A_PRODUCT} gradients each a measurement of curvature; {GPU_SHARE:.0%} of "
        f"the {GPU_FLOPS / 1e12:g} TFLOP/s of an {GPU} in float32, which small networks do not reach. Rates above the "
        "failure boundary are left out as training gets there. Not counted: evaluation, and the time of the initial "
        "sharpness."
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
