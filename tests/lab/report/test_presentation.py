"""How figures are shown, as data.

Oracle: the recipes themselves, their labels and claims on the same runs. Cannot see: recipes that people will write.
"""

import shutil
from dataclasses import replace

import pytest

from edgewise.lab.errors import RecipeError, StoreError
from edgewise.lab.recipes import RECIPES, Claim, PhaseDiagrams, Table, Trajectories, own
from edgewise.lab.recipes.recipe import Gains, no_claims
from edgewise.lab.report import layouts, presentation
from edgewise.lab.report.presentation import FINDINGS, PRESENTATION
from edgewise.lab.results import documents
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.phase_diagram import CellValue
from edgewise.lab.results.runs import Absent, Run
from edgewise.lab.results.store import Store
from lab_cases import made, save, stored, story, tiny

FIGURES = ("fig1", "fig5", "fig6", "fig4", "fig20", "fig26", "table1")


def lines_of(layout, config):
    """All that a layout says of a config."""
    match layout:
        case Trajectories():
            return layout.row(config), layout.line(config)
        case PhaseDiagrams():
            return layout.panel(config)
        case Table():
            return layout.row(config), layout.column(config)
        case Gains():
            return layout.panel(config), layout.line(config), layout.tolerance(config)


def numbers_of(layout):
    if isinstance(layout, Trajectories):
        return layout.quantities
    value, columns = layout.value, getattr(layout, "columns", None)
    return value.label, value.lower_is_better, value.digits, value.of_training, columns


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("folder")
    stored(path, {figure: story(figure) for figure in FIGURES})
    return path


def test_what_a_recipe_says_comes_back_from_the_folder(folder, tmp_path):
    gains = stored(tmp_path, {"when-warmup": story("when-warmup")})  # apart: it shares runs with others
    for shown in (*presentation.read(Store.open(folder)), *presentation.read(gains)):
        its, runs = RECIPES[shown.id], story(shown.id)
        assert (shown.title, shown.finding, shown.scale) == (its.title, its.finding, "demo")
        assert [run.config for run in shown.runs] == [run.config for run in runs]
        assert list(shown.claims) == its.claims(runs)
        assert (shown.note, shown.absent) == ("", [])
        assert numbers_of(shown.layout) == numbers_of(its.layout)
        for run in shown.runs:
            assert lines_of(shown.layout, run.config) == lines_of(its.layout, run.config)
            if not isinstance(its.layout, Trajectories):
                expected = pytest.approx(its.layout.value.of(run), rel=0, abs=0, nan_ok=True)
                assert shown.layout.value.of(run) == expected


def judged(path, runs, its):
    """A folder of runs of which some are absent, and what it says after a judgement."""
    store = stored(path, {its.id: [run if isinstance(run, Run) else made(run.config) for run in runs]})
    for run in runs:
        if isinstance(run, Absent):
            shutil.rmtree(store.path / "runs" / run.config.run_id)
            if run.failed:
                store.failures.add(run.config.run_id, f"Traceback\n  in x\n{run.reason}\nin run x: ...\n")
    store = Store.open(path)
    presentation.judge(store, [its])
    (shown,) = presentation.read(Store.open(path))
    return shown


def absent(run, reason=None):
    return Absent(run_id=run.config.run_id, config=run.config, failed=reason is not None, reason=reason or "")


def test_absent_runs_come_with_their_config_and_the_last_line_of_their_traceback(tmp_path):
    runs = story("fig2")
    shown = judged(tmp_path, [absent(runs[0], "ValueError: no"), absent(runs[1])], RECIPES["fig2"])
    assert [(run.config, run.failed, run.reason) for run in shown.absent] == [
        (runs[0].config, True, "ValueError: no"),
        (runs[1].config, False, "not trained yet"),
    ]
    assert shown.note == "not judged: 2 of 2 runs missing."
    assert shown.claims == ()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "rows.parquet changed since it was stored"),
        (lambda file: file.unlink(), "rows.parquet is missing"),
        (
            lambda file: file.rename(file.with_name("x")).parent.joinpath(file.name).symlink_to("x"),
            "is a symlink",
        ),
    ],
)
def test_a_damaged_run_is_absent_and_says_what_is_wrong(tmp_path, damage, why):
    runs = story("fig2")
    damage(stored(tmp_path, {"fig2": runs}).path / "runs" / runs[1].config.run_id / "rows.parquet")
    (shown,) = presentation.read(Store.open(tmp_path))
    (run,) = shown.absent
    assert (run.config, run.failed) == (runs[1].config, True)
    assert why in run.reason
    assert shown.note == "judged when all 2 runs were there; 1 are missing now."


