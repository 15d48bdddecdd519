"""Pictures for the page on warmups: every warmup on the digits and on the language model, one seed.

`python docs/studies/warmup_plots.py` writes docs/images/warmups-*.png. Its settings are those of the recipe `warmups`.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from edgewise.lab.configs import RunConfig
from edgewise.lab.recipes import warmups
from edgewise.lab.report.panels import COLORS
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
}
STYLES = {  # a color, a line and a marker of its own, also in print
    name: (COLORS[color], line, marker)
    for name, color, line, marker in zip(
        COMPARED, (5, 4, 0, 2, 1), (":", "-", "-", "--", "-"), "xos^D", strict=True
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


def follow(config: RunConfig, warmup: str) -> Trajectory:
    """Train with one of the warmups that are `COMPARED`."""
    torch.set_num_threads(1)
    done = train(replace(config, warmup=replace(config.warmup, **COMPARED[warmup])))
    final = done.outcome["train_loss" if config.model.name == "fcn" else "test_loss"]
    return Trajectory(
        rates=tuple(row["lr"] / done.outcome["lr_target"] for row in done.rows),
        losses=tuple(row["train_loss"] for row in done.rows),
        final=final if np.isfinite(final) else np.inf,
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


def main() -> None:
    style = {"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for panel in panels():
            futures = {
                (config.optimizer.lr, name): pool.submit(follow, config, name)
                for config in panel.configs
                for name in STYLES
            }
            with mpl.rc_context(style):
                figure = draw(panel, {key: future.result() for key, future in futures.items()})
                figure.savefig(IMAGES / f"{panel.file}.png", dpi=130)


if __name__ == "__main__":
    main()
