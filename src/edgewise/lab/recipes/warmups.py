"""Every warmup on the digits and on the language model. Beyond the paper.

The warmups' defaults were chosen on seeds 10 and 11.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig
from edgewise.lab.recipes import fig1, fig4
from edgewise.lab.recipes.recipe import Claim, Recipe, Table, number, optimizer_label, warmup_label
from edgewise.lab.results.phase_diagram import Cell, CellValue, cell_of
from edgewise.lab.results.runs import Run

LENGTHS = (64, 200)
_SEEDS = {"demo": range(1), "embedded": range(5), "desk": range(5), "paper": range(5)}
_TASKS = {"fcn": "digits", "lm": "LM"}
_HARMS_FROM = 0.016  # η of Adam


def configs(scale: str) -> tuple[RunConfig, ...]:
    """Return every task, optimizer, rate and warmup; the scale decides on the seeds alone."""
    return tuple(
        replace(config, warmup=warmup)
        for seed in _SEEDS[scale]
        for config in (*digits(seed), *language_model(seed))
        for warmup in _warmups(config.warmup.decay)
    )


def digits(seed: int) -> Iterator[RunConfig]:
    """Yield figure 1's sharp FCN-4-256 on the digits, with and without momentum: η = 4 … 32 over the sharpness."""
    base = next(c for c in fig1.configs("demo") if c.model.parameterization == "sp")
    for momentum in (0.0, 0.9):
        for rate in (4.0, 8.0, 16.0, 32.0):
            optimizer = replace(base.optimizer, lr=rate, momentum=momentum)
            yield replace(base, optimizer=optimizer, measure=(), seed=seed)


def language_model(seed: int) -> Iterator[RunConfig]:
    """Yield figure 4's LM-2-64 on bytes, batches of 16, cosine decay, with Adam and GI-Adam."""
    base = fig4.configs("demo")[0]
    for name in ("adam", "gi-adam"):
        for rate in (0.001, 0.004, 0.016, 0.064, 0.256):
            yield replace(base, optimizer=OptimizerConfig(name=name, lr=rate), seed=seed)


def _warmups(decay: str) -> Iterator[WarmupConfig]:
    for steps in LENGTHS:
        yield WarmupConfig(steps=steps, decay=decay)
        yield WarmupConfig(steps=steps, lr_init="critical", decay=decay)
    yield WarmupConfig(kind="catapult", decay=decay)
    yield WarmupConfig(kind="edge", decay=decay)


def final_loss(run: Run) -> float:
    """Return the training loss of the digits, mean over the last tenth; the test loss of the language model."""
    if run.config.model.name == "lm":
        return float(run.outcome["test_loss"])
    return float(run.columns["train_loss"][-run.config.num_steps // 10 :].mean())


def row(config: RunConfig) -> str:
    """Return task, optimizer and target rate."""
    unit = "/λ₀" if config.optimizer.lr_unit == "1/sharpness" else ""
    return f"{_TASKS[config.model.name]}, {optimizer_label(config)}, η = {config.optimizer.lr:g}{unit}"


def claims(runs: Sequence[Run]) -> list[Claim]:
    """Return where catapults need no length, what a start at the critical rate costs, and whether EdgeWarmup trains."""
    descent = [run for run in runs if not run.config.optimizer.traits.adaptive]
    plain = [run for run in descent if run.config.optimizer.momentum == 0]
    adam = [
        run for run in runs if run.config.optimizer.name == "adam" and run.config.optimizer.lr >= _HARMS_FROM
    ]
    return [
        _catapults_end_lower(descent),
        _critical_start(
            "gradient descent: final loss from η_c over that from 0, at its worst",
            plain,
            "at most 1.01",
            _no_worse,
        ),
        _critical_start(
            f"Adam, η ≥ {_HARMS_FROM}: final loss from η_c over that from 0, at its worst",
            adam,
            "above 1",
            _worse,
        ),
        _edge_trains(runs),
    ]


def _catapults_end_lower(runs: Sequence[Run]) -> Claim:
    losses: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        if run.config.warmup.kind == "catapult" or _is_plain(run.config):
            of_row = losses.setdefault(row(run.config), {})
            of_row.setdefault(warmup_label(run.config), []).append(final_loss(run))
    medians = [
        {name: statistics.median(seeds) for name, seeds in of_row.items()} for of_row in losses.values()
    ]
    lower = [min(of_row, key=lambda name: of_row[name]) == "catapults" for of_row in medians]
    return Claim(
        text="gradient descent: catapults, which have no length, end below every linear length (median over seeds)",
        expected="at every target rate, with momentum and without",
        measured=f"at {sum(lower)} of {len(lower)}",
        holds=all(lower),
    )


def _critical_start(text: str, runs: Sequence[Run], expected: str, judge: Callable[[float], bool]) -> Claim:
    """Return what the largest of the ratios over the seeds is, for each target rate and length."""
    from_zero = {run.config: final_loss(run) for run in runs if run.config.warmup.lr_init == 0}
    worst: dict[RunConfig, float] = {}
    for run in runs:
        if run.config.warmup.lr_init == "critical":
            beside = replace(run.config, warmup=replace(run.config.warmup, lr_init=0.0))
            cell = replace(run.config, seed=0)
            worst[cell] = max(worst.get(cell, 0.0), final_loss(run) / from_zero[beside])
    return Claim(
        text=text,
        expected=f"{expected} at every target rate and both lengths",
        measured=", ".join(map(number, worst.values())),
        holds=all(map(judge, worst.values())),
    )


def _edge_trains(runs: Sequence[Run]) -> Claim:
    edge: dict[str, list[bool]] = {}
    linear: dict[str, dict[int, list[bool]]] = {}
    for run in runs:
        at, trained = row(run.config), cell_of(run.outcome) is Cell.TRAINED
        if run.config.warmup.kind == "edge":
            edge.setdefault(at, []).append(trained)
        elif _is_plain(run.config):
            linear.setdefault(at, {}).setdefault(run.config.warmup.steps, []).append(trained)
    trainable = [at for at, lengths in linear.items() if any(map(all, lengths.values()))]
    failed = sum(not all(edge[at]) for at in trainable)
    return Claim(
        text="EdgeWarmup: target rates at which a seed fails although some linear length trains all seeds",
        expected="none",
        measured=f"{failed} of {len(trainable)}",
        holds=bool(trainable) and not failed,
    )


def _is_plain(config: RunConfig) -> bool:
    """Whether the warmup is linear, and not from the critical rate."""
    return config.warmup.kind == "linear" and config.warmup.lr_init == 0


def _no_worse(ratio: float) -> bool:
    return ratio <= 1.01


def _worse(ratio: float) -> bool:
    return ratio > 1


RECIPE = Recipe(
    id="warmups",
    title="Every warmup on the digits and on a language model",
    finding="Final loss over target rates: linear warmup of two lengths, the same from the critical rate, "
    "catapults and EdgeWarmup. Gradient descent does best with catapults, which have no length. Adam is better off "
    "from 0 than from its critical rate.",
    configs=configs,
    claims=claims,
    layout=Table(
        row=row,
        column=warmup_label,
        value=CellValue(label="final loss", of=final_loss, lower_is_better=True, digits=4),
    ),
)