def test_claims_are_judged_on_all_runs_or_not_at_all(tmp_path, monkeypatch):
    """A claim that would hold on those there are, and one that raises on them."""
    runs = story("fig2")
    calls = []

    def claims(its):
        calls.append(len(its))
        return [Claim(text="few", expected="", measured=str(len(its)), holds=True)]

    its = replace(RECIPES["fig2"], claims=claims)
    monkeypatch.setitem(RECIPES, "fig2", its)
    shown = judged(tmp_path / "a", [runs[0], absent(runs[1])], its)
    assert (shown.note, shown.claims) == ("not judged: 1 of 2 runs missing.", ())
    shown = judged(tmp_path / "b", runs, its)
    assert (shown.note, shown.claims[0].measured) == ("", "2")
    assert set(calls) == {2}


def test_a_recipe_that_claims_nothing_has_nothing_to_judge(tmp_path, monkeypatch):
    runs = story("fig2")
    monkeypatch.setitem(RECIPES, "fig2", replace(RECIPES["fig2"], claims=no_claims))
    assert judged(tmp_path, [runs[0], absent(runs[1])], RECIPES["fig2"]).note == ""


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        (lambda runs: 1 / 0, "not judged: ZeroDivisionError: division by zero"),
        (lambda runs: runs[0].outcome["none"], "not judged: KeyError: 'none'"),
        (
            lambda runs: ["it holds"],
            "not judged: TypeError: claims() must return a list of Claim, got 'it holds' in it",
        ),
        (lambda runs: None, "not judged: TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_claims_that_raise_are_said_and_block_nothing(tmp_path, monkeypatch, claims, why):
    monkeypatch.setitem(RECIPES, "fig2", replace(RECIPES["fig2"], claims=claims))
    store = stored(tmp_path, {"fig2": story("fig2")})
    (shown,) = presentation.read(store)
    assert (shown.note, len(shown.finished)) == (why, 2)


def test_a_judgement_on_fewer_runs_than_there_are_is_said_so(tmp_path):
    """As where another machine has brought runs that were beyond the boundary before."""
    runs = story("fig2")
    store = stored(tmp_path, {"fig2": runs})
    store.leave_out([runs[1].config.run_id])
    presentation.judge(store, [RECIPES["fig2"]])
    store.leave_out([])
    (shown,) = presentation.read(Store.open(tmp_path))
    assert shown.note == "judged on 1 of 2 runs: run the same command again to judge on all."
    assert len(shown.claims) == 1


def test_runs_finished_after_the_last_judgement_are_shown_and_said(tmp_path):
    """As after a kill before the end of the sweep."""
    runs = story("fig4")
    store = stored(tmp_path, {"fig4": runs})
    (tmp_path / FINDINGS).unlink()
    (shown,) = presentation.read(store)
    assert shown.note == "not judged: run the same command again."
    assert len(shown.finished) == len(runs)
    diagram = shown.panels.diagrams["Adam"]
    assert diagram.at(0.004, 1) == 2.20  # an entry of the outcome needs no recipe


def with_value(of):
    layout = PhaseDiagrams(panel=lambda config: "all", value=CellValue(label="twice", of=of))
    return replace(RECIPES["fig4"], layout=layout)


def test_values_that_only_the_recipe_computes_are_stored_when_the_sweep_ends(tmp_path, monkeypatch):
    its = with_value(lambda run: 2 * run.outcome["test_loss"])
    monkeypatch.setitem(RECIPES, "fig4", its)
    runs = story("fig4")
    shown = judged(tmp_path, [absent(runs[0]), *runs[1:]], its)
    value = shown.layout.value
    assert [value.of(run) for run in shown.finished] == [2 * run.outcome["test_loss"] for run in runs[1:]]
    save(Store.open(tmp_path), runs[0])
    (later,) = presentation.read(Store.open(tmp_path))
    assert [run.reason for run in later.absent] == [
        "finished, but its value is not known: run the same command again"
    ]
    presentation.judge(Store.open(tmp_path), [its])
    assert presentation.read(Store.open(tmp_path))[0].absent == []


def test_damaged_findings_block_nothing_and_a_damaged_presentation_says_what_to_do(tmp_path):
    store = stored(tmp_path, {"fig2": story("fig2")})
    (tmp_path / FINDINGS).write_text("{")
    (shown,) = presentation.read(store)
    assert shown.note.startswith("not judged: ")
    assert "findings.json is damaged: run the same command again" in shown.note
    (tmp_path / PRESENTATION).write_text("{")
    with pytest.raises(StoreError, match=r"presentation\.json is damaged: run the same command again"):
        presentation.read(store)


def without(content, *path):
    """The content without one entry, or with another value there."""
    *parents, last = path
    for name in parents:
        content = content[name]
    del content[last]


@pytest.mark.parametrize(
    "path",
    [
        ("figures",),
        ("figures", "fig4"),
        ("figures", "fig4", "title"),
        ("figures", "fig4", "layout", "kind"),
        ("figures", "fig4", "layout", "value", "digits"),
        ("figures", "fig4", "layout", "panel", story("fig4")[3].config.run_id),
    ],
)
def test_a_presentation_that_lacks_something_is_damaged(tmp_path, path):
    store = stored(tmp_path, {"fig4": story("fig4")})
    content = documents.read(store, PRESENTATION)
    without(content, *path)
    documents.write(store, PRESENTATION, content)
    with pytest.raises(StoreError, match="is damaged: run the same command again"):
        presentation.read(store)


@pytest.mark.parametrize("entry", [{"digits": 10**9}, {"digits": -1}, {"label": 3}, {"entry": 3}])
def test_a_value_that_nobody_could_have_written_is_refused(entry):
    configs = {tiny(): tiny().run_id}
    data = layouts.to_data(RECIPES["fig4"].layout, list(configs))
    with pytest.raises((TypeError, ValueError, AttributeError)):
        layouts.from_data(data | {"value": data["value"] | entry}, configs, {})


@pytest.mark.parametrize("entry", ["none", "seconds.of", "test_loss.__class__"])
def test_an_entry_that_no_outcome_has_is_damage(tmp_path, entry):
    store = stored(tmp_path, {"fig4": story("fig4")})
    content = documents.read(store, PRESENTATION)
    content["figures"]["fig4"]["layout"]["value"]["entry"] = entry
    documents.write(store, PRESENTATION, content)
    with pytest.raises(StoreError, match="is damaged"):
        presentation.read(store)


def test_a_folder_written_with_fewer_settings_is_read(tmp_path):
    """Labels go by the folder's run ids, so that a config that hashes otherwise today keeps them."""
    runs = story("fig2")
    store = stored(tmp_path, {"fig2": runs})
    (shown,) = presentation.read(store)
    layout = layouts.from_data(
        {
            "kind": "trajectories",
            "quantities": [],
            "row": {"other": "row"},
            "line": {"other": "line"},
        },
        {runs[0].config: "other"},
        {},
    )
    assert (layout.row(runs[0].config), layout.line(runs[0].config)) == ("row", "line")
    assert len(shown.finished) == len(runs)


def test_names_say_where_runs_are_found(folder):
    store = Store.open(folder)
    run, other = story("fig1")[1], story("table1")[-1]
    found = presentation.names(store, [run.config.run_id, other.config.run_id, "no such run"])
    assert found[run.config.run_id] == "fig1: μP, T_wrm = 64, seed 0"
    assert found[other.config.run_id].startswith("table1: RAdam, T_wrm = ")
    assert len(found) == 2


RECIPE = """
from edgewise.lab.configs import *
title = "mine"
def configs():
    model = ModelConfig(name="fcn", depth=1, width=8, parameterization="sp")
    data, optimizer = DataConfig(name="digits"), OptimizerConfig(name="sgd", lr=0.1)
    return [RunConfig(data=data, model=model, optimizer=optimizer, num_steps=3, seed=seed) for seed in range(2)]
"""


def test_a_label_that_raises_says_where_in_the_recipe(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        RECIPE
        + """
from edgewise.lab.recipes import Trajectories
layout = Trajectories(quantities=(), row=lambda config: "a",
                      line=lambda config: {}[config.seed])
"""
    )
    its = own.load(file)
    ids = tuple(config.run_id for config in its.configs("own"))
    store = Store.create(tmp_path / "out", [FigureRuns(figure="mine", scale="own", run_ids=ids)], file)
    with pytest.raises(RecipeError, match=r"mine\.py, line 11, raised KeyError: 0"):
        presentation.write(store, [its], its.configs("own"))
