"""How a folder's figures are shown, as data, so that a report needs no recipe and runs no code.

| file in the folder | what it holds | written |
|---|---|---|
| presentation.json | titles, labels and panels, and the settings of every planned run | as a sweep begins |
| findings.json | the claims as judged, and what else only the recipe can compute | as it ends |
| recipe.py | a recipe of one's own as it was run, for the reader: nothing executes it | as it begins |
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from edgewise.lab import plugins
from edgewise.lab.configs import RunConfig, from_dict, to_dict
from edgewise.lab.errors import RecipeError, StoreError
from edgewise.lab.recipes.recipe import Claim, Recipe, Trajectories, no_claims
from edgewise.lab.report import layouts
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.results import documents
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store

PRESENTATION, FINDINGS, RECIPE = "presentation.json", "findings.json", "recipe.py"


def write(store: Store, recipes: Sequence[Recipe], configs: Iterable[RunConfig]) -> None:
    """Store how figures are shown, and a copy of a recipe of one's own.

    Args:
        store: the results folder.
        recipes: of its figures.
        configs: all runs of these.

    Raises:
        RecipeError: a recipe of one's own has no label for a run.
        StoreError: the folder cannot be written to.
    """
    recipe_of, config_of = (
        {recipe.id: recipe for recipe in recipes},
        {config.run_id: config for config in configs},
    )
    figures = {
        figure.figure: _figure_to_data(
            store, recipe_of[figure.figure], [config_of[run_id] for run_id in figure.run_ids]
        )
        for figure in store.figures
    }
    settings = {run_id: to_dict(config) for run_id, config in config_of.items()}
    documents.write(store, PRESENTATION, {"configs": settings, "figures": figures})
    if store.recipe_file is not None:
        documents.copy(store, RECIPE, store.recipe_file)


def judge(store: Store, recipes: Sequence[Recipe], not_judged: str = "") -> None:
    """Hold the claims of each figure against its runs, and record what came out, if there is room.

    They are judged on all runs of a figure or not at all: on some of them a claim may come out wrong.

    Args:
        store: the results folder.
        recipes: of its figures.
        not_judged: why no claim is judged, however many runs there are; empty where claims are.
    """
    by_id = {recipe.id: recipe for recipe in recipes}
    findings = {
        figure.figure: _judged(store, figure, by_id[figure.figure], not_judged) for figure in store.figures
    }
    with contextlib.suppress(StoreError):
        documents.write(store, FINDINGS, findings)


def read(store: Store) -> list[FigureResults]:
    """Return the store's figures, with what there is of their runs.

    Raises:
        StoreError: the folder does not say how they are shown.
    """
    content = documents.read(store, PRESENTATION)
    if content is None:
        raise StoreError(
            f"{store.path} does not say how its figures are shown, as those made by an earlier edgewise do not: run "
            "the same command again (edgewise figure or edgewise sweep with --out); finished runs are kept."
        )
    findings: dict[str, Any] = {}
    unreadable = ""
    try:
        findings = documents.read(store, FINDINGS) or {}
    except StoreError as error:
        unreadable = str(error)
    try:
        runs = _runs(store, content["configs"])
        return [
            _figure_from_data(
                figure,
                content["figures"][figure.figure],
                {run_id: runs[run_id] for run_id in store.shown(figure)},
                findings.get(figure.figure),
                unreadable,
            )
            for figure in store.figures
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise documents.damaged(store, PRESENTATION) from error


def names(store: Store, run_ids: Collection[str]) -> dict[str, str]:
    """Return run id → where among the figures these runs are found, as far as the folder says."""
    found = {}
    with contextlib.suppress(StoreError, AttributeError, KeyError, TypeError, ValueError):
        content = documents.read(store, PRESENTATION)
        for figure in store.figures:
            configs = {
                from_dict(content["configs"][run_id]): run_id
                for run_id in figure.run_ids
                if run_id in run_ids
            }
            layout = layouts.from_data(content["figures"][figure.figure]["layout"], configs, {})
            for config, run_id in configs.items():
                where = layouts.description(layout, config)
                found[run_id] = one_line(f"{figure.figure}: {where}, seed {config.seed}")
    return found


def _called(store: Store, function: Callable[[], Any]) -> Any:
    """Return what code of a recipe returns; what a recipe of one's own raises says where."""
    return function() if store.recipe_file is None else plugins.called(store.recipe_file, function)


def _figure_to_data(store: Store, recipe: Recipe, configs: Sequence[RunConfig]) -> dict[str, Any]:
    layout = _called(store, lambda: layouts.to_data(recipe.layout, configs))
    return {"title": recipe.title, "finding": recipe.finding, "layout": layout}


