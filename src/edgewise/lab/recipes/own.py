"""A recipe from a file of one's own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgewise.lab import plugins
from edgewise.lab.configs import RunConfig, to_dict
from edgewise.lab.errors import RecipeError
from edgewise.lab.recipes.recipe import (
    LOSS,
    PRECONDITIONED_SHARPNESS,
    SHARPNESS,
    Claim,
    Layout,
    PhaseDiagrams,
    Quantity,
    Recipe,
    Trajectories,
    no_claims,
)
from edgewise.lab.results.runs import Run

SCALE = "own"
_DIAGRAM_RATES = 3  # with so many target rates, runs without measurements are a phase diagram
_AXES = ("optimizer.lr", "warmup.steps", "warmup.kind", "seed")  # of a phase diagram


def load(path: Path) -> Recipe:
    """Return the recipe in a Python file: its function `configs()` and what else it gives.

    `configs()` returns the runs. Optional are `title` and `finding`, texts; `claims(runs)`, which returns a list of
    `Claim`; and `layout`, without which the runs are shown as a phase diagram over their target rates, or as curves.

    Raises:
        RecipeError: there is no such file, it raises, or `configs()` does not return distinct runs.
    """
    module = plugins.execute(path)
    function = getattr(module, "configs", None)
    if not callable(function):
        raise RecipeError(
            f"{path} has no function configs(): write one that takes nothing and returns a list of RunConfig."
        )
    configs = _checked(path, plugins.called(path, function))
    layout = getattr(module, "layout", None) or _layout(configs)
    if not isinstance(layout, Layout):
        raise RecipeError(f"layout of {path} must be Trajectories, PhaseDiagrams or Table, got {layout!r}.")
    return Recipe(
        id=path.stem,
        title=_text(path, module, "title", path.stem),
        finding=_text(path, module, "finding", ""),
        configs=lambda scale: configs,
        claims=_claims(path, module),
        layout=layout,
    )


def _text(path: Path, module: ModuleType, name: str, default: str) -> str:
    text = getattr(module, name, default)
    if not isinstance(text, str):
        raise RecipeError(f"{name} of {path} must be a text, got {text!r}.")
    return text


def _claims(path: Path, module: ModuleType) -> Callable[[Sequence[Run]], list[Claim]]:
    claims: Any = getattr(module, "claims", no_claims)
    if not callable(claims):
        raise RecipeError(
            f"claims of {path} must be a function that takes the runs and returns a list of Claim, got {claims!r}."
        )
    return claims


def _checked(path: Path, configs: Any) -> tuple[RunConfig, ...]:
    if not isinstance(configs, Sequence) or not configs:
        raise RecipeError(f"configs() of {path} must return a list of RunConfig, got {configs!r}.")
    for config in configs:
        if not isinstance(config, RunConfig):
            raise RecipeError(f"configs() of {path} must return RunConfig only, got {config!r} among them.")
    first: dict[str, int] = {}
    for i, config in enumerate(configs):
        if config.run_id in first:
            raise RecipeError(
                f"configs() of {path} returns the same run twice, as number {first[config.run_id]} and {i}: "
                f"runs must differ, if only in their seed. It is {config}"
            )
        first[config.run_id] = i
    return tuple(configs)


def _layout(configs: tuple[RunConfig, ...]) -> Trajectories | PhaseDiagrams:
    measured = dict.fromkeys(name for config in configs for name in config.measure)
    if not measured and len({config.optimizer.lr for config in configs}) >= _DIAGRAM_RATES:
        return PhaseDiagrams(panel=difference_label(configs, without=_AXES))
    known = {q.column: q for q in (SHARPNESS, PRECONDITIONED_SHARPNESS)}
    quantities = tuple(
        known.get(name, Quantity(column=name, label=name.replace("_", " "))) for name in measured
    )
    rate = Quantity(column="lr", label="learning rate η")
    return Trajectories(
        quantities=(LOSS, *(quantities or (rate,))),
        row=lambda config: config.model.name.upper(),
        line=difference_label(configs),
    )


def difference_label(
    configs: Sequence[RunConfig], *, without: tuple[str, ...] = ()
) -> Callable[[RunConfig], str]:
    """Return a label that says in what a run differs from the others, but for some fields."""
    flat = [_flat(config) for config in configs]
    varying = [name for name in flat[0] if any(values[name] != flat[0][name] for values in flat)]
    shown = [name for name in varying if name not in without]

    def label(config: RunConfig) -> str:
        values = _flat(config)
        return ", ".join(f"{name} {values[name]}" for name in shown) or "all runs"

    return label


def _flat(config: RunConfig) -> dict[str, Any]:
    """Return dotted name → value; the name of a part is the part's."""
    flat: dict[str, Any] = {"schedule_steps": None}  # which whole runs leave out
    for name, value in to_dict(config).items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name}.{key}" if key not in ("", "name") else name: part for key, part in parts}
    return flat
