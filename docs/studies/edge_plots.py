"""Pictures and tables for the page on EdgeWarmup, from the stored runs of its recipe.

`edgewise figure edge-warmup --scale embedded --out DIR`, then `python docs/studies/edge_plots.py DIR`: writes
docs/images/edge-warmup-*, prints the claims, and for each task and optimizer the gap to the best length of the grid. Of
an unfinished sweep, the seeds count of which all runs of a task are stored.
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import torch
from matplotlib.figure import Figure

from edgewise.lab.recipes import PhaseDiagrams
from edgewise.lab.recipes.edge_warmup import RECIPE
from edgewise.lab.recipes.edge_warmup.cells import (
    CellResult,
    cell_results,
    final_loss,
    is_edge,
    panel_label,
    task_of,
)
from edgewise.lab.recipes.edge_warmup.grid import DEVELOPMENT, HELD_OUT, LENGTHS, OTHER_SEEDS, SEEDS
from edgewise.lab.recipes.recipe import optimizer_label
from edgewise.lab.report import colors, plots
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.results.phase_diagram import TEST_LOSS, cell_of
from edgewise.lab.results.runs import Run
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from edgewise.signals.losses import RiseAlarm, SpikeGuard

IMAGES = Path(__file__).resolve().parents[1] / "images"
SHOWN = "LM, B = 64"  # task of the rates, of the diagram and of the alarm
NEAR_THE_EDGE = "FCN, SP, MSE"  # task of the runs with and without the guard
FAILS = 0.5  # test loss there at which a run that failed is drawn
CLIP = 0.2  # of the histogram: a larger gap stands in the last bin


def main(path: Path) -> None:
    """Draw all pictures and print the table."""
    store = Store.open(path)
    runs = of_whole_seeds(store)
    for claim in RECIPE.claims(runs):
        print(f"| {'✓' if claim.holds else '✗'} | {claim.text} | {claim.expected} | {claim.measured} |")
    for seeds in (SEEDS, OTHER_SEEDS):
        cells = [cell for cell in cell_results(runs, seeds) if cell.trainable]
        for line in (f"seeds {seeds[0]} to {seeds[-1]}", *fixed_lengths(cells), *table(cells)):
            print(line)
    runs = [run for run in runs if run.config.seed in SEEDS]
    cells = [cell for cell in cell_results(runs) if cell.trainable]
    save(rates([run for run in runs if task_of(run.config) == SHOWN]), "edge-warmup-rates")
    save(gaps(cells), "edge-warmup-gaps")
    save(diagram(runs), "edge-warmup-diagram")
    save(guard(runs), "edge-warmup-guard")
    save(alarm(runs), "edge-warmup-alarm")
    for line in (*others(runs), *interventions(runs)):
        print(line)


def of_whole_seeds(store: Store) -> list[Run]:
    """Return the runs of the seeds of which all runs of a task are stored."""
    stored = store.runs.finished()
    wanted: dict[tuple[str, int], set[str]] = {}
    configs = RECIPE.configs(store.figures[0].scale)
    for config in configs:
        wanted.setdefault((task_of(config), config.seed), set()).add(config.run_id)
    whole = set().union(*(ids for ids in wanted.values() if ids <= stored))
    for task in DEVELOPMENT | HELD_OUT:
        print(f"{task}: seeds {[seed for (of, seed), ids in wanted.items() if of == task and ids <= stored]}")
    return [store.runs.load(config.run_id) for config in configs if config.run_id in whole]


def save(figure: Figure, name: str) -> None:
    """Write a picture."""
    figure.savefig(IMAGES / f"{name}.png", dpi=130)


def rates(runs: Sequence[Run]) -> Figure:
    """Return the rates that EdgeWarmup chose: a panel an optimizer, a line a target rate, seed 0."""
    edge = [run for run in runs if is_edge(run.config) and run.config.seed == 0]
    names = list(dict.fromkeys(optimizer_label(run.config) for run in edge))
    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True)
    for ax, name in zip(axes.flat, names, strict=False):
        own = [run for run in edge if optimizer_label(run.config) == name]
        targets = sorted({run.config.optimizer.lr for run in own})
        for run in own:
            color = mpl.colormaps["viridis"](targets.index(run.config.optimizer.lr) / len(targets))
            ax.plot(run.columns["step"] + 1, run.columns["lr"], color=color, lw=1.5)
            ax.axhline(run.outcome["lr_target"], color=color, lw=0.8, ls="--", alpha=0.6)
        ax.set(yscale="log", xscale="log")
        ax.set_title(name, loc="left", fontsize=10)
        ax.grid(alpha=0.25)
    axes.flat[-1].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate η (first group)")
    for ax in (*axes[1], axes[0, -1]):
        ax.set_xlabel("update")
        ax.tick_params(labelbottom=True)
    handles = [
        mpl.lines.Line2D([], [], color="0.3", label="rate; then its cosine decay"),
        mpl.lines.Line2D([], [], color="0.3", ls="--", lw=0.8, label="target; brighter is higher"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle(f"Rates of EdgeWarmup, {SHOWN}, five targets over three octaves and two far too high")
    return figure


def gaps(cells: Sequence[CellResult]) -> Figure:
    """Return histograms of the gap to the best length, of both halves of the tasks."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    bins = np.linspace(-CLIP, CLIP, 41)
    for ax, (half, tasks) in zip(
        axes, (("held-out tasks", HELD_OUT), ("development tasks", DEVELOPMENT)), strict=True
    ):
        own = [cell for cell in cells if cell.task in tasks]
        values = [cell.gap(cell.best_length) for cell in own]
        clipped = np.clip([value if math.isfinite(value) else CLIP for value in values], -CLIP, CLIP)
        tied = np.array([cell.ties(cell.best_length) for cell in own])
        ax.hist(
            [clipped[tied], clipped[~tied]],
            bins=bins,
            stacked=True,
            color=[colors.BLUE, colors.VERMILLION],
            label=["within 1 % or a seed deviation", "worse"],
        )
        ax.axvline(0, color="0.3", lw=1)
        ax.set_title(f"{half}: {tied.sum()} of {len(own)} cells tie or win", loc="left", fontsize=10)
        ax.set_xlabel("final test loss ÷ that of the best of six lengths − 1")
        ax.set_xticks([-0.2, -0.1, 0.0, 0.1, 0.2], ["≤ −20 %", "−10 %", "0", "10 %", "≥ 20 %"])
    axes[0].set_ylabel("cells")
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=2)
    return figure


