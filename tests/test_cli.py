"""The command line.

Oracle: a written-down list of commands and flags; what main() prints and exits with. Cannot see: an installed
wheel; smoke.py does.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

import edgewise as ew
from edgewise import cli
from edgewise.lab import plugins, training
from edgewise.lab.data import sources
from edgewise.lab.engines import ENGINES
from edgewise.lab.recipes import PAPER, RECIPES, SCALES, Quantity, Trajectories
from edgewise.lab.recipes.recipe import LOSS, Claim, parameterization_label, warmup_label
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from lab_cases import TINY, made, runs_of, save, stored, story, tiny

TESTS = Path(__file__).parent


@pytest.fixture
def edgewise(monkeypatch, capsys, tmp_path):
    """Run a command line in an empty folder; returns exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["edgewise", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as leaving:
            status = leaving.code
        printed = capsys.readouterr()
        if isinstance(status, str):  # what python itself does with it
            return 1, printed.out, printed.err + status + "\n"
        return status, printed.out, printed.err

    return run


SNAPSHOT = {
    (): {"--help", "--version"},
    ("demo",): {"--help", "--out", "--workers"},
    ("list",): {"--help", "--runs"},
    ("inspect",): {"--help", "--max-updates", "--seed", "--json", "--page"},
    ("figure",): {
        "--help",
        "--scale",
        "--out",
        "--engine",
        "--slurm",
        "--workers",
        "--stop-after",
        "--one-of-each",
        "--plan",
    },
    ("sweep",): {
        "--help",
        "--out",
        "--engine",
        "--slurm",
        "--workers",
        "--stop-after",
        "--one-of-each",
        "--plan",
    },
    ("status",): {"--help"},
    ("report",): {"--help"},
    ("prepare",): {"--help", "--source"},
}


@pytest.mark.parametrize("command", SNAPSHOT, ids=" ".join)
def test_flags_are_those_written_down(edgewise, command):
    status, out, _ = edgewise(*command, "--help")
    assert status == 0
    assert set(re.findall(r"--[a-z][a-z-]*", out)) == SNAPSHOT[command]


def test_none_is_no_number_of_workers(edgewise):
    assert edgewise("figure", "fig1", "--plan", "--workers", "None")[0] == 2


@pytest.mark.parametrize("command", [c for c in SNAPSHOT if c], ids=" ".join)
@pytest.mark.parametrize("width", ["60", "120"])
def test_the_help_of_a_command_has_examples_and_readable_arguments(edgewise, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", width)
    out = edgewise(*command, "--help")[1]
    (name,) = command
    assert re.search(rf"Examples:\n +edgewise {name}", out)
    assert not re.search(r"None|STR|INT|PATH", out)
    boxes = [line for line in out.splitlines()[1:] if "edgewise" not in line or line[0] != " "]
    assert max(map(len, boxes)) <= int(width)


def test_choices_stand_in_the_help(edgewise):
    out = edgewise("figure", "--help")[1]
    assert f"--scale {{{','.join(SCALES)}}}" in out
    assert f"--engine {{{','.join(ENGINES)}}}" in out
    assert "(default: all cores)" in out


def test_no_command_shows_the_help_as_an_error(edgewise):
    status, out, err = edgewise()
    assert (status, out) == (2, "")
    assert "inspect" in err


def test_the_versions_are_one_line(edgewise):
    status, out, _ = edgewise("--version")
    assert status == 0
    python = sys.version.split()[0]
    assert out == f"edgewise {ew.__version__}, torch {torch.__version__}, Python {python}\n"


def test_python_m_edgewise_is_the_command_line_and_names_the_missing_extra():
    command = [sys.executable, "-m", "edgewise", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("edgewise ")
    without = (
        "import sys, runpy; sys.modules['tyro'] = None; runpy.run_module('edgewise', run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "pip install 'edgewise[lab]'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_the_list_has_every_figure_in_its_order_with_what_is_trained(edgewise, tmp_path, monkeypatch):
    runs = story("fig4")
    stored(tmp_path / "runs" / "all-demo", {"fig1": story("fig1"), "fig4": runs})
    shutil.rmtree(tmp_path / "runs" / "all-demo" / "runs" / runs[0].config.run_id)
    (tmp_path / "runs" / "foreign").mkdir()
    status, out, err = edgewise("list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert re.fullmatch(r"fig1 +6 min +demo +Two ways to start: flat and sharp", lines[0])
    assert re.fullmatch(rf"fig4 +6 min +demo {len(runs) - 1}/{len(runs)} +The phase.*", lines[3])
    assert re.fullmatch(r"fig2 +2 min +- +Why Adam needs warmup", lines[1])
    assert "fig1          6 min    - " in edgewise("list", "--runs", "elsewhere")[1]


def test_commands_are_those_written_down(edgewise):
    out = edgewise("--help")[1]
    listed = re.search(r"\{([a-z,]+)\}", out)
    assert listed is not None
    assert listed.group(1).split(",") == [command[0] for command in SNAPSHOT if command]


def test_the_help_names_the_figures_and_the_data_sets(edgewise):
    words = " ".join(edgewise("figure", "--help")[1].split())
    assert "fig1 to fig31, table1, all of these, edge-warmup, warmups or when-warmup" in words
    assert next(iter(PAPER)) == "fig1"
    assert list(PAPER)[-2:] == ["fig31", "table1"]
    words = " ".join(edgewise("prepare", "--help")[1].split())
    assert all(name in words for name in sources.SOURCES)


def test_report_rebuilds_and_prints_the_findings(edgewise, tmp_path, monkeypatch):
    stored(tmp_path / "results", {"fig1": story("fig1"), "fig4": story("fig4")})
    monkeypatch.setattr(training, "train", lambda *a: pytest.fail("the report trains"))
    status, out, err = edgewise("report", "results")
    assert (status, err) == (0, "")
    assert "Findings: expected" in out
    assert out.count("✓") == 5 + 7
    assert "does not hold" not in out
    assert "report: results/report.html" in out
    assert (tmp_path / "results" / "report.html").stat().st_size > 500_000  # with plotly, packed
    assert (tmp_path / "results" / "figures" / "fig4.pdf").exists()


FOREIGN = "exists and holds no edgewise results: choose another folder with --out."
OTHER = (
    "other holds other results (fig2 at scale demo with 2 runs; wanted fig1 at scale embedded with 6 runs): "
)
NONE = "holds no results (no sweep.json): make some with edgewise demo or edgewise figure."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("figure", "fig44"), "unknown figure 'fig44'; known: all, edge-warmup, fig1, "),
        (("figure", "al"), "table1, warmups, when-warmup. Did you mean 'all'?"),
        (("figure", "fig1", "--scale", "dem"), "unknown scale 'dem'; known: demo, desk, embedded, paper. Did you "),
        (("figure", "fig4", "--scale", "paper"), "data set 'wikitext-103' is not in data/wikitext-103: get it with "
         "`edgewise prepare wikitext-103` (about 350 MB there, from huggingface.co), or from files"),
        (("sweep", "nowhere.py"), "nowhere.py does not exist: give the path of a recipe, such as recipe.py."),
        (("status", "nowhere"), f"nowhere {NONE}"),
        (("prepare", "cifar"), "unknown data set 'cifar'; known: cifar10, cifar100, tiny-imagenet, wikitext-103"),
        (("prepare", "cifar10", "--source", "foreign"), "foreign holds no data set: expected train*.parquet"),
        (("figure", "fig1", "--engine", "loca"), "unknown engine 'loca'; known: local, ray, "),
        (("figure", "fig1", "--engine", "slurm", "--slurm", "tim=5"), "unknown setting of --slurm 'tim'; known: "),
        (("sweep", "mine.py", "--slurm", "time=5"), "--slurm time=5 is for engine 'slurm', not for 'local'."),
        (("figure", "fig1", "--workers", "0"), "workers must be 1 or greater, got 0."),
        (("demo", "--workers", "-2"), "workers must be 1 or greater, got -2."),
        (("figure", "fig1", "--out", "foreign"), f"foreign {FOREIGN}"),
        (("demo", "--out", "foreign/note"), f"foreign/note {FOREIGN}"),
        (("demo", "--out", "foreign/note/x"), "cannot write results to foreign/note/x: "),
        (("figure", "fig1", "--out", "other"), OTHER),
        (("figure", "fig1", "--stop-after", "0"), "stop-after must be 1 or greater, got 0."),
        (("figure", "fig1", "--stop-after", "500"), "stop-after must be below 500, the steps of the longest run, got "
         "500: leave it out for whole runs."),
        (("figure", "fig1", "--one-of-each"), "--one-of-each needs --stop-after: claims are held against all runs"),
        (("figure", "fig1", "--stop-after", "5", "--out", "other"), "other holds other results (fig2 at scale demo "),
        (("report", "nowhere"), f"nowhere {NONE}"),
        (("report", "foreign/note"), "foreign/note holds no results (no sweep.json): "),
        (("report", "old"), "old does not say how its figures are shown, as those made by an earlier edgewise do "
         "not: run the same command again (edgewise figure or edgewise sweep with --out)"),
        (("report", "damaged"), "damaged/presentation.json is damaged: run the same command again, which writes it "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_status_one(edgewise, tmp_path, arguments, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "note").write_text("mine")
    stored(tmp_path / "other", {"fig2": story("fig2")})
    stored(tmp_path / "old", {"fig2": story("fig2")})
    (tmp_path / "old" / "presentation.json").unlink()
    stored(tmp_path / "damaged", {"fig2": story("fig2")})
    (tmp_path / "damaged" / "presentation.json").write_text("{")
    before = sorted(p for p in tmp_path.rglob("*") if "figures" not in p.parts)
    status, out, err = edgewise(*arguments)
    assert status == 1
    assert "Traceback" not in out + err
    assert err.startswith("edgewise: ")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(p for p in tmp_path.rglob("*") if "figures" not in p.parts) == before
    assert (tmp_path / "foreign" / "note").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments", [("figure",), ("figur", "fig1"), ("demo", "--worker", "x"), ("demo", "--workers", "x")]
)
def test_a_line_that_cannot_be_parsed_is_exit_status_two(edgewise, arguments):
    status, _, err = edgewise(*arguments)
    assert status == 2
    assert "Traceback" not in err


def test_the_nearest_command_and_option_are_named(edgewise):
    status, out, err = edgewise("figur", "fig1")
    assert (status, out) == (2, "")
    assert err.startswith("edgewise: unknown command 'figur'; known: demo, figure, ")
    assert err.endswith("Did you mean 'figure'?\n")
    assert "--scale" in edgewise("figure", "fig1", "--scal", "paper")[2]


def test_an_interrupt_says_how_to_go_on(edgewise, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.sweep, "run", interrupted)
    monkeypatch.setattr(cli.report, "write_report", interrupted)
    monkeypatch.setattr(cli, "inspect", interrupted)
    stored(tmp_path / "results", {"fig4": story("fig4")})
    (tmp_path / "mine.py").write_text(SETUP)
    kept = "edgewise: interrupted; nothing is lost: finished runs are kept, run the same command again to continue."
    for command, words in (
        (("figure", "fig1"), kept),
        (("report", "results"), kept),
        (("inspect", "mine.py"), "edgewise: interrupted; nothing was changed: run the same command again."),
    ):
        status, _, err = edgewise(*command)
        assert status == 130
        assert err.strip() == words


def test_an_error_inside_a_run_is_told_with_its_traceback_s_file_and_one_before_is_a_line(
    edgewise, monkeypatch, tmp_path
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failing = mock.Mock()
    monkeypatch.setattr(cli.sweep, "run", failing)
    failing.side_effect = ValueError("a shape does not fit")
    status, out, err = edgewise("figure", "fig1")
    assert (status, err) == (1, "edgewise: a shape does not fit\n")
    failing.side_effect = ValueError("a shape does not fit")
    failing.side_effect.add_note(f"in run {TINY.run_id}: {TINY}")
    status, out, err = edgewise("figure", "fig1")
    assert (status, out.strip()) == (1, "")
    first, last = err.splitlines()
    assert first == f"edgewise: run {TINY.run_id} raised ValueError: a shape does not fit"
    assert "Traceback" in Path(last.removeprefix("full traceback: ")).read_text()


def test_an_error_that_nobody_foresaw_is_told_with_the_file_of_its_traceback(edgewise, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stored(tmp_path / "results", {"fig4": story("fig4")})
    monkeypatch.setattr(cli.report, "write_report", mock.Mock(side_effect=KeyError("a panel")))
    status, _, err = edgewise("report", "results")
    assert status == 1
    first, last = err.splitlines()
    assert first == "edgewise: KeyError: 'a panel'"
    assert "KeyError: 'a panel'" in Path(last.removeprefix("full traceback: ")).read_text()


@pytest.mark.parametrize(
    ("arguments", "figures", "scale", "out"),
    [
        (("demo",), ["fig1", "fig6", "fig4"], "demo", "runs/demo"),
        (("figure", "fig2"), ["fig2"], "embedded", "runs/fig2-embedded"),
        (("figure", "fig2", "--scale", "demo", "--out", "x"), ["fig2"], "demo", "x"),
        (("figure", "all", "--scale", "demo"), list(PAPER), "demo", "runs/all-demo"),
    ],
)
def test_what_a_command_runs_and_where(edgewise, monkeypatch, arguments, figures, scale, out):
    asked = {}

    def run(planned, scale, out, **options):
        asked.update(planned=planned, scale=scale, out=out, **options)
        return "the store"

    monkeypatch.setattr(cli.sweep, "run", run)
    monkeypatch.setattr(cli, "_finish", lambda store: asked.update(finished=store))
    assert edgewise(*arguments, "--workers", "3")[0] == 0
    assert list(asked["planned"]) == figures
    assert asked["planned"] == {figure: RECIPES[figure].ladders(scale) for figure in figures}
    assert (asked["scale"], asked["out"], asked["workers"]) == (scale, Path(out), 3)
    assert asked["engine"] == "local"
    assert asked["finished"] == "the store"


CONFIGS = (TINY, tiny(seed=1, measure=("sharpness",)))


def tiny_recipe(configs=CONFIGS):
    return replace(
        RECIPES["fig1"],
        configs=lambda scale: configs,
        claims=lambda runs: [
            Claim(text=f"{len(runs)} runs", expected="2", measured="2", holds=len(runs) == 2)
        ],
        layout=Trajectories(
            quantities=(LOSS, Quantity(column="sharpness", label="λ")),
            row=parameterization_label,
            line=warmup_label,
        ),
    )


@pytest.mark.slow
def test_a_figure_from_end_to_end_and_again(edgewise, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe())
    status, out, err = edgewise("figure", "fig1", "--out", "results", "--workers", 1)
    assert (status, err) == (0, "")
    assert "100%" in out
    assert "✓ 2 runs" in out
    assert "report: results/report.html" in out
    text = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "1 of 1 findings hold" in text
    store = Store.open(tmp_path / "results")
    runs = runs_of(store, store.figures[0])
    expected = training.train(CONFIGS[1])
    assert runs[1].columns["train_loss"].tolist() == [row["train_loss"] for row in expected.rows]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "results" / "runs").rglob("*")}
    assert edgewise("figure", "fig1", "--out", "results")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "results" / "runs").rglob("*")} == before
    assert (tmp_path / "results" / "report.html").read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_the_first_steps_of_a_figure_are_in_a_folder_of_their_own_and_judged_by_no_claim(
    edgewise, tmp_path, monkeypatch
):
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe())
    monkeypatch.setenv("COLUMNS", "300")
    status, out, err = edgewise("figure", "fig1", "--stop-after", 2, "--workers", 1)
    assert (status, err) == (0, "")
    assert "not judged: the runs were stopped after their first steps; claims are of whole runs" in out
    assert "✓" not in out
    for words in (
        "core-seconds a step",
        "peak memory",
        "digits; FCN-1-8 sp; mse; full batch; sgd; sharpness every 1",
    ):
        assert words in out
    store = Store.open(tmp_path / "runs" / "fig1-embedded-first-2")
    assert store.figures[0].scale == "embedded, first 2 steps"
    assert not {config.run_id for config in CONFIGS} & set(store.figures[0].run_ids)
    assert edgewise("figure", "fig1", "--out", store.path)[2].startswith(
        "edgewise: "
    )  # no whole runs in there
    assert "not judged: the runs were stopped" in edgewise("report", store.path)[1]
    one = edgewise("figure", "fig1", "--stop-after", 2, "--one-of-each", "--out", "one")
    assert one[0] == 0
    assert len(Store.open(tmp_path / "one").figures[0].run_ids) == 2  # measured, and not


def test_a_plan_says_what_it_comes_to_and_what_is_missing_and_trains_nothing(edgewise, tmp_path, monkeypatch):
    config = tiny(data={"name": "cifar10", "num_samples": 50}, num_steps=1000)
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe((config, TINY)))
    monkeypatch.setattr(cli.sweep, "run", lambda *a, **k: pytest.fail("something is trained"))
    monkeypatch.setenv("COLUMNS", "300")
    status, out, err = edgewise("figure", "fig1", "--scale", "paper", "--plan", "--workers", 3)
    assert (status, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert f"1 cifar10; FCN-1-8 sp; mse; full batch; sgd; {3072 * 8 + 8 + 90:,} parameters".split() in lines
    assert f"2 digits; FCN-1-8 sp; mse; full batch; sgd; {64 * 8 + 8 + 90:,} parameters".split() in lines
    for numbers in (["1", "1", "1,000"], ["2", "1", "6"], ["all", "2", "1,006"]):
        assert numbers in [line[:3] for line in lines]
    for words in (
        "in 3 processes of one thread here",
        "data: data set 'cifar10' is not in data/cifar10: get it with `edgewise prepare cifar10`",
        "data: digits, needs no download.",
        "in runs/fig1-paper.",
        "NVIDIA A100",
    ):
        assert words in out


def test_a_plan_counts_what_is_left(edgewise, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe())
    figure = FigureRuns(figure="fig1", scale="embedded", run_ids=tuple(config.run_id for config in CONFIGS))
    save(Store.create(tmp_path / "x", [figure]), made(CONFIGS[0]))
    out = edgewise("figure", "fig1", "--out", "x", "--plan")[1]
    assert "finished: 1 runs in x, which are not counted." in out
    assert "sharpness every 1" in out
    assert "mse; full batch; sgd  " not in out
    assert "exists and holds no edgewise results" in edgewise("figure", "fig1", "--out", ".", "--plan")[2]


INTERRUPTED = """
import signal
import sys
from edgewise import cli
from edgewise.lab.recipes import RECIPES
from dataclasses import replace
from lab_cases import tiny

RECIPES["fig1"] = replace(RECIPES["fig1"], configs=lambda scale: (tiny(), tiny(seed=1, num_steps=10**7)))
signal.signal(signal.SIGINT, signal.default_int_handler)  # also below a shell's &
sys.argv = ["edgewise", "figure", "fig1", "--out", sys.argv[1], "--workers", "2"]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waits_for", "kept"), [("presentation.json", []), (f"runs/{TINY.run_id}", [TINY.run_id])]
)
def test_ctrl_c_ends_soon_keeps_what_is_finished_and_says_so(tmp_path, waits_for, kept):
    """The terminal sends SIGINT to the whole group of processes; so does this test, while workers start and later."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, out],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not (out / waits_for).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not kept:
        time.sleep(0.5)  # the workers are importing torch
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (out / waits_for).exists(), err
    assert process.returncode == 130
    assert err.strip().endswith("run the same command again to continue.")
    assert err.strip().count("\n") == 0
    found = [p.name for p in (out / "runs").iterdir()] if (out / "runs").exists() else []
    assert [name for name in found if not name.startswith(".")] == kept


RECIPE = """
from edgewise.lab.configs import *

def configs():
    return [
        RunConfig(
            data=DataConfig(name="digits"),
            model=ModelConfig(name="fcn", depth=2, width=16, parameterization="sp"),
            optimizer=OptimizerConfig(name="sgd", lr=lr),
            num_steps=5,
        )
        for lr in (0.1, 0.2, 0.4)
    ]
"""


@pytest.mark.processes
def test_an_own_recipe_from_end_to_end_and_its_report_again(edgewise, tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    status, out, _ = edgewise("sweep", "mine.py", "--workers", 1)
    assert status == 0
    assert "report: runs/mine/report.html" in out
    page = (tmp_path / "runs/mine/report.html").read_text()
    assert '<section id="mine">' in page
    assert edgewise("report", "runs/mine")[0] == 0
    assert " 3 " in edgewise("status", "runs/mine")[1]


CLAIMING = (
    RECIPE
    + """
import pathlib
from edgewise.lab.recipes import Claim
(pathlib.Path(__file__).parent / "executed").touch()
title = "as it was trained"
def claims(runs):
    return [Claim(text="there are runs", expected="3", measured=str(len(runs)), holds=len(runs) == 3)]
"""
)


@pytest.mark.processes
@pytest.mark.parametrize("becomes", ["edited", "moved", "broken", "an attack"])
def test_a_report_shows_runs_as_they_were_trained_whatever_becomes_of_the_recipe(edgewise, tmp_path, becomes):
    file, page = tmp_path / "mine.py", tmp_path / "runs/mine/report.html"
    file.write_text(CLAIMING)
    assert edgewise("sweep", "mine.py", "--workers", 1)[0] == 0
    before = page.read_text()
    assert "as it was trained" in before
    assert "1 of 1 findings hold" in before
    (tmp_path / "executed").unlink()
    match becomes:
        case "edited":
            file.write_text(CLAIMING.replace("as it was trained", "edited").replace("== 3", "== 4"))
        case "moved":
            file.rename(tmp_path / "elsewhere.py")
        case "broken":
            file.write_text("def")
        case "an attack":
            (tmp_path / "runs/mine/recipe.py").write_text(CLAIMING)  # the folder's own copy is no code either
    assert edgewise("report", "runs/mine")[0] == 0
    assert edgewise("status", "runs/mine")[0] == 0
    assert page.read_text() == before
    assert not (tmp_path / "executed").exists()


@pytest.mark.processes
def test_only_the_recipe_given_again_judges_anew(edgewise, tmp_path):
    file, page = tmp_path / "mine.py", tmp_path / "runs/mine/report.html"
    file.write_text(CLAIMING)
    assert edgewise("sweep", "mine.py", "--workers", 1)[0] == 0
    assert (tmp_path / "runs/mine/recipe.py").read_text() == CLAIMING
    trained = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/mine/runs").rglob("*")}
    edited = CLAIMING.replace("as it was trained", "edited").replace("== 3", "== 4")
    file.write_text(edited)
    assert edgewise("sweep", "mine.py", "--workers", 1)[0] == 0
    assert "<h1>edited" in page.read_text()
    assert "0 of 1 findings hold" in page.read_text()
    assert (tmp_path / "runs/mine/recipe.py").read_text() == edited
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs/mine/runs").rglob("*")} == trained


@pytest.mark.processes
def test_own_data_and_networks_need_no_recipe_to_be_shown(edgewise, tmp_path):
    (tmp_path / "mine.py").write_text(
        RECIPE.replace('"digits"', '"stripes"').replace('"fcn"', '"line"')
        + """
import torch
from edgewise.lab.data import Dataset
from edgewise.lab.plugins import register_data, register_model

@register_data("stripes")
def stripes(config):
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Dataset(train_inputs=x[:48], train_targets=y[:48], test_inputs=x[48:], test_targets=y[48:], num_classes=2)

@register_model("line")
def line(config, dataset):
    return torch.nn.Linear(dataset.num_features, dataset.num_classes)
"""
    )
    assert edgewise("sweep", "mine.py", "--workers", 1)[0] == 0
    before = (tmp_path / "runs/mine/report.html").read_text()
    (tmp_path / "mine.py").unlink()
    plugins.DATA.clear()
    plugins.MODELS.clear()
    assert edgewise("report", "runs/mine")[0] == 0
    assert (tmp_path / "runs/mine/report.html").read_text() == before


@pytest.mark.processes
def test_a_recipe_whose_network_raises_keeps_the_other_runs(edgewise, tmp_path):
    (tmp_path / "mine.py").write_text(
        RECIPE
        + """
from edgewise.lab.plugins import register_model

@register_model("none")
def none(config, dataset):
    raise ArithmeticError("no network")

def configs(whole=configs):
    from dataclasses import replace
    first, second, third = whole()
    return [replace(first, model=replace(first.model, name="none")), second, third]
"""
    )
    status, out, err = edgewise("sweep", "mine.py", "--workers", 1)
    assert status == 1
    assert "report: runs/mine/report.html" in out
    first, where, source, last = err.splitlines()
    assert re.fullmatch(r"edgewise: run \w{12} raised ArithmeticError: no network", first)
    assert re.fullmatch(rf"  {tmp_path / 'mine.py'}:\d+, in none", where)
    assert source == '    raise ArithmeticError("no network")'
    assert last == f"full traceback: {next(Path('runs/mine/failures').iterdir())}"
    line = next(
        line for line in edgewise("status", "runs/mine")[1].splitlines() if "mine " in line and "own" in line
    )
    assert line.split() == ["mine", "own", "3", "2", "0", "1", "0", "0"]
    (failure,) = (tmp_path / "runs/mine/failures").iterdir()
    assert "ArithmeticError: no network" in failure.read_text()
    lines = [line.strip() for line in edgewise("status", "runs/mine")[1].splitlines()]
    at = lines.index("ArithmeticError: no network")
    assert lines[at - 1].startswith("mine: model none · η 0.1 · warmup 1, seed 0")
    assert lines[at + 1] == f"runs/mine/failures/{failure.name}"
    page = (tmp_path / "runs/mine/report.html").read_text()  # of those that were trained
    assert "1 of 3 runs are missing: 1 ended with an error." in page
    assert "<code>ArithmeticError: no network</code>" in page
    assert edgewise("report", "runs/mine")[0] == 0
    assert (tmp_path / "runs/mine/report.html").read_text() == page


def test_damage_is_named_by_every_command_and_mended_by_the_one_that_trains(edgewise, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe())
    assert edgewise("figure", "fig1", "--out", "results", "--engine", "vectorized")[0] == 0
    rows = tmp_path / "results" / "runs" / TINY.run_id / "rows.parquet"
    rows.write_bytes(rows.read_bytes()[:-1])
    note = f"note: results/runs/{TINY.run_id}: rows.parquet changed since it was stored. It "
    status, out, _ = edgewise("status", "results")
    assert status == 0
    assert note + "is left out; the same sweep trains it again." in out
    assert next(line.split() for line in out.splitlines() if "fig1" in line)[2:] == list("210001")
    assert note in edgewise("report", "results")[1]
    status, out, _ = edgewise("figure", "fig1", "--out", "results", "--engine", "vectorized")
    assert status == 0
    assert note + f"lies in results/damaged/{TINY.run_id}-" in out
    assert "✓ 2 runs" in out
    assert "note:" not in edgewise("status", "results")[1]


@pytest.mark.parametrize(("engine", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_library_is_one_sentence_before_anything_is_done(
    edgewise, tmp_path, monkeypatch, engine, library
):
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "mine.py").write_text("raise ArithmeticError('too early')")
    for command in (("figure", "fig1"), ("sweep", "mine.py")):
        status, out, err = edgewise(*command, "--engine", engine)
        assert (status, out) == (1, "")
        assert err.startswith(f"edgewise: engine '{engine}' needs {library}")
        assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["mine.py"]


@pytest.mark.processes
def test_a_recipe_that_raises_in_workers_alone_is_told_with_its_line(edgewise, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    guard = "import multiprocessing\nif multiprocessing.parent_process(): raise ArithmeticError('no port')\n"
    (tmp_path / "mine.py").write_text(guard + RECIPE)
    status, _, err = edgewise("sweep", "mine.py", "--workers", 1)
    assert status == 1
    assert "mine.py, line 2, raised ArithmeticError: no port" in err
    first, where, source, last = err.splitlines()
    assert first.endswith("a recipe must run in both.")
    assert where == f"  {tmp_path / 'mine.py'}:2, in <module>"
    assert source.strip().startswith("if multiprocessing.parent_process()")
    assert "Traceback" in Path(last.removeprefix("full traceback: ")).read_text()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path / "disk"]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


def assert_one_sentence(ran, *parts):
    status, out, err = ran
    assert status == 1
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    for part in ("edgewise: ", *parts):
        assert part in err


def test_a_full_disk_and_a_read_only_one_are_one_sentence_before_the_training(
    edgewise, small_disk, monkeypatch
):
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe())
    monkeypatch.setattr(training, "train", lambda *a: pytest.fail("trains"))
    command = ("figure", "fig1", "--out", small_disk / "results", "--engine", "vectorized")
    said = []
    for pages in (64, 63, 62, 60, 56):  # of 64
        (small_disk / "ballast").write_bytes(b"x" * 4096 * pages)
        said.append(edgewise(*command))
        assert_one_sentence(said[-1])
    assert "No space left on device" in said[0][2]
    assert "Nothing was trained: make room" in said[-1][2]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_one_sentence(edgewise(*command), "Read-only file system")
    assert_one_sentence(edgewise("figure", "fig1", "--out", small_disk / "new"), "Read-only file system")


def test_a_disk_that_is_full_at_the_report_keeps_the_runs(edgewise, small_disk, monkeypatch):
    monkeypatch.setitem(RECIPES, "fig1", tiny_recipe())
    command = ("figure", "fig1", "--out", small_disk / "results", "--engine", "vectorized")
    assert_one_sentence(edgewise(*command), "No space left on device", "Finished runs are kept")
    assert Store.open(small_disk / "results").runs.finished() == {config.run_id for config in CONFIGS}


SETUP = """
import torch
from torch import nn

def loss_fn(model, batch):
    return model(batch).square().mean()

def setup():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, [torch.ones(2, 2)] * 3

def broken():
    return *setup()[:2], lambda model, batch: model(batch) @ batch, setup()[3]

def swapped():
    model, optimizer, loss, batches = setup()
    return optimizer, model, loss, batches
"""


def test_inspect_prints_a_table_and_writes_what_is_asked_for(edgewise, tmp_path):
    (tmp_path / "mine.py").write_text(SETUP)
    status, out, err = edgewise(
        "inspect", "mine.py", "--max-updates", 20, "--json", "mine.json", "--page", "mine.html"
    )
    assert (status, err) == (0, "")
    for words in (
        "Linear with SGD at 0.1",
        "Is the rate stable at this point?",
        "numbers: mine.json",
        "page: mine.html",
    ):
        assert words in out
    assert json.loads((tmp_path / "mine.json").read_text())["lr"] == 0.1
    assert (tmp_path / "mine.html").stat().st_size > 500_000  # with plotly, packed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine.py:absent",), "mine.py has no function absent(): write one."),
        (("nowhere.py",), "nowhere.py does not exist"),
        (("mine.py", "--max-updates", 5), "max_updates must be 20 or greater, got 5"),
        (("mine.py", "--page", "no/where.html"), "no/where.html cannot be written: there is no folder"),
        (("mine.py", "--page", "."), ". cannot be written: it is a folder"),
        (("mine.py:swapped",), "are arguments swapped?"),
    ],
)
def test_bad_setups_are_told_with_exit_status_one(edgewise, tmp_path, arguments, message):
    (tmp_path / "mine.py").write_text(SETUP)
    status, _, err = edgewise("inspect", *arguments)
    assert status == 1
    assert err.startswith("edgewise: ")
    assert message in err
    assert "Traceback" not in err


def test_a_loss_of_the_user_that_raises_shows_its_line(edgewise, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "mine.py").write_text(SETUP)
    status, _, err = edgewise("inspect", "mine.py:broken")
    assert status == 1
    first, *notes, where, source, last = err.splitlines()
    assert first.startswith("edgewise: mine.py:broken raised RuntimeError: ")
    assert "  raised by loss_fn on batch 0 of 1" in notes
    assert where == f"  {tmp_path / 'mine.py'}:13, in <lambda>"
    assert source.startswith("    return *setup()[:2], lambda")
    assert "Traceback" in Path(last.removeprefix("full traceback: ")).read_text()
