"""The report, from made-up runs.

Oracle: the page parsed again with html.parser, and its plots' JSON. Cannot see: what a browser shows.
"""

import base64
import csv
import gzip
import hashlib
import html
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from edgewise.lab import plugins, recipes, report, training
from edgewise.lab.errors import StoreError
from edgewise.lab.recipes import RECIPES, Claim
from edgewise.lab.report import plots, presentation, self_contained
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from hostile import HOSTILE, hostile_store
from lab_cases import diverged, made, remade, save, stored, story

LOADING = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src")}
LOADING |= {("object", "data"), ("video", "src"), ("audio", "src"), ("embed", "src")}


class Page(HTMLParser):
    """What a page loads, links to and says outside its scripts."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.words, self.sections = [], [], [], []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self._in_script |= tag in ("script", "style")
        self.loads += [attrs[name] for loading, name in LOADING if loading == tag and name in attrs]
        if tag == "a":
            self.links.append(attrs["href"])
        if tag == "section":
            self.sections.append(attrs["id"])

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._in_script = False

    def handle_data(self, data):
        if not self._in_script:
            self.words.append(data)


def unpacked(text):
    """Name → content of what is packed in a page."""
    parts = re.findall(r'<script type="application/gzip" id="([^"]*)">([A-Za-z0-9+/=]*)</script>', text)
    return {name: gzip.decompress(base64.b64decode(packed)).decode() for name, packed in parts}


def write(path, runs):
    page = report.write_report(stored(path, runs))
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's report, where every claim holds."""
    path = tmp_path_factory.mktemp("demo")
    return path, write(path, {figure: story(figure) for figure in recipes.DEMO})


def test_the_page_needs_nothing_but_itself(demo):
    path, text = demo
    page = Page(text)
    assert page.loads == []
    assert "@import" not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"url\(['\"]?http", re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    assert unpacked(text)["plotly"] == self_contained.PLOTLY.read_text(encoding="utf-8")
    assert len(text.encode()) < 800_000  # of which plotly is most
    assert page.links
    assert all(link[1:] in page.sections if link[0] == "#" else (path / link).exists() for link in page.links)


def test_every_figure_is_a_section_with_its_claims(demo):
    _, text = demo
    page = Page(text)
    words = " ".join(page.words)
    assert page.sections == [*recipes.DEMO, "files"]
    count = 0
    for figure in recipes.DEMO:
        assert RECIPES[figure].finding in words
        for claim in RECIPES[figure].claims(story(figure)):
            count += 1
            for part in (claim.text, claim.expected, claim.measured):
                assert f">{html.escape(part)}</td>" in text
    assert f"{count} of {count} findings hold in these runs." in words
    assert text.count('<tr class="holds">') == count
    assert "$" not in "".join(page.words)  # no place of the template is left empty


