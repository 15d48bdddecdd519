"""The page of an inspection, from plain data.

Ladder: a made-up result, whose numbers and sentences must be on the page, parsed as HTML. Cannot see: beauty.
"""

import base64
import gzip
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from edgewise.lab import terminal
from edgewise.lab.report import inspection
from hostile import SCRIPT
from lab_cases import finding, inspected


class Text(HTMLParser):
    """What a reader sees, and the data beside it."""

    def __init__(self, page):
        super().__init__()
        self.seen, self.data, self._inside = [], {}, ("", {})
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag):
        self._inside = ("", {})

    def handle_data(self, data):
        tag, attrs = self._inside
        if tag == "script" and attrs.get("type") == "application/json":
            self.data[attrs["id"]] = json.loads(data)
        elif attrs.get("type") == "application/gzip" and attrs["id"] != "plotly":
            self.data[attrs["id"]] = json.loads(gzip.decompress(base64.b64decode(data)))
        elif tag not in ("script", "style"):
            self.seen.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.seen).split())


def test_every_line_is_on_the_page():
    read = Text(inspection.page_of(inspected()))
    for line in inspected()["findings"]:
        for key in ("name", "shown", "meaning", "advice"):
            assert line[key] in read.text
    assert "GPT2LMHeadModel with AdamW" in read.text
    assert "124 million parameters" in read.text
    assert read.data["result"] == inspected()


def test_the_cards_answer_first():
    text = Text(inspection.page_of(inspected())).text
    for words in (
        "0.0041 14 × yours",
        "0.02 67 × yours",
        "warmup 66 updates, linear",
        "0.0003 lower than it bears",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr_suggested": None, "lr_largest": None, "warmup_steps": None}, "suggested rate unknown"),
        ({"warmup_steps": 0}, "warmup none from the first update on"),
        ({"lr_largest": 1e-4}, "expected to fail"),
        ({"lr": 3e-3}, "as good as the suggested one"),
        ({"lr": 1e-2}, "higher than is best"),
        (
            {"findings": [finding("warmup", "length", evidence={"is_bound": True})]},
            "warmup ≥ 66 updates, linear",
        ),
        ({"trial": {"path": None, "runs": []}}, "The trial"),
        ({"findings": []}, "your rate 0.0003"),
    ],
)
def test_what_is_not_known_is_said(changed, words):
    assert words in Text(inspection.page_of(inspected(**changed))).text


def test_the_plots_say_in_words_what_is_to_be_seen():
    page = inspection.page_of(inspected())
    assert (
        'aria-label="Learning rates on one axis: yours 0.0003, suggested 0.0041, largest that trains 0.02.'
        in page
    )
    assert len(page.encode()) < 2_000_000


def test_the_plots_hold_the_numbers():
    plotted = Text(inspection.page_of(inspected())).data
    rates = {trace["y"][0]: trace["x"][0] for trace in plotted["content-rates"]["data"]}
    assert rates == {
        "your rate": 3e-4,
        "suggested": 4.1e-3,
        "largest that trains, about": 2e-2,
        "edge of stability here": 5e-4,
        "critical rate, coming update": 0.3,
    }
    curves = {trace["name"]: trace["y"] for trace in plotted["content-trial"]["data"]}
    assert curves["learning rate"] == [1e-4, 2e-4, 4e-4]
    assert curves["loss after a short run"] == [3.5, None]
    assert plotted["content-shares"]["data"][0]["x"] == [0.75, 0.25]


def test_a_page_loads_nothing_and_runs_its_own_scripts_only():
    page = inspection.page_of(inspected())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="', page)


@pytest.mark.parametrize(
    "text", [f"<script>{SCRIPT}</script>", '"><img src=x onerror=1>', "</script><b>", "{{$x}}"]
)
def test_names_are_shown_as_the_text_that_they_are(text):
    changed = inspected(findings=[finding("odd", text, shown=text, meaning=text, advice=text)])
    changed["subject"]["model"] = text
    changed["findings"][0]["evidence"] = {"shares": {text: 1.0}}
    page = inspection.page_of(changed)
    assert page.count("<script") == inspection.page_of(inspected()).count("<script")
    assert "<img" not in page
    assert Text(page).data["result"]["subject"]["model"] == text


def test_the_table_in_the_terminal():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal.inspection(inspected()))
    text = " ".join(console.export_text().split())
    assert "! suggested rate: number of suggested rate" in text
    assert "Advice on suggested rate." in text
    assert "? noise: number of noise" in text
    assert "✓ 1 things are in order modes" in text


def test_the_bar_says_what_comes_now():
    console = Console(width=100, record=True, force_terminal=True, file=io.StringIO())
    with terminal.inspecting(console) as move:
        move(75, 150, "trial")
    assert "trial" in console.export_text()