def diagram(runs: Sequence[Run]) -> Figure:
    """Return the phase diagrams of two optimizers on one task, the lengths beside the one row without."""
    shown = [
        run
        for run in runs
        if task_of(run.config) == SHOWN and optimizer_label(run.config) in ("SGD with momentum", "Adam")
    ]
    layout = PhaseDiagrams(panel=panel_label, value=replace(TEST_LOSS, digits=2), columns=2)
    title = "The warmup axis beside one row without a length"
    return plots.draw(
        FigureResults(
            id=RECIPE.id, scale="paper", title=title, finding=RECIPE.finding, layout=layout, runs=tuple(shown)
        )
    )


def guard(runs: Sequence[Run]) -> Figure:
    """Return final losses of all runs of a task as stored, over those of the same runs without the guard."""
    torch.set_num_threads(1)  # as the stored ones
    own = [run for run in runs if task_of(run.config) == NEAR_THE_EDGE and is_edge(run.config)]
    with mock.patch.object(SpikeGuard, "add"):
        without = np.array([min(FAILS, final_loss(train(run.config).outcome)) for run in own])
    guarded = np.array([min(FAILS, final_loss(run.outcome)) for run in own])
    lower, higher = (guarded < without / 1.5).sum(), (guarded > 1.5 * without).sum()
    print(f"guard: of {len(own)} runs {lower} end lower by a third with it, {higher} higher by half")
    touched = np.array([run.outcome["warmup"]["num_spikes"] > 0 for run in own])
    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    ax = figure.subplots()
    for which, label, color in ((~touched, "no loss", "0.6"), (touched, "some loss", colors.VERMILLION)):
        text = f"{label} stands out: {which.sum()} runs"
        ax.plot(without[which], guarded[which], "o", ms=5, alpha=0.7, color=color, label=text)
    ends = 0.8 * min(without.min(), guarded.min()), 1.3 * FAILS
    ax.plot(ends, ends, color="0.3", lw=0.8)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(mpl.ticker.NullLocator())
    ax.set(xlabel="final test loss without the guard", ylabel="final test loss with it")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=9)
    return figure


def alarm(runs: Sequence[Run]) -> Figure:
    """Return loss and rate of a run that was halved most, at the highest target, and of the same without the alarm."""
    torch.set_num_threads(1)
    own = [run for run in runs if task_of(run.config) == SHOWN and is_edge(run.config)]
    shown = max(own, key=lambda run: (run.outcome["warmup"]["num_step_backs"], run.config.optimizer.lr))
    with mock.patch.object(RiseAlarm, "add"):
        trained = train(shown.config)
    without = trained.rows
    cells = [cell_of(outcome).value for outcome in (shown.outcome, trained.outcome)]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    labels = {"train_loss": "training loss of the batch", "lr": "learning rate η"}
    for ax, (name, label) in zip(axes, labels.items(), strict=True):
        values = np.array([row[name] for row in without])
        ax.plot(values, color=colors.VERMILLION, lw=1.2, label=f"without the alarm: {cells[1]}")
        ax.plot(*shown.measured(name), color=colors.BLUE, lw=1.2, label=f"with it: {cells[0]}")
        ax.set(yscale="log", xlabel="update", ylabel=label)
        ax.grid(alpha=0.25)
    axes[0].legend(fontsize=9, loc="upper left")
    target = axes[1].axhline(shown.config.optimizer.lr, color="0.3", ls="--", lw=0.8, label="target")
    axes[1].legend(handles=[target], fontsize=9, loc="lower center")
    figure.suptitle(f"{SHOWN}, {optimizer_label(shown.config)}, target {shown.config.optimizer.lr:.3g}")
    return figure