def test_the_claims_are_a_markdown_table_too(tmp_path):
    runs = story("fig2")
    write(tmp_path, {"fig2": [remade(runs[0], {"preconditioned_sharpness": 1.0}), runs[1]]})
    lines = (tmp_path / "claims.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["", "---", "**fig2**", "✗", "✓"]
    claims = RECIPES["fig2"].claims(runs)
    assert lines[4] == f"| ✓ | {claims[1].text} | {claims[1].expected} | {claims[1].measured} |"


def test_the_boundaries_are_data_too(tmp_path):
    write(tmp_path, {"fig3": story("fig3"), "fig5": story("fig5"), "fig1": story("fig1")})
    with (tmp_path / "boundaries.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["figure"] for row in rows} == {"fig3"}
    assert len(rows) == 4 * 2
    assert {(row["warmup"], float(row["boundary"])) for row in rows} == {("1", 8.0), ("40", 32.0)}
    assert {(float(row["best rate"]), row["value"], row["rate unit"]) for row in rows} == {
        (4.0, "best test accuracy", "1/sharpness")
    }
    assert sorted({float(row["best value"]) for row in rows}) == pytest.approx([0.9, 0.905])


OWN = """
from edgewise.lab.configs import *
title, finding = "How long a warmup <here>?", "A small try."
def configs():
    return [
        RunConfig(
            data=DataConfig(name="digits"),
            model=ModelConfig(name="fcn", depth=1, width=8, parameterization="sp"),
            optimizer=OptimizerConfig(name="sgd", lr=lr),
            warmup=WarmupConfig(steps=steps),
            loss="mse",
            num_steps=6,
        )
        for steps in (1, 3)
        for lr in (0.001, 0.01, 0.1)
    ]
"""


@pytest.fixture
def own_sweep(tmp_path):
    """A folder of a recipe of one's own, of which the largest rate diverges without warmup."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    recipe = recipes.own.load(file)
    configs = recipe.configs(recipes.own.SCALE)
    ids = tuple(config.run_id for config in configs)
    shown = FigureRuns(figure="mine", scale=recipes.own.SCALE, run_ids=ids)
    store = Store.create(tmp_path / "out", [shown], file)
    presentation.write(store, [recipe], configs)
    for config in configs:
        run = made(config, test_loss=0.2 + config.optimizer.lr)
        save(store, diverged(run) if (config.optimizer.lr, config.warmup.steps) == (0.1, 1) else run)
    presentation.judge(store, [recipe])
    return store


def test_a_sweep_of_one_s_own_has_its_own_page(own_sweep):
    page = Page(report.write_report(own_sweep).read_text(encoding="utf-8"))
    words = " ".join(" ".join(page.words).split())
    assert "edgewise sweep How long a warmup <here>? A small try. 6 of 6 runs are finished." in words
    for of_the_paper in ("paper", "Kalra", "findings hold", "scale own", "all runs"):
        assert of_the_paper not in words
    assert {"./", "recipe.py", "boundaries.csv", "runs/", "figures/mine.csv"} <= set(page.links)
    assert "claims.md" not in page.links
    assert not (own_sweep.path / "claims.md").exists()
    assert "1 0.001 0.20 0.01" in words
    assert "3 0.001 0.20 0.1, the highest tried: none failed" in words


def test_the_findings_of_a_sweep_of_one_s_own_are_a_markdown_table_if_there_are_any(own_sweep):
    (figure,) = presentation.read(own_sweep)
    claimed = replace(
        figure, claims=(Claim(text="a small rate trains", expected="yes", measured="yes", holds=True),)
    )
    assert "claims.md" in Page(report.write_report(own_sweep, [claimed]).read_text(encoding="utf-8")).links
    assert "a small rate trains" in (own_sweep.path / "claims.md").read_text(encoding="utf-8")
    left = Page(report.write_report(own_sweep).read_text(encoding="utf-8"))  # that table is not of these runs
    assert "claims.md" not in left.links


def test_the_numbers_behind_each_figure_are_a_csv_file(tmp_path):
    runs = {figure: story(figure) for figure in ("fig1", "fig4", "table1")}
    write(tmp_path, runs)
    tables = {}
    for figure in runs:
        with (tmp_path / "figures" / f"{figure}.csv").open(encoding="utf-8", newline="") as file:
            tables[figure] = list(csv.DictReader(file))
    assert len(tables["fig1"]) == sum(len(run.columns["step"]) for run in runs["fig1"])
    first, run = tables["fig1"][0], runs["fig1"][0]
    assert (first["run"], float(first["sharpness"])) == (run.config.run_id, run.columns["sharpness"][0])
    assert tables["fig1"][1]["sharpness"] == ""  # measured every fifth step
    assert [float(row["test loss"]) for row in tables["fig4"]] == [
        r.outcome["test_loss"] for r in runs["fig4"]
    ]
    assert {row["state"] for row in tables["fig4"]} == {"trained", "failed"}
    assert len(tables["table1"]) == len(runs["table1"])


@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_text_of_a_folder_is_a_formula_of_a_spreadsheet(tmp_path, monkeypatch):
    layout = replace(RECIPES["fig4"].layout, panel=lambda config: "=cmd|' /C calc'!A0")
    monkeypatch.setitem(RECIPES, "fig4", replace(RECIPES["fig4"], layout=layout, claims=lambda runs: []))
    write(tmp_path, {"fig4": story("fig4")[:18]})
    for name in ("boundaries.csv", "figures/fig4.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as file:
            assert {row["panel"] for row in csv.DictReader(file)} == {"'=cmd|' /C calc'!A0"}


def test_the_contents_list_every_figure_with_its_verdicts(tmp_path):
    spoiled = [remade(run, {"preconditioned_sharpness": 1.0}) for run in story("fig2")]
    text = write(tmp_path, {"fig2": spoiled, "table1": story("table1")})
    assert re.findall(r'<li><a href="#(\w+)">.*?<span class="verdict (\w+)">(.*?)</span>', text) == [
        ("fig2", "fails", "0 of 2 hold"),
        ("table1", "holds", "4 of 4 hold"),
    ]


def test_figures_say_what_is_to_be_seen(demo):
    _, text = demo
    said = [attrs["aria-label"] for tag, attrs in Elements(text).found if attrs.get("class") == "plot"]
    assert any("warmup 1: failure boundary" in its for its in said)
    assert any("6 runs, 1 diverged" in its for its in said)


def test_the_bundle_is_plotly_s_own():
    """Its checksum as npm has it; it draws what the installed package writes only while their major version agrees."""
    content = self_contained.PLOTLY.read_bytes()
    assert (
        hashlib.sha256(content).hexdigest()
        == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    )
    major = re.search(r"plotly\.js v(\d+)", get_plotlyjs()[:300])[1]
    assert f"v{major}." in content[:300].decode()


def test_stars_and_hatches_are_in_the_legend(tmp_path):
    runs = story("fig4")
    runs[0] = diverged(runs[0])
    data, _ = new_plot(write(tmp_path, {"fig4": runs}), "fig4")
    names = [trace["name"] for trace in data if trace.get("name")]
    assert names[0] == "best of its row"
    assert {"failed: learned nothing", "× diverged"} <= set(names)
    shapes = {trace["fillpattern"]["shape"] for trace in data if "fillpattern" in trace}
    assert shapes == {"/", "x"}
    stars = [
        trace for trace in data if trace.get("marker", {}).get("symbol") == "star" and "name" not in trace
    ]
    assert [len(trace["y"]) for trace in stars] == [3, 3]


def test_claims_that_do_not_hold_are_counted_and_marked(tmp_path):
    text = write(
        tmp_path, {"fig2": [remade(run, {"preconditioned_sharpness": 1.0}) for run in story("fig2")]}
    )
    assert "0 of 2 findings hold in these runs." in text
    assert text.count('<tr class="fails">') == 2
    assert text.count("<td>does not hold</td>") == 2


def test_what_a_recipe_says_is_text_not_html(tmp_path, monkeypatch):
    claim = Claim(
        text='<b>a</b> < 1 & "b"', expected="<script>x</script>", measured="$plotly 'c' >", holds=True
    )
    nasty = replace(RECIPES["fig2"], title='<i>"t"</i>', finding="f < g & h", claims=lambda runs: [claim])
    monkeypatch.setitem(RECIPES, "fig2", nasty)
    text = write(tmp_path / "<u>&", {"fig2": story("fig2")})
    words = "".join(Page(text).words)
    for part in (claim.text, claim.expected, claim.measured, nasty.title, nasty.finding, "edgewise · <u>&"):
        assert part in words
    assert claim.expected not in text


class Elements(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_a_folder_says_is_text(tmp_path, monkeypatch, text):
    monkeypatch.setattr(plots, "save_figures", lambda *args: [])
    page = report.write_report(hostile_store(tmp_path, text)).read_text(encoding="utf-8")
    found = Elements(page).found
    assert {tag for tag, _ in found} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "script",
            "body",
            "header",
            "section",
            "details",
            "summary",
        ),
        *("h3", "main", "nav", "span"),
        *("h1", "h2", "p", "strong", "small", "code", "div", "label", "select", "option", "ul", "li", "a"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    }
    assert not [name for _, attrs in found for name in attrs if name.startswith("on")]
    scripts = [attrs for tag, attrs in found if tag == "script"]
    assert [attrs for attrs in scripts if attrs.get("type") != "application/gzip"] == [{}]
    ids = [attrs["id"] for _, attrs in found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[\w-]+", name) for name in ids)
    for name, content in unpacked(page).items():
        assert name == "plotly" or json.loads(content)
    assert html.escape(one_line(text)) in page


@pytest.mark.filterwarnings("ignore:constrained_layout not applied", "ignore:Glyph")
def test_pictures_of_whatever_a_folder_says_stay_in_it(tmp_path):
    report.write_report(hostile_store(tmp_path / "out", "".join(HOSTILE) + "/../../x$^$"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 9


def test_a_claim_is_no_html_in_markdown_either(tmp_path, monkeypatch):
    claim = Claim(text="<script>a</script>|b", expected="1 < 2", measured="<!-- x", holds=True)
    monkeypatch.setitem(RECIPES, "fig2", replace(RECIPES["fig2"], claims=lambda runs: [claim]))
    write(tmp_path, {"fig2": story("fig2")})
    line = (tmp_path / "claims.md").read_text(encoding="utf-8").splitlines()[-1]
    assert line == r"| ✓ | &lt;script>a&lt;/script>\|b | 1 < 2 | &lt;!-- x |"


def new_plot(text, figure):
    """The data and the layout that plotly is given for a figure."""
    content = json.loads(unpacked(text)[f"content-plot-{figure}"])
    return content["data"], content["layout"]


def test_the_plots_show_the_thresholds(demo):
    _, text = demo
    data, layout = new_plot(text, "fig1")
    dashed = [t for t in data if t.get("line", {}).get("dash") == "dash" and t["x"] != [None]]
    assert len(dashed) == 6  # 2/η_t of each run
    levels = [s for s in layout["shapes"] if s["line"].get("dash") == "dash"]
    assert {(s["y0"], s["y1"]) for s in levels} == {(2.0, 2.0)}
    assert len(levels) == 2


def test_a_diverged_run_sets_no_axis_in_the_page_either(tmp_path):
    wild = [
        diverged(run, after=7, columns={"sharpness": 1e30}) if run.outcome["diverged"] else run
        for run in story("fig1")
    ]
    _, layout = new_plot(write(tmp_path, {"fig1": wild}), "fig1")
    for name, axis in layout.items():
        if name.startswith("yaxis") and axis.get("type") == "log":
            assert axis["range"][1] < 5


def test_the_boundary_and_the_kinds_of_cells_in_the_page(tmp_path):
    edited = story("fig4")
    for i, run in enumerate(edited):
        optimizer, steps = run.config.optimizer, run.config.warmup.steps
        if (optimizer.name, optimizer.lr, steps) == ("adam", 0.001, 1):
            edited[i] = diverged(run)
        if (optimizer.name, optimizer.lr, steps) == ("adam", 0.256, 32):
            edited[i] = remade(run, test_loss=5.0)
    data, layout = new_plot(write(tmp_path, {"fig4": edited}), "fig4")
    trained, failed, gone = [t for t in data if t["type"] == "heatmap"][:3]
    assert failed["text"][1] == ["", "", "", "", "fail", "fail"]
    assert gone["text"][0][0] == "×"
    assert trained["text"][0][:2] == ["", "2.20"]
    assert trained["z"][1][4] is None
    adam = [s["x0"] for s in layout["shapes"][:3]]
    assert adam == [-0.5, 3.5, 4.5]  # none, up to 0.064, up to 0.256


def test_the_report_is_rebuilt_the_same_from_the_store_alone(demo, monkeypatch):
    path, text = demo

    def forbidden(*args, **kwargs):
        raise AssertionError("the report trains")

    monkeypatch.setattr(training, "train", forbidden)
    (path / "report.html").unlink()
    for figure in (path / "figures").iterdir():
        figure.unlink()
    report.write_report(Store.open(path))
    assert (path / "report.html").read_text(encoding="utf-8") == text
    assert len(list((path / "figures").iterdir())) == 9


def test_a_report_executes_no_code_of_a_recipe(demo, monkeypatch):
    """Neither the packages' recipes nor one of one's own."""
    path, text = demo
    for figure in recipes.DEMO:
        monkeypatch.delitem(RECIPES, figure)
    monkeypatch.setattr(plugins, "execute", lambda file: pytest.fail(f"{file} is executed"))
    report.write_report(Store.open(path))
    assert (path / "report.html").read_text(encoding="utf-8") == text


def test_a_write_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    store = stored(tmp_path, {"fig2": story("fig2")})
    page = report.write_report(store)
    page.write_text("old")

    def fail(*args):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StoreError, match=r"cannot write .*fig2\.pdf: killed here"):
        report.write_report(store)
    assert page.read_text() == "old"


@pytest.mark.parametrize("name", ["report.html", "claims.md", "boundaries.csv", "figures/fig4.png"])
def test_a_report_is_not_written_through_a_symlink(tmp_path, name):
    store = stored(tmp_path / "out", {"fig4": story("fig4")})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).symlink_to(elsewhere)
    with pytest.raises(StoreError, match=f"{name} is a symlink"):
        report.write_report(store)
    assert elsewhere.read_text() == "mine"


def test_pictures_are_not_written_through_a_symlink(tmp_path):
    store = stored(tmp_path / "out", {"fig2": story("fig2")})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="figures is a symlink"):
        report.write_report(store)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def gone(store, runs, error=None):
    """Take runs out of the folder, with an error as of a last try."""
    for run in runs:
        shutil.rmtree(store.path / "runs" / run.config.run_id)
        if error:
            trace = f"Traceback (most recent call last):\n  File x\n{error}\nin run {run.config.run_id}: {run.config}\n"
            store.failures.add(run.config.run_id, trace)


def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path):
    runs = {figure: story(figure) for figure in ("fig1", "fig4", "table1")}
    store = stored(tmp_path, runs)
    gone(store, [runs["fig1"][1]], "RuntimeError: <shapes> & sizes")
    gone(store, [runs["fig1"][3]])
    cells = [run for run in runs["fig4"] if run.config.warmup.steps == 32 and run.config.optimizer.lr > 0.01]
    gone(store, cells, "OSError: no room")
    store = Store.open(tmp_path)
    presentation.judge(store, [RECIPES[figure] for figure in runs])
    text = report.write_report(Store.open(tmp_path)).read_text(encoding="utf-8")
    words = " ".join(" ".join(Page(text).words).split())
    failed = runs["fig1"][1].config.run_id
    assert "2 of 6 runs are missing: 1 ended with an error, 1 waiting." in words
    assert (
        f"μP, T_wrm = 64, seed 0: <code>RuntimeError: &lt;shapes&gt; &amp; sizes</code> "
        f'(<a href="failures/{failed}.txt">traceback</a>)' in text
    )
    assert "not trained yet: SP, T_wrm = 1, seed 0" in words
    assert "Findings not judged: 2 of 6 runs missing." in words
    assert f"Findings not judged: {len(cells)} of 36 runs missing." in words
    assert "Not judged, or not on the runs there are now: the findings of fig1, fig4." in words
    assert "4 of 4 findings hold" in words  # table1's, which is complete
    data, _ = new_plot(text, "fig4")
    error = next(t for t in data if t["type"] == "heatmap" and "error" in t["text"][1])
    stars = [t for t in data if t.get("marker", {}).get("symbol") == "star" and "name" not in t]
    assert [len(t["y"]) for t in stars] == [2, 2]  # of three rows: not in those of which runs are missing
    assert error["text"][1] == ["", "", *["error"] * 4]
    lines = (tmp_path / "claims.md").read_text(encoding="utf-8").splitlines()
    assert "| | *not judged: 2 of 6 runs missing.* | | |" in lines
    with (tmp_path / "boundaries.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["panel"] == "Adam"]
    assert [row["boundary"] == "" for row in rows] == [False, True, False]


def test_nothing_there_is_a_report_too(tmp_path):
    runs = {figure: story(figure) for figure in ("fig1", "fig4", "table1")}
    store = stored(tmp_path, runs)
    shutil.rmtree(tmp_path / "runs")
    text = report.write_report(Store.open(store.path)).read_text(encoding="utf-8")
    assert "36 of 36 runs are missing: 36 waiting." in text
    assert "Findings judged when all 36 runs were there; 36 are missing now." in text


def test_a_folder_that_does_not_say_how_it_is_shown_says_what_to_do(tmp_path):
    store = stored(tmp_path, {"fig2": story("fig2")})
    (tmp_path / presentation.PRESENTATION).unlink()
    with pytest.raises(
        StoreError, match=r"by an earlier edgewise do not: run the same command again \(edgewise"
    ):
        report.write_report(store)
    assert not (tmp_path / "report.html").exists()


def test_the_policy_allows_the_two_scripts_of_the_page_and_nothing_else(demo):
    _, text = demo
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text).group(1)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    scripts = [unpacked(text)["plotly"], *re.findall(r"<script>(.*?)</script>", text, flags=re.S)]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert len(scripts) == 2
    assert rules["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert set(rules) == {"default-src", "base-uri", "form-action", "img-src", "style-src", "script-src"}
    assert text.index("Content-Security-Policy") < text.index("<script")
    assert not re.search(r"<[a-z]+[^>]*\son[a-z]+=", re.sub(r"<script.*?</script>", "", text, flags=re.S))


def test_provenance_counts_a_shared_run_once(tmp_path):
    runs = {"fig2": story("fig2"), "fig6": story("fig6")}
    distinct = {run.config.run_id for its in runs.values() for run in its}
    assert len(distinct) < sum(map(len, runs.values()))
    text = write(tmp_path, runs)
    assert f"<td>runs</td><td>{len(distinct)}</td>" in text
    assert f"<td>training time, all processes</td><td>{len(distinct)} s</td>" in text
    for name in ("edgewise", "torch", "python", "started"):
        assert f"<td>{name}</td>" in text


def test_gains_are_points_with_the_rule_beside_them(tmp_path):
    """The numbers of the story: one rate of SGD starts stable, eight do not, and five of these need warmup."""
    text = write(tmp_path, {"when-warmup": story("when-warmup")})
    data, layout = new_plot(text, "when-warmup")
    (its,) = [trace for trace in data if trace.get("name") == "WRN, μP, MSE, SGD"]
    assert its["marker"]["symbol"] == ["circle-open", *["circle"] * 3, *["triangle-up"] * 5]
    assert its["text"][0] == "η 1/λ₀, seed 0<br>gain +0.000"
    assert its["text"][-1] == "η 256/λ₀, seed 0<br>trains with warmup alone"
    assert layout["xaxis"]["type"] == "log"
    row = "<tr><th>WRN, μP, MSE, SGD</th><td>0 of 1</td><td>8 of 8</td><td>5</td><td>1 (η 2/λ₀)</td></tr>"
    assert row in text
    assert (
        "WRN, μP, MSE, SGD: gains at 0 of 1 rates below 1, and at 8 of 8 from 1 on, of which 5 train" in text
    )
    with (tmp_path / "figures" / "when-warmup.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["line"] == "WRN, μP, MSE, SGD"]
    assert [row["gain"] for row in rows[-2:]] == ["inf", "inf"]
    assert [float(row["distance"]) for row in rows] == [2.0**x for x in range(-1, 8)]
