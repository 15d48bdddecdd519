"""The report, from made-up runs.

Oracle: the page parsed again with html.parser, and its plots' JSON. Cannot see: what a browser shows.
"""

import csv
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgewise.errors import StoreError
from edgewise.lab import recipes, report, training
from edgewise.lab.recipes import RECIPES, Claim
from edgewise.lab.store import Store
from lab_cases import diverged, remade, stored, story

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
    assert "Plotly.newPlot" in text
    assert len(text) > 3_000_000  # plotly is inside
    assert page.links
    assert all((path / link).is_file() for link in page.links)


def test_every_figure_is_a_section_with_its_claims(demo):
    _, text = demo
    page = Page(text)
    words = " ".join(page.words)
    assert page.sections == list(recipes.DEMO)
    count = 0
    for figure in recipes.DEMO:
        assert RECIPES[figure].finding in words
        for claim in RECIPES[figure].claims(story(figure)):
            count += 1
            for part in (claim.text, claim.expected, claim.measured):
                assert f"<td>{html.escape(part)}</td>" in text
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
        (4.0, "test accuracy", "1/sharpness")
    }
    assert sorted({float(row["best value"]) for row in rows}) == pytest.approx([0.9, 0.92])


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


def new_plot(text, figure):
    """The data and the layout that plotly is given for a figure."""
    call = text.index("Plotly.newPlot", text.index(f'<section id="{figure}"'))
    decoder = json.JSONDecoder()
    data, end = decoder.raw_decode(text, text.index("[", text.index(f'"plot-{figure}"', call)))
    layout, _ = decoder.raw_decode(text, text.index("{", end))
    return data, layout


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
    assert gone["text"][0][0] == "diverged"
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
    assert len(list((path / "figures").iterdir())) == 6


def test_a_write_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    store = stored(tmp_path, {"fig2": story("fig2")})
    page = report.write_report(store)
    page.write_text("old")

    def fail(self, target):
        raise OSError("killed here")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        report.write_report(store)
    assert page.read_text() == "old"


def test_a_missing_run_is_an_error_that_says_how_to_go_on(tmp_path):
    store = stored(tmp_path, {"fig2": story("fig2")})
    gone = store.figures[0].run_ids[1]
    (tmp_path / "runs" / gone).rename(tmp_path / "aside")
    with pytest.raises(StoreError, match=f"run {gone} is missing from .*: run the same command again"):
        report.write_report(store)
    assert not (tmp_path / "report.html").exists()


def test_provenance_counts_a_shared_run_once(tmp_path):
    runs = {"fig2": story("fig2"), "fig6": story("fig6")}
    distinct = {run.config.run_id for its in runs.values() for run in its}
    assert len(distinct) < sum(map(len, runs.values()))
    text = write(tmp_path, runs)
    assert f"<td>runs</td><td>{len(distinct)}</td>" in text
    assert f"<td>training time, all processes</td><td>{len(distinct)} s</td>" in text
    for name in ("edgewise", "torch", "python", "started"):
        assert f"<td>{name}</td>" in text


def test_all_claims_are_each_figure_s(tmp_path):
    store = stored(tmp_path, {figure: story(figure) for figure in ("fig4", "fig1")})
    pairs = report.all_claims(store)
    assert [its.id for its, _ in pairs] == ["fig4", "fig1"]
    assert [claim.holds for _, claims in pairs for claim in claims] == [True] * 10