def _judged(store: Store, figure: FigureRuns, recipe: Recipe, not_judged: str) -> dict[str, Any]:
    """Return the claims on a figure's runs, or why there are none, and the values that no outcome holds."""
    wanted = store.shown(figure)
    there = [run_id for run_id in wanted if store.runs.has(run_id)]
    judgeable = not not_judged and (there == wanted or recipe.claims is no_claims)
    value = layouts.computed(recipe.layout)
    judged: dict[str, Any] = {"runs": there, "claims": None, "values": {}, "error": not_judged or None}
    if not judgeable and value is None:
        return judged
    try:
        runs = [store.runs.load(run_id) for run_id in there]
        if value is not None:
            judged["values"] = _called(
                store, lambda: {run_id: float(value(run)) for run_id, run in zip(there, runs, strict=True)}
            )
        if judgeable:
            judged["claims"] = _called(store, lambda: list(map(_claim_to_data, recipe.claims(runs))))
    except Exception as error:  # whatever the recipe raises, or a run that is damaged: said in the report
        named = isinstance(error, RecipeError | StoreError)
        judged["error"] = str(error) if named else f"{type(error).__name__}: {error}"
    return judged


def _figure_from_data(
    figure: FigureRuns,
    data: dict[str, Any],
    runs: dict[str, Run | Absent],
    judged: dict[str, Any] | None,
    unreadable: str,
) -> FigureResults:
    values = judged["values"] if judged else {}
    layout = layouts.from_data(data["layout"], {run.config: i for i, run in runs.items()}, values)
    if layouts.computed(layout) is not None:
        runs = {run_id: run if run_id in values else _not_valued(run_id, run) for run_id, run in runs.items()}
    for run in runs.values():
        if isinstance(run, Run) and not isinstance(layout, Trajectories):
            layout.value.of(run)  # raises here rather than in a plot, if no outcome has the entry
    return FigureResults(
        id=one_line(figure.figure),
        scale=one_line(figure.scale),
        title=one_line(data["title"]),
        finding=one_line(data["finding"]),
        layout=layout,
        runs=tuple(runs.values()),
        claims=tuple(map(_claim_from_data, (judged and judged["claims"]) or ())),
        note=one_line(_note(judged, runs, unreadable)),
    )


def _runs(store: Store, configs: dict[str, Any]) -> dict[str, Run | Absent]:
    """Return run id → run, or why it is not there, of all that the figures show."""
    failed = store.failures.ids()
    wanted = dict.fromkeys(run_id for figure in store.figures for run_id in store.shown(figure))
    return {run_id: _run(store, run_id, configs, failed) for run_id in wanted}


def _run(store: Store, run_id: str, configs: dict[str, Any], failed: set[str]) -> Run | Absent:
    """Return a run, or why it is not there."""
    reason = store.failures.last_line(run_id) if run_id in failed else "not trained yet"
    broken = run_id in failed
    try:
        if store.runs.has(run_id):
            return store.runs.load(run_id)
        fault = store.runs.fault(run_id)
    except StoreError as error:
        fault = error
    if fault is not None:
        reason, broken = str(fault), True
    return Absent(run_id=run_id, config=from_dict(configs[run_id]), failed=broken, reason=one_line(reason))


def _not_valued(run_id: str, run: Run | Absent) -> Absent:
    """Return a run as one that cannot be shown before the recipe has looked at it."""
    if isinstance(run, Absent):
        return run
    reason = "finished, but its value is not known: run the same command again"
    return Absent(run_id=run_id, config=run.config, failed=False, reason=reason)


def _claim_to_data(claim: Claim) -> dict[str, Any]:
    if not isinstance(claim, Claim):
        raise TypeError(f"claims() must return a list of Claim, got {claim!r} in it")
    texts = {name: str(getattr(claim, name)) for name in ("text", "expected", "measured")}
    return texts | {"holds": bool(claim.holds)}


def _claim_from_data(data: dict[str, Any]) -> Claim:
    texts = {name: one_line(data[name]) for name in ("text", "expected", "measured")}
    return Claim(**texts, holds=data["holds"] is True)


def _note(judged: dict[str, Any] | None, runs: dict[str, Run | Absent], unreadable: str) -> str:
    missing = sum(isinstance(run, Absent) for run in runs.values())
    if judged and judged["claims"] is not None:
        known = len(set(judged["runs"]) & set(runs))
        if not judged["claims"] or (known == len(runs) and not missing):
            return ""
        if known == len(runs):
            return f"judged when all {known} runs were there; {missing} are missing now."
        return f"judged on {known} of {len(runs)} runs: run the same command again to judge on all."
    if judged and judged["error"]:
        return f"not judged: {judged['error']}"
    if missing:
        return f"not judged: {missing} of {len(runs)} runs missing."
    return f"not judged: {unreadable or 'run the same command again.'}"
