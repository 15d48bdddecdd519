"""The page of an inspection in a real Chromium, without a network.

Ladder: what the page says of itself through the browser. Cannot see: beauty.
"""

import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from edgewise.lab.report import inspection
from hostile import HOSTILE
from in_browser import BUTTONS, CHROMIUM, OFFERED, UNDER_BUTTONS
from lab_cases import inspected

PLOTS = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open the page of a result; fails if it logs an error or asks for anything but itself."""
    complaints, contexts = [], []

    def opened(result, **options):
        file = tmp_path / "page.html"
        file.write_text(inspection.page_of(result), encoding="utf-8")
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if "://" in asked.url[5:] else None)
        page.goto(file.as_uri())
        deadline = time.monotonic() + 30
        while page.evaluate("document.querySelectorAll('.js-plotly-plot .main-svg').length") < PLOTS:
            assert time.monotonic() < deadline
            page.wait_for_timeout(50)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def test_every_plot_is_drawn(visit):
    page = visit(inspected())
    for name in ("rates", "trial", "shares"):
        box = page.locator(f"#{name} .main-svg").first.bounding_box()
        assert box["width"] > 500
        assert box["height"] > 80
    assert page.locator(".card").count() == 4


@pytest.mark.parametrize(("scheme", "ink"), [("light", "#1a1a1a"), ("dark", "#e8e8e8")])
def test_light_and_dark_follow_the_reader(visit, scheme, ink):
    page = visit(inspected(), color_scheme=scheme)
    assert page.evaluate("document.getElementById('rates').layout.font.color") == ink


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_moderate_or_worse(visit, scheme):
    page = visit(inspected(), color_scheme=scheme, bypass_csp=True)
    found = Axe().run(page).response["violations"]
    assert [(its["id"], its["nodes"][0]["html"]) for its in found if its["impact"] != "minor"] == []


def test_a_phone_scrolls_down_only(visit):
    page = visit(inspected(), viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


APART = """name => {
  const texts = [...document.querySelectorAll(`#${name} text`)].filter(its => its.textContent.trim());
  const edge = document.querySelector(`#${name} .main-svg`).getBoundingClientRect();
  const boxes = texts.map(its => [its.textContent, its.getBoundingClientRect()]);
  const over = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  return boxes.flatMap(([text, box], i) => [
    ...boxes.slice(i + 1).filter(([, other]) => over(box, other)).map(([other]) => `${text} on ${other}`),
    ...(box.left < edge.left || box.right > edge.right ? [`${text} is cut`] : []),
  ]);
}"""


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("lr", [3e-4, 0.1, 0.6])
def test_no_text_of_a_plot_lies_on_another_or_is_cut(visit, width, lr):
    """The rates fill the first row up to the corner; the path has four decades of them."""
    path = {"lr": [1e-4, 1e-2, 0.5], "loss": [5.0, 4.5, 4.0], "diverged": False}
    result = inspected(lr=lr)
    page = visit(
        result | {"trial": result["trial"] | {"path": path}}, viewport={"width": width, "height": 900}
    )
    for name in ("rates", "trial"):
        assert page.evaluate(f"({APART})('{name}')") == []


@pytest.mark.parametrize("width", [1200, 390])
def test_the_buttons_of_a_plot_cover_no_words(visit, width):
    page = visit(inspected(), viewport={"width": width, "height": 900})
    assert page.evaluate(f"{BUTTONS}.length") > 4
    assert page.evaluate(UNDER_BUTTONS) == []


def test_no_button_sends_a_plot_anywhere(visit):
    page = visit(inspected())
    assert set(page.evaluate(BUTTONS)) == OFFERED


@pytest.mark.parametrize("lr", [3e-4, 1e-9])
def test_rates_have_ticks_and_not_too_many(visit, lr):
    page = visit(inspected(lr=lr))
    axes = {"rates": "xaxis", "trial": "xaxis2"}
    for name, axis in axes.items():
        ticks = page.evaluate(f"document.getElementById('{name}')._fullLayout.{axis}.tickvals")
        assert 3 <= len(ticks) <= 15


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_result_says_runs_nothing(visit, text):
    result = inspected()
    result["subject"] = result["subject"] | {"model": text}
    for line in result["findings"]:
        line |= {"shown": text, "meaning": text}
    result["findings"][2]["evidence"] = {"shares": {text: 0.7, "b": 0.3}}
    page = visit(result)
    assert page.evaluate("window.owned") is None
    assert (
        page.evaluate("document.querySelectorAll('img, body svg a, section script:not([type])').length") == 0
    )