def interventions(runs: Sequence[Run]) -> list[str]:
    """Return a line: in how many runs the rate was halved, or an update held back."""
    reports = [run.outcome["warmup"] for run in runs if is_edge(run.config)]
    halved = sum(report["num_step_backs"] > 0 for report in reports)
    guarded = sum(report["num_spikes"] > 0 for report in reports)
    return [f"halved in {halved}, spikes in {guarded} of {len(reports)} runs of EdgeWarmup"]


def fixed_lengths(cells: Sequence[CellResult]) -> list[str]:
    """Return Markdown lines: how often EdgeWarmup ties with the best length, and how often each length does."""
    lines = ["| half | EdgeWarmup | " + " | ".join(f"T = {steps}" for steps in LENGTHS) + " |"]
    lines.append("|---|" + "---|" * (1 + len(LENGTHS)))
    for half, tasks in (("held out", HELD_OUT), ("development", DEVELOPMENT)):
        own = [cell for cell in cells if cell.task in tasks]
        if own:
            losses = [[cell.edge for cell in own]] + [
                [cell.linear[steps] for cell in own] for steps in LENGTHS
            ]
            counts = [_ties_and_failures(own, its) for its in losses]
            lines.append(f"| {half}, {len(own)} cells | " + " | ".join(counts) + " |")
    return lines


def _ties_and_failures(cells: Sequence[CellResult], losses: Sequence[tuple[float, ...]]) -> str:
    ties = sum(
        replace(cell, edge=own).ties(cell.best_length) for cell, own in zip(cells, losses, strict=True)
    )
    failures = sum(not all(map(math.isfinite, own)) for own in losses)
    return f"{ties}, {failures} fail"


def others(runs: Sequence[Run]) -> list[str]:
    """Return Markdown lines: EdgeWarmup beside warmups that are chosen without training all lengths."""
    losses: dict[tuple[str, str, float], dict[str, list[float]]] = {}
    for run in runs:
        config, warmup = run.config, run.config.warmup
        is_rule = warmup.kind == "linear" and warmup.steps not in LENGTHS
        name = "RAdam" if config.optimizer.name == "radam" else "2/(1 − β₂)" if is_rule else warmup.kind
        optimizer = optimizer_label(config).replace("RAdam", "Adam")
        cell = losses.setdefault((task_of(config), optimizer, config.optimizer.lr), {})
        cell.setdefault(name, []).append(final_loss(run.outcome))
    lines = [
        "| beside | cells | lower by 1 % | higher by 1 % | its failures | the other's |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("catapult", "2/(1 − β₂)", "RAdam"):
        pairs = [
            (statistics.fmean(its["edge"]), statistics.fmean(its[name]))
            for its in losses.values()
            if name in its and len(its.get("edge", ())) == len(its[name])
        ]
        lower, higher = sum(a < 0.99 * b for a, b in pairs), sum(a > 1.01 * b for a, b in pairs)
        failures = [sum(not math.isfinite(pair[side]) for pair in pairs) for side in (0, 1)]
        lines.append(f"| {name} | {len(pairs)} | {lower} | {higher} | {failures[0]} | {failures[1]} |")
    return lines


def table(cells: Sequence[CellResult]) -> list[str]:
    """Return Markdown lines: for each task and optimizer the gap to the best length at each target rate."""
    lines = [
        "| task | optimizer | gap to the best length, lowest target first | ties |",
        "|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.optimizer), []).append(cell)
    for (task, optimizer), own in groups.items():
        ties = [cell.ties(cell.best_length) for cell in own]
        shown = ", ".join(
            f"{_percent(cell.gap(cell.best_length))}{'' if tie else ' ✗'} ({cell.best_length})"
            for cell, tie in zip(own, ties, strict=True)
        )
        lines.append(f"| {task} | {optimizer} | {shown} | {sum(ties)} of {len(own)} |")
    return lines


def _percent(gap: float) -> str:
    return f"{gap:+.1%}" if math.isfinite(gap) else "fails"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
