"""Pictures and the table for the page on warmups, from the stored runs of its recipe.

`edgewise figure warmups --scale embedded --out DIR`, then `python docs/studies/warmup_plots.py DIR`: writes
docs/images/warmups-*.png, one seed each, and prints the rows of the table whose runs are all stored. Runs
without warmup are no part of the recipe: they are trained here.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from edgewise.lab.configs import RunConfig, WarmupConfig
from edgewise.lab.recipes import warmups
from edgewise.lab.report.colors import of_warmup
from edgewise.lab.results.phase_diagram import Cell, cell_of
from edgewise.lab.results.runs import Run
from edgewise.lab.results.store import Store
from edgewise.lab.training import train

IMAGES = Path(__file__).resolve().parents[1] / "images"
SEED = 0
AVERAGED = 10  # updates, of the language model's losses
COMPARED: dict[str, dict[str, Any]] = {  # fields of the warmup's config
    "no warmup": {"steps": 1},
    "linear, 64": {"steps": 64},
    "linear, 200": {"steps": 200},
    "from $\\eta_c$, 200": {"steps": 200, "lr_init": "critical"},
    "catapults": {"kind": "catapult"},
    "EdgeWarmup": {"kind": "edge"},
}
STYLES = {  # a color, a line and a marker of its own, also in print
    name: (of_warmup(WarmupConfig(**fields)), line, marker)
    for (name, fields), line, marker in zip(
        COMPARED.items(), (":", "-", "-", "--", "-", "-"), "xos^Dv", strict=True
    )
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A task and an optimizer at several target rates; the trajectories are those of one of them."""

    file: str
    title: str
    configs: tuple[RunConfig, ...]
    shown: float  # target rate of the trajectories
    unit: str
    end: str  # what is compared over target rates
    log: bool  # axes of the losses


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Rates and losses, one an update, and the loss at the end; infinite where it diverged."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    final: float


def panels() -> Iterator[Panel]:
    """Yield gradient descent on the digits, and Adam and GI-Adam on the language model."""
    digits = [c for c in warmups.digits(SEED) if c.optimizer.momentum == 0]
    yield Panel(
        file="warmups-digits",
        title="FCN-4-256 (SP) on digits, MSE, gradient descent",
        configs=tuple(digits),
        shown=32.0,
        unit="target rate × initial sharpness",
        end="final training loss",
        log=True,
    )
    for optimizer, name in (("adam", "Adam"), ("gi-adam", "GI-Adam")):
        configs = [c for c in warmups.language_model(SEED) if c.optimizer.name == optimizer]
        yield Panel(
            file=f"warmups-lm-{optimizer}",
            title=f"LM-2-64 on bytes, batches of 16, {name}, cosine decay",
            configs=tuple(configs),
            shown=0.064,
            unit="target rate",
            end="final test loss",
            log=False,
        )


def follow(store: Store, config: RunConfig, warmup: str) -> Trajectory:
    """Return what a run with one of the warmups that are `COMPARED` came to; it is trained if it is not stored."""
    config = replace(config, warmup=replace(config.warmup, **COMPARED[warmup]))
    if store.runs.has(config.run_id):
        run = store.runs.load(config.run_id)
        outcome, lrs, losses = run.outcome, run.columns["lr"], run.columns["train_loss"]
    else:
        done = train(config)
        outcome = done.outcome
        lrs, losses = (np.array([row[name] for row in done.rows]) for name in ("lr", "train_loss"))
    final = outcome["train_loss" if config.model.name == "fcn" else "test_loss"]
    return Trajectory(
        rates=tuple(lrs / outcome["lr_target"]),
        losses=tuple(losses),
        final=final if np.isfinite(final) else np.inf,
    )


def table(store: Store) -> Iterator[str]:
    """Yield the lines of the page's table, in Markdown: a row for each task, optimizer and target rate."""
    names = "linear 64, 200, catapults, EdgeWarmup"
    yield (
        f"| training, five seeds | trained: {names} | median final loss: {names} | from η_c ÷ from 0, worst seed: "
        "T = 64, 200 | catapults: updates to the target, overhead | EdgeWarmup: rate it ended at ÷ target |"
    )
    yield "|---|---|---|---|---|---|"
    rows: dict[str, list[RunConfig]] = {}
    for config in warmups.configs("embedded"):
        rows.setdefault(warmups.row(config), []).append(config)
    for row, configs in rows.items():
        there = [store.runs.load(config.run_id) for config in configs if store.runs.has(config.run_id)]
        if len(there) == len(configs):
            yield f"| {row.replace(' with momentum', '-M')} | {' | '.join(_cells(there))} |"


