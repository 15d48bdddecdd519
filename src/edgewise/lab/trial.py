"""The first steps of runs, to see what whole ones would cost before days are spent on them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from edgewise.arguments import positive_count
from edgewise.lab.configs import RunConfig
from edgewise.lab.ladders import Ladder
from edgewise.lab.results.store import Store

NOT_JUDGED = "the runs were stopped after their first steps; claims are of whole runs"


def first_steps(planned: dict[str, list[Ladder]], steps: int) -> dict[str, list[Ladder]]:
    """Return the runs stopped after so many steps, each under its whole run's schedule and an id of its own.

    Every rate is trained: whether a run has learned something after a few steps says nothing of larger rates.

    Args:
        planned: figure id → its runs.
        steps: from 1 to below those of the longest run; a run that is not longer is trained as it is.

    Raises:
        ValueError: there are not so many steps.
    """
    positive_count("stop-after", steps)
    longest = max(config.num_steps for config in _configs(planned))
    if steps >= longest:
        raise ValueError(
            f"stop-after must be below {longest}, the steps of the longest run, got {steps}: leave it out for whole "
            "runs."
        )
    return {
        figure: [(_stopped(config, steps),) for ladder in ladders for config in ladder]
        for figure, ladders in planned.items()
    }


def folder(name: str, stop_after: int | None) -> str:
    """Return the name of the results folder: first steps have one of their own."""
    return name if stop_after is None else f"{name}-first-{stop_after}"


def one_of_each(planned: dict[str, list[Ladder]]) -> dict[str, list[Ladder]]:
    """Return the first run of each kind of a figure: its others differ in rate, warmup length and seed alone."""
    first: dict[str, dict[RunConfig, RunConfig]] = {figure: {} for figure in planned}
    for figure, ladders in planned.items():
        for config in chain.from_iterable(ladders):
            first[figure].setdefault(kind_of(config), config)
    return {figure: [(config,) for config in kinds.values()] for figure, kinds in first.items()}


def kind_of(config: RunConfig) -> RunConfig:
    """Return the config with fixed values for what a step does not cost more or less by."""
    return replace(
        config,
        optimizer=replace(config.optimizer, lr=1.0, eps=1e-8),
        warmup=replace(config.warmup, steps=1),
        num_steps=1,
        schedule_steps=None,
        seed=0,
    )


def name_of(kind: RunConfig) -> str:
    """Return data, network, batch, loss, optimizer and what is looked at, in a line."""
    model, optimizer = kind.model, kind.optimizer
    network = f"{model.name.upper()}-{model.depth}-{model.width} {model.parameterization}"
    looks = [f"{kind.warmup.decay} decay"] if kind.warmup.decay != "none" else []
    looks += [kind.warmup.kind] if not kind.warmup.traits.has_length else []
    looks += ["from η_c"] if kind.warmup.lr_init == "critical" else []
    looks += [f"{name.replace('_', ' ')} every {kind.measure_every}" for name in kind.measure]
    parts = [
        kind.data.name + (", augmented" if kind.data.augment else ""),
        network + ("" if model.final_norm else " without final norm"),
        kind.loss,
        f"batch {kind.batch_size}" if kind.batch_size else "full batch",
        optimizer.name + (" with momentum" if optimizer.momentum else ""),
    ]
    return "; ".join(parts + looks)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the first steps of one kind of run took, in one process of one thread."""

    kind: RunConfig
    num_runs: int  # that were tried
    seconds_a_step: float  # of a core, the median over them; of each the mean, without the first step
    peak_memory: int  # bytes, the most of them
    seconds_whole: float  # of a whole run at this pace, the mean


def costs(store: Store, planned: dict[str, list[Ladder]]) -> list[Cost]:
    """Return what the stopped runs of a folder cost, kind by kind."""
    by_kind: dict[RunConfig, dict[str, RunConfig]] = {}
    for config in _configs(planned):
        if config.schedule_steps is not None and store.runs.has(config.run_id):
            by_kind.setdefault(kind_of(config), {})[config.run_id] = config
    return [_cost(kind, list(configs.values()), store) for kind, configs in by_kind.items()]


def _cost(kind: RunConfig, configs: Sequence[RunConfig], store: Store) -> Cost:
    seen = [store.runs.outcome(config.run_id)["cost"] for config in configs]
    pace = statistics.median(cost["seconds_a_step"] for cost in seen)
    return Cost(
        kind=kind,
        num_runs=len(configs),
        seconds_a_step=pace,
        peak_memory=max(cost["peak_memory"] for cost in seen),
        seconds_whole=pace * statistics.fmean(config.whole_steps for config in configs),
    )


def _stopped(config: RunConfig, steps: int) -> RunConfig:
    if config.num_steps <= steps:
        return config
    return replace(config, num_steps=steps, schedule_steps=config.num_steps)


def _configs(planned: dict[str, list[Ladder]]) -> list[RunConfig]:
    return list(chain.from_iterable(chain.from_iterable(planned.values())))
