"""What the laboratory's tests share: configs that train in milliseconds, and stored runs made by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.lab.configs import DataConfig, ModelConfig, OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import RECIPES, Recipe
from edgewise.lab.recipes.edge_warmup.cells import task_of
from edgewise.lab.report import presentation
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

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
TINY_CNN = RunConfig(
    data=DataConfig(name="digits"),
    model=ModelConfig(name="cnn", depth=2, width=4, parameterization="sp"),
    optimizer=OptimizerConfig(name="sgd", lr=0.05),
    warmup=WarmupConfig(steps=2),
    num_steps=5,
    batch_size=8,
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
    ended = {
        "diverged": False,
        "lr_target": config.optimizer.lr,
        "stability_limit": paper_limit(config.optimizer),
        "num_steps": updates,
        "train_loss": float(filled["train_loss"][-1]),
        "test_loss": 0.2,
        "test_accuracy": 0.9,
        "num_classes": 10,
        "guess_loss": 0.45,
        "seconds": 1.0,
    } | outcome
    if config.evaluate_every is not None:  # it is best at the end
        ended |= {"best_test_accuracy": ended["test_accuracy"], "guess_accuracy": 1 / ended["num_classes"]}
    return Run(config=config, columns={"step": np.arange(steps, dtype=float)} | filled, outcome=ended)


def paper_limit(optimizer: OptimizerConfig) -> float:
    """The largest stable lr × (preconditioned) sharpness late in training, without weight decay (paper, section 2).

    2(1 + β) for gradient descent with momentum β, 2(1 + β₁)/(1 − β₁) for the Adam family but NAdam, which has that
    over 1 + 2β₁. NaN where there is no preconditioner, and so no unit to say it in: Lion's steps have the size of the
    rate wherever it is.
    """
    if optimizer.name == "sgd":
        return 2 * (1 + optimizer.momentum)
    if optimizer.traits.no_preconditioner:
        return math.nan
    beta1 = optimizer.betas[0]
    limit = 2 * (1 + beta1) / (1 - beta1)
    return limit / (1 + 2 * beta1) if optimizer.name == "nadam" else limit


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
    store.runs.save(run.config, rows, run.outcome)


def stored(path: Path, runs: dict[str, list[Run]], scale: str = "demo") -> Store:
    """A results folder of made runs, figure → its runs, as a sweep leaves it."""
    recipes = [RECIPES[figure] for figure in runs]
    store = Store.create(
        path,
        [
            FigureRuns(figure=figure, scale=scale, run_ids=tuple(run.config.run_id for run in its_runs))
            for figure, its_runs in runs.items()
        ],
    )
    presentation.write(store, recipes, [run.config for its_runs in runs.values() for run in its_runs])
    for run in {run.config.run_id: run for its_runs in runs.values() for run in its_runs}.values():
        save(store, run)
    presentation.judge(store, recipes)
    return store


def runs_of(store: Store, figure: FigureRuns) -> list[Run]:
    """All runs that a figure shows, in its order."""
    return [store.runs.load(run_id) for run_id in store.shown(figure)]


def shown(recipe: Recipe, runs: Sequence[Run | Absent]) -> FigureResults:
    """A figure of a recipe with these runs, none of its claims judged."""
    return FigureResults(
        id=recipe.id,
        scale="demo",
        title=recipe.title,
        finding=recipe.finding,
        layout=recipe.layout,
        runs=tuple(runs),
    )


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
        {"lr": 0.08 * ramp, "sharpness": np.where(measured, np.where(progress < 0.1, 390.0, 19.0), np.nan)},
        lr_target=0.08,
    )
    return diverged(run, after=7) if config.warmup.steps == 1 else run


def _fig2(config: RunConfig) -> Run:
    steps = np.arange(config.num_steps)
    start = 1e6 if config.optimizer.name == "adam" else 1e6 / math.sqrt(1000)  # and RI-Adam's, as GI-Adam's
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
    measured = np.arange(config.num_steps) % config.measure_every == 0
    columns = {
        "lr": 0.08,
        "sharpness": np.linspace(390, 20, config.num_steps),
        "critical_lr": np.where(measured, np.linspace(0.006, 0.11, config.num_steps), np.nan),
        "train_loss": 0.05,
    }
    return made(config, columns, lr_target=0.08, warmup=CATAPULTS)


def _mechanism(config: RunConfig) -> Run:
    """Flat starts sharpen up to the edge, sharp ones fall; the loss spikes the less the longer the warmup."""
    measured = np.arange(config.num_steps) % config.measure_every == 0
    ramp = np.minimum(1, (1 + np.arange(config.num_steps)) / config.warmup.steps)
    progress = np.linspace(0, 1, config.num_steps)
    flat = config.model.parameterization == "mup" or (config.model.name == "lm" and config.model.final_norm)
    loss = np.linspace(1.0, 0.1, config.num_steps)
    if flat:
        lr = 0.5 * ramp
        sharpness = np.where(progress < 0.5, 1.9 + 4.2 * progress, paper_limit(config.optimizer) / lr)
    else:
        lr = 0.08 * ramp
        sharpness = np.where(progress < 0.1, 390.0, 19.0)
        loss[1] = 1 + 3 / config.warmup.steps
    run = made(
        config,
        {"lr": lr, "sharpness": np.where(measured, sharpness, np.nan), "train_loss": loss},
        lr_target=lr[-1],
    )
    diverges = not flat and config.model.name == "fcn" and config.loss == "mse" and config.warmup.steps == 1
    return diverged(run, after=7) if diverges else run


def _fig18(config: RunConfig) -> Run:
    run = _fig2(config)
    return remade(
        run,
        {
            "train_loss": np.linspace(1.0, 0.1, config.num_steps),
            "preconditioned_sharpness": np.where(
                np.arange(config.num_steps) % config.measure_every == 0,
                np.maximum(1e6 * np.exp(-np.arange(config.num_steps) / 3), 1e2),
                np.nan,
            ),
        },
    )


def _sgd_accuracy(config: RunConfig) -> Run:
    """Boundaries at 8/λ₀ without warmup and at 32/λ₀ with it, an eighth of that with momentum."""
    x, long = math.log2(config.optimizer.lr), config.warmup.steps > 1
    boundary = (5 if long else 3) - (3 if config.optimizer.momentum else 0)
    run = made(config, num_steps=3, test_loss=0.2, guess_loss=4.0, num_classes=100)
    if x > boundary:
        return diverged(run, after=2)
    decay = 0.0 if config.warmup.decay == "none" else (-0.01 if x < 1 else 0.01)
    return remade(run, test_accuracy=0.9 - 0.01 * abs(x - 2) + 0.005 * long + decay)


def _fig20(config: RunConfig) -> Run:
    boundary = 8 if config.model.final_norm else 16 if config.warmup.steps > 1 else 2
    run = made(config, num_steps=3, test_loss=2.0, guess_loss=3.3, num_classes=256)
    return run if config.optimizer.lr <= boundary else diverged(run, after=2)


def _fig23(config: RunConfig) -> Run:
    """GI-Adam's best rate is four times Adam's, and its boundary, too."""
    lowest = 1e-3 if config.data.name in ("digit-pairs", "digit-pairs-2x") else 1e-5
    x = round(math.log2(config.optimizer.lr / lowest)) - 2 * (config.optimizer.name == "gi-adam")
    run = made(config, num_steps=3, test_loss=0.2, guess_loss=4.6, num_classes=100)
    return remade(run, test_accuracy=0.9 - 0.01 * abs(x - 1) if x <= 3 else 0.01)


CRITICAL = 2.0  # times the lowest target rate of the diagrams of T_save


def _fig5(config: RunConfig) -> Run:
    lowest = 4.0 if config.optimizer.name == "sgd" else 1e-3
    target, steps = config.optimizer.lr, config.warmup.steps
    start = min(1.0, CRITICAL * lowest / target)
    reached = math.ceil(steps * (1 - start))
    rates = np.minimum(1.0, start + np.arange(config.num_steps) / steps) * target
    saved = {"lr_target": target, "steps_saved": steps * start - 4.5, "num_forwards": 9, "fallback": None}
    return made(config, {"lr": rates}, warmup=saved | {"steps_to_target": reached}, lr_target=target)


def _fig26(config: RunConfig) -> Run:
    scale = 1.0 if config.optimizer.lr < 0.1 else 5.0
    return made(config, {"train_loss": scale, "gradient_norm": scale, "second_moment": scale})


def _table1(config: RunConfig) -> Run:
    plain_adam = config.optimizer.name == "adam" and config.warmup.steps == 1
    return made(config, num_steps=3, test_accuracy=(0.7 if plain_adam else 0.9) + 0.01 * config.seed)


@cache
def too_high_rates() -> frozenset[tuple[str, OptimizerConfig]]:
    """Task and optimizer of the runs of edge-warmup whose target is too high: the two largest rates of each."""
    rates: dict[Any, list[OptimizerConfig]] = {}
    for config in RECIPES["edge-warmup"].configs("demo"):
        if config.warmup.kind == "edge":
            same = task_of(config), replace(config.optimizer, lr=1.0)
            rates.setdefault(same, []).append(config.optimizer)
    return frozenset(
        (task, its) for (task, _), found in rates.items() for its in sorted(found, key=lambda o: o.lr)[-2:]
    )


def _edge_warmup(config: RunConfig) -> Run:
    """EdgeWarmup is 5 % better than the best length, 64, and holds the rate below targets that are too high."""
    kind = config.warmup.kind
    too_high = (task_of(config), config.optimizer) in too_high_rates()
    linear = 1 + 0.1 * abs(math.log2(config.warmup.steps / 64))
    held = 0.1 * config.optimizer.lr if too_high and kind == "edge" else None
    run = made(
        config,
        num_steps=3,
        test_loss=0.95 if kind == "edge" else linear,
        guess_loss=4.0,
        warmup={"overhead": 0.02, "lr_held": held, "lr_target": config.optimizer.lr},
    )
    return diverged(run, after=2) if too_high and kind == "linear" else run


def _warmups(config: RunConfig) -> Run:
    """Gradient descent ends lowest with catapults; Adam from the critical rate, higher than from 0."""
    harmed = config.optimizer.name == "adam" and config.warmup.lr_init == "critical"
    loss = 0.9 if config.warmup.kind == "catapult" else 1.1 if harmed else 1.0
    return made(config, {"train_loss": loss}, test_loss=loss, guess_loss=4.0)


ADAM_EDGE = 3e-3  # the target rate at which Adam's first update is at the edge


def _when_warmup(config: RunConfig) -> Run:
    """Warmup gains nothing where training starts stable, 0.1 beyond, and all from eight times the edge on."""
    if config.num_steps == 1:
        return made(config, {"preconditioned_sharpness": paper_limit(config.optimizer) / ADAM_EDGE})
    adaptive = config.optimizer.traits.adaptive
    distance = config.optimizer.lr / (ADAM_EDGE if adaptive else 2.0)
    run = made(config, num_steps=3, test_loss=2.0, test_accuracy=0.5, num_classes=100, guess_loss=4.0)
    if config.warmup.steps == 1:
        return diverged(run, after=2) if distance >= 8 else run
    return remade(run, test_loss=1.9, test_accuracy=0.6) if distance >= 1 else run


_STORIES = {
    "when-warmup": _when_warmup,
    "warmups": _warmups,
    "edge-warmup": _edge_warmup,
    "fig1": _fig1,
    **dict.fromkeys(("fig2", "fig6", "fig13", "fig14", "fig30", "fig31"), _fig2),
    **dict.fromkeys(("fig3", "fig19", "fig21", "fig22"), _sgd_accuracy),
    **dict.fromkeys(("fig4", "fig25"), _fig4),
    **dict.fromkeys(("fig5", "fig27", "fig28", "fig29"), _fig5),
    "fig7": _fig7,
    **{f"fig{n}": _mechanism for n in (8, 9, 10, 11, 12, 15, 16, 17)},
    "fig18": _fig18,
    "fig20": _fig20,
    **dict.fromkeys(("fig23", "fig24"), _fig23),
    "fig26": _fig26,
    "table1": _table1,
}


def finding(question, name, level="good", **changed):
    """A made-up line of an inspection."""
    return {
        "question": question,
        "name": name,
        "value": 1.0,
        "shown": f"number of {name}",
        "meaning": f"Meaning of {name}.",
        "advice": "" if level in ("good", "unknown") else f"Advice on {name}.",
        "level": level,
        "ok": level != "unknown",
        "evidence": {},
    } | changed


def inspected(**changed):
    """The dict of a made-up inspection."""
    return {
        "format": 1,
        "ok": True,
        "text": "suggested rate 0.004",
        "lr": 3e-4,
        "lr_suggested": 4.1e-3,
        "lr_largest": 2e-2,
        "warmup_steps": 66,
        "num_updates": 150,
        "seconds": 12.3,
        "subject": {
            "model": "GPT2LMHeadModel",
            "optimizer": "AdamW",
            "num_parameters": 124_439_808,
            "dtypes": ["float32"],
            "device": "cpu",
        },
        "questions": {"rate": "How large?", "stability": "Stable?", "odd": "Odd?"},
        "findings": [
            finding("rate", "suggested rate", "notice"),
            finding(
                "stability",
                "rate × preconditioned sharpness",
                evidence={"share": 0.8, "lr_at_edge": 5e-4},
            ),
            finding("stability", "holders", evidence={"shares": {"a.weight": 0.75, "b.<i>": 0.25}}),
            finding(
                "stability",
                "critical rate of the coming update",
                evidence={"lr": 0.3, "interval": [0.2, 0.4]},
            ),
            finding("odd", "noise", "unknown"),
            finding("odd", "modes"),
        ],
        "trial": {
            "path": {"lr": [1e-4, 2e-4, 4e-4], "loss": [5.0, 4.5, 4.0], "diverged": False},
            "runs": [
                {"lr": 1e-3, "loss": [5.0, 4.0], "final": 3.5},
                {"lr": 1e-1, "loss": [5.0, None], "final": None},
            ],
        },
    } | changed