def _cells(runs: Sequence[Run]) -> Iterator[str]:
    ways = [WarmupConfig(decay=runs[0].config.warmup.decay, **COMPARED[name]) for name in COMPARED]
    own = [[run for run in runs if run.config.warmup == way] for way in ways]
    _, short, long, _, catapults, edge = own
    shown = (short, long, catapults, edge)
    yield ", ".join(f"{sum(cell_of(r.outcome) is Cell.TRAINED for r in its)}/{len(its)}" for its in shown)
    yield ", ".join(f"{median(map(warmups.final_loss, its)):.4g}" for its in shown)
    yield ", ".join(f"{_worst_from_critical(its, runs):.3f}" for its in (short, long))
    reports = [run.outcome["warmup"] for run in catapults]
    steps, overhead = (median(report[name] for report in reports) for name in ("steps_to_target", "overhead"))
    yield f"{steps:g}, {overhead:.1%}"
    ends = [(run.outcome["warmup"]["lr_held"], run.outcome["lr_target"]) for run in edge]
    yield f"{median((held or target) / target for held, target in ends):.2g}"


def _worst_from_critical(plain: Sequence[Run], runs: Sequence[Run]) -> float:
    """Return the largest ratio over the seeds of the final losses, from the critical rate over from 0."""
    of_config = {run.config: warmups.final_loss(run) for run in runs}
    critical = [replace(run.config, warmup=replace(run.config.warmup, lr_init="critical")) for run in plain]
    return max(
        of_config[beside] / warmups.final_loss(run) for beside, run in zip(critical, plain, strict=True)
    )


def draw(panel: Panel, runs: dict[tuple[float, str], Trajectory]) -> Figure:
    """Return rate and loss along the training, and the end over target rates."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_trajectories(left, middle, panel, runs)
    _draw_ends(right, panel, runs)
    handles = [
        mpl.lines.Line2D([], [], color=color, ls=line, marker=marker, ms=4, label=name)
        for name, (color, line, marker) in STYLES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(panel.title, fontsize=11)
    return figure


def _draw_trajectories(
    left: Axes, middle: Axes, panel: Panel, runs: dict[tuple[float, str], Trajectory]
) -> None:
    for name, (color, line, _) in STYLES.items():
        run = runs[panel.shown, name]
        left.plot(run.rates, color=color, ls=line, lw=1.5)
        losses = np.array(run.losses)
        if panel.configs[0].batch_size is not None:
            losses = np.convolve(losses, np.full(AVERAGED, 1 / AVERAGED), mode="valid")
        middle.plot(losses[np.isfinite(losses)], color=color, ls=line, lw=1.5)
    for ax, label in ((left, "learning rate ÷ target"), (middle, "training loss")):
        ax.set_xlabel("update")
        ax.set_ylabel(label)
        ax.set_title(f"{panel.unit} = {panel.shown:g}", loc="left", fontsize=9)
    _scale(middle, panel)
    trained = [
        run.losses for (rate, _), run in runs.items() if rate == panel.shown and np.isfinite(run.final)
    ]
    middle.set_ylim(min(map(min, trained)) / 1.1, max(map(max, trained)) * 1.1)


def _draw_ends(ax: Axes, panel: Panel, runs: dict[tuple[float, str], Trajectory]) -> None:
    rates = [config.optimizer.lr for config in panel.configs]
    finite = [run.final for run in runs.values() if np.isfinite(run.final)]
    top = max(finite) * 1.5
    for name, (color, line, marker) in STYLES.items():
        ends = np.array([runs[rate, name].final for rate in rates])
        ax.plot(
            rates,
            np.where(np.isfinite(ends), ends, np.nan),
            color=color,
            ls=line,
            marker=marker,
            ms=4,
            lw=1.5,
        )
        for rate in np.array(rates)[~np.isfinite(ends)]:
            ax.plot(rate, top, "x", color=color, ms=8, mew=2)
    if len(finite) < len(runs):
        ax.annotate("× diverged", (rates[0], top), va="center", fontsize=9)
    _scale(ax, panel)
    ax.set(xscale="log", xlabel=panel.unit, ylabel=panel.end, xticks=rates)
    ax.set_xticklabels([f"{rate:g}" for rate in rates])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title("the end of all runs", loc="left", fontsize=9)


def _scale(ax: Axes, panel: Panel) -> None:
    if panel.log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())


def main(path: Path) -> None:
    """Draw all pictures and print the table."""
    torch.set_num_threads(1)  # as the stored ones
    store = Store.open(path)
    style = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    for panel in panels():
        runs = {(c.optimizer.lr, name): follow(store, c, name) for c in panel.configs for name in STYLES}
        with mpl.rc_context(style):
            draw(panel, runs).savefig(IMAGES / f"{panel.file}.png", dpi=130)
    for line in table(store):
        print(line)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
