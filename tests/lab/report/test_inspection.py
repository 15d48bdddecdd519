"""The page of an inspection, from plain data.

Ladder: a made-up result, whose numbers and sentences must be on the page, parsed as HTML. Cannot see: beauty.
"""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from edgewise.lab import terminal
from edgewise.lab.report import inspection, inspection_plots
from hostile import SCRIPT


def finding(question, name, level="good", **changed):
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


def made_up(**changed):
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
        elif tag not in ("script", "style"):
            self.seen.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.seen).split())


def test_every_line_is_on_the_page():
    read = Text(inspection.page_of(made_up()))
    for line in made_up()["findings"]:
        for key in ("name", "shown", "meaning", "advice"):
            assert line[key] in read.text
    assert "GPT2LMHeadModel with AdamW" in read.text
    assert "124 million parameters" in read.text
    assert read.data["result"] == made_up()


def test_the_cards_answer_first():
    text = Text(inspection.page_of(made_up())).text
    for words in ("0.0041 14 × yours", "0.02 67 × yours", "66 updates", "0.0003 lower than it bears"):
        assert words in text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr_suggested": None, "lr_largest": None, "warmup_steps": None}, "suggested rate unknown"),
        ({"warmup_steps": 0}, "warmup none from the first update on"),
        ({"lr_largest": 1e-4}, "too high: does not train"),
        ({"lr": 3e-3}, "as good as the suggested one"),
        ({"lr": 1e-2}, "higher than is best"),
        ({"findings": [finding("warmup", "length", evidence={"is_bound": True})]}, "warmup ≥ 66 updates"),
        ({"trial": {"path": None, "runs": []}}, "The trial"),
        ({"findings": []}, "your rate 0.0003"),
    ],
)
def test_what_is_not_known_is_said(changed, words):
    assert words in Text(inspection.page_of(made_up(**changed))).text


def test_the_plots_hold_the_numbers():
    plotted = Text(inspection.page_of(made_up())).data
    rates = {trace["y"][0]: trace["x"][0] for trace in plotted["content-rates"]["data"]}
    assert rates == {
        "your rate": 3e-4,
        "suggested": 4.1e-3,
        "largest that trains": 2e-2,
        "edge of stability here": 5e-4,
        "critical rate, coming update": 0.3,
    }
    curves = {trace["name"]: trace["y"] for trace in plotted["content-trial"]["data"]}
    assert curves["learning rate"] == [1e-4, 2e-4, 4e-4]
    assert curves["loss after a short run"] == [3.5, None]
    assert plotted["content-shares"]["data"][0]["x"] == [0.75, 0.25]


def test_a_page_loads_nothing_and_runs_its_own_scripts_only():
    page = inspection.page_of(made_up())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="', page)


@pytest.mark.parametrize(
    "text", [f"<script>{SCRIPT}</script>", '"><img src=x onerror=1>', "</script><b>", "{{$x}}"]
)
def test_names_are_shown_as_the_text_that_they_are(text):
    changed = made_up(findings=[finding("odd", text, shown=text, meaning=text, advice=text)])
    changed["subject"]["model"] = text
    changed["findings"][0]["evidence"] = {"shares": {text: 1.0}}
    page = inspection.page_of(changed)
    assert page.count("<script") == inspection.page_of(made_up()).count("<script")
    assert "<img" not in page
    assert Text(page).data["result"]["subject"]["model"] == text


def test_ticks_are_few():
    assert inspection_plots.ruler(made_up()).layout.xaxis.tickvals[0] < 3e-4
    wide = made_up(lr=1e-9)
    assert len(inspection_plots.ruler(wide).layout.xaxis.tickvals) <= 15


def test_the_table_in_the_terminal():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal.inspection(made_up()))
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
