"""What the laboratory's tests share: configs that train in milliseconds, and stored runs made by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import RECIPES
from edgewise.lab.store import FigureRuns, Run, Store

TINY = RunConfig(
    data=DataConfig(name="digits"),
    model=ModelConfig(name="fcn", depth=1, width=8, parameterization="sp"),
    optimizer=OptimizerConfig(name="sgd", lr=0.05),
    warmup=WarmupConfig(steps=3),
    loss="mse",
    num_steps=6,
)
TINY_LM = RunConfig(
    data=DataConfig(name="stdlib-text", context=8),
    model=ModelConfig(name="lm", depth=1, width=32, parameterization="sp"),
    optimizer=OptimizerConfig(name="adam", lr=0.01),
    warmup=WarmupConfig(steps=2, decay="cosine"),
    num_steps=5,
    batch_size=4,
)


def tiny(**changes: Any) -> RunConfig:
    """TINY with changes; a dict changes the fields of a part: `optimizer={"lr": 1.0}`."""
    return changed(TINY, **changes)


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    parts = {
        name: replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return replace(config, **parts)


def made(config: RunConfig, columns: dict[str, Any] | None = None, **outcome: Any) -> Run:
    """A run as if it had trained; `columns` are numbers, or one number a step, NaN where not measured.

    As in training, a last loss that is not finite has a row of its own, but no update followed.
    """
    updates = outcome.get("num_steps", config.num_steps)
    steps = updates if math.isfinite(outcome.get("train_loss", 0.0)) else updates + 1
    values = {"lr": config.optimizer.lr, "train_loss": 0.1} | (columns or {})
    filled = {name: np.broadcast_to(np.asarray(value, float), steps) for name, value in values.items()}
    return Run(
        config=config,
        columns={"step": np.arange(steps, dtype=float)} | filled,
        outcome={
            "diverged": False,
            "lr_target": config.optimizer.lr,
            "num_steps": updates,
            "train_loss": float(filled["train_loss"][-1]),
            "test_loss": 0.2,
            "test_accuracy": 0.9,
            "num_classes": 10,
            "guess_loss": 0.45,
            "seconds": 1.0,
        }
        | outcome,
    )


def remade(run: Run, columns: dict[str, Any] | None = None, **outcome: Any) -> Run:
    """A made run with other columns or another outcome."""
    return made(
        run.config,
        {k: v for k, v in run.columns.items() if k != "step"} | (columns or {}),
        **(run.outcome | outcome),
    )


def diverged(run: Run, *, after: int = 4, columns: dict[str, Any] | None = None) -> Run:
    """The run, grown a thousandfold an update until after so many its loss was no longer finite."""
    kept = {name: values[: after + 1] for name, values in run.columns.items() if name != "step"}
    kept["train_loss"] = [*(1e3**k for k in range(after)), math.inf]
    return made(
        run.config,
        kept | (columns or {}),
        **run.outcome
        | {
            "diverged": True,
            "num_steps": after,
            "train_loss": math.inf,
            "test_loss": math.nan,
            "test_accuracy": 0.1,
        },
    )


def save(store: Store, run: Run) -> None:
    """Write a made run as training would; NaN stands for not measured."""
    rows = [
        {name: float(values[i]) for name, values in run.columns.items() if not np.isnan(values[i])}
        for i in range(len(run.columns["step"]))
    ]
    store.save(run.config, rows, run.outcome)


def stored(path: Path, runs: dict[str, list[Run]], scale: str = "demo") -> Store:
    """A results folder of made runs: figure → its runs."""
    store = Store.create(
        path,
        [
            FigureRuns(figure=figure, scale=scale, run_ids=tuple(run.config.run_id for run in its_runs))
            for figure, its_runs in runs.items()
        ],
    )
    for run in {run.config.run_id: run for its_runs in runs.values() for run in its_runs}.values():
        save(store, run)
    return store


def story(figure: str, scale: str = "demo") -> list[Run]:
    """The runs of a figure, made up so that every claim of it holds."""
    return [_STORIES[figure](config) for config in RECIPES[figure].configs(scale)]


def _fig1(config: RunConfig) -> Run:
    measured = np.arange(config.num_steps) % config.measure_every == 0
    ramp = np.minimum(1, (1 + np.arange(config.num_steps)) / config.warmup.steps)
    progress = np.linspace(0, 1, config.num_steps)
    if config.model.parameterization == "mup":  # sharpness 1.9 → 4, and 2/η in the second half
        lr = 0.5 * ramp
        sharpness = np.where(progress < 0.5, 1.9 + 4.2 * progress, 2 / lr)
        return made(config, {"lr": lr, "sharpness": np.where(measured, sharpness, np.nan)}, lr_target=0.5)
    run = made(
        config,
        {"lr": 0.08 * ramp, "sharpness": np.where(measured, np.where(progress < 0.1, 390.0, 39.0), np.nan)},
        lr_target=0.08,
    )
    return diverged(run, after=7) if config.warmup.steps == 1 else run


def _fig2(config: RunConfig) -> Run:
    steps = np.arange(config.num_steps)
    start = 1e6 if config.optimizer.name == "adam" else 1e6 / math.sqrt(1000)
    if config.optimizer.name == "gi-adam" and config.optimizer.eps == 1e-8:
        start *= 2  # ε keeps the ratio below 31.6
    values = np.maximum(start * np.exp(-steps / 5), 1e3)
    values = np.where(steps % config.measure_every == 0, values, np.nan)
    return made(
        config,
        {"preconditioned_sharpness": values} | {name: 5.0 for name in config.measure if name == "sharpness"},
    )


FIG4_ADAM = {0.001: 2.45, 0.004: 2.20, 0.016: 2.25, 0.064: 2.72, 0.256: 3.03}
FIG4_GI_ADAM = {0.001: 2.75, 0.004: 2.41, 0.016: 2.19, 0.064: 2.13, 0.256: 2.67}


def _fig4(config: RunConfig) -> Run:
    table = FIG4_ADAM if config.optimizer.name == "adam" else FIG4_GI_ADAM
    lr = config.optimizer.lr
    nearest = min(table, key=lambda rate: abs(math.log(rate / lr)))
    loss = table[nearest] + 0.05 * abs(math.log2(nearest / lr))
    if config.warmup.steps > 1:  # the best rate becomes 0.064
        loss = 2.09 + 0.1 * abs(math.log2(0.064 / lr))
    if lr > 0.6:
        loss = 5.0  # learned nothing
    return made(config, test_loss=loss, test_accuracy=0.4, num_classes=256, guess_loss=3.3)


CATAPULTS = {"steps_to_target": 6, "num_catapults": 6, "num_forwards": 30, "fallback": None}


def _fig7(config: RunConfig) -> Run:
    if config.warmup.kind == "linear":
        return _fig1(config)
    columns = {"lr": 0.08, "sharpness": np.linspace(390, 20, config.num_steps), "train_loss": 0.05}
    return made(config, columns, lr_target=0.08, warmup=CATAPULTS)


_STORIES = {"fig1": _fig1, "fig2": _fig2, "fig6": _fig2, "fig4": _fig4, "fig7": _fig7}
