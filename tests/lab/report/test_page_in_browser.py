"""The report in a real Chromium, without a network.

Oracle: what the page says of itself through the browser: sizes, colours, the state of its plots. Cannot see: beauty.
"""

import shutil
import time
from pathlib import Path
from urllib.parse import urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from edgewise.lab import report
from edgewise.lab.report import plots, ticks
from edgewise.lab.results import documents
from edgewise.lab.results.store import Store
from hostile import HOSTILE, SCRIPT, hostile_store
from in_browser import BUTTONS, CHROMIUM, OFFERED, UNDER_BUTTONS
from lab_cases import diverged, stored, story

FIGURES = ("fig1", "fig4", "fig21", "table1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("results")
    return report.write_report(stored(path, {figure: story(figure) for figure in FIGURES})).as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


DRAWN = "document.querySelectorAll('.js-plotly-plot').length === document.querySelectorAll('.plot, .curves').length"


def until(page, condition):
    """Wait for a condition; playwright's own waiting evaluates text in the page, which its policy forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)


@pytest.fixture
def visit(browser, address):
    """Open the report, or another; fails if it logs an error or asks for anything but itself."""
    contexts, complaints = [], []

    def opened(address=address, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if "://" in asked.url[5:] else None)
        page.goto(address)
        until(page, DRAWN)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def curve_of(page, figure):
    """The loss that the plot of the chosen cell shows."""
    return page.evaluate(f"document.getElementById('curves-{figure}').data[0].y")


def test_every_plot_is_drawn(visit):
    page = visit()
    for figure in ("fig1", "fig4", "fig21"):
        box = page.locator(f"#plot-{figure} .main-svg").first.bounding_box()
        assert box["width"] > 600
        assert box["height"] > 200
    assert page.locator("#table1 .scroll table").first.inner_text().count(" ± 0.007 (2)") == 7


def at_cell(page, figure, across, up):
    """The middle of cell so far along the first panel, of its width and height."""
    plot = page.locator(f"#plot-{figure}")
    plot.scroll_into_view_if_needed()
    area = plot.locator(".nsewdrag").first.bounding_box()
    return area["x"] + across * area["width"], area["y"] + (1 - up) * area["height"]


def click(page, figure, place, key):
    """Click a cell, once plotly has seen the pointer over it."""
    page.mouse.move(*at_cell(page, figure, *place))
    over = f"document.getElementById('plot-{figure}')._hoverdata ?? []"
    until(page, f"({over}).some(point => [point.data.meta, ...point.pointNumber].join('-') === '{key}')")
    page.mouse.down()
    page.mouse.up()


def shown_cells(page, figure):
    return [page.locator(f"#{name}-{figure}").input_value() for name in ("cell", "beside")]


def test_pointing_at_cells_changes_nothing_and_clicks_hold_one_and_compare_two(visit):
    page = visit()
    before = shown_cells(page, "fig4")
    assert before == ["0-1-3", ""]  # the best of the first panel
    first, second, third = ((0.55, 0.8), (0.1, 0.5), (0.9, 0.5))
    for place in (first, second, third):
        page.mouse.move(*at_cell(page, "fig4", *place))
        page.wait_for_timeout(100)
    assert shown_cells(page, "fig4") == before
    click(page, "fig4", first, "0-2-3")
    until(page, "document.getElementById('cell-fig4').value === '0-2-3'")
    click(page, "fig4", second, "0-1-0")
    until(page, "document.getElementById('beside-fig4').value === '0-1-0'")
    names = page.evaluate("document.getElementById('curves-fig4').data.map(trace => trace.name)")
    assert names == [
        f"{what}, Adam · η {cell}"
        for cell in ("0.064 · warmup 128", "0.001 · warmup 32")
        for what in ("loss", "rate")
    ]
    page.mouse.move(*at_cell(page, "fig4", *third))
    page.wait_for_timeout(100)
    assert shown_cells(page, "fig4") == ["0-2-3", "0-1-0"]
    click(page, "fig4", second, "0-1-0")  # lets go of it
    until(page, "document.getElementById('beside-fig4').value === ''")
    assert page.locator("#runs-fig4 li").count() == 1
    link = page.locator("#runs-fig4 a").get_attribute("href")
    run = link.split("/")[1]
    assert f"Run {run}: optimizer adam, optimizer.lr 0.064" in page.locator("#runs-fig4").inner_text()
    assert (Path(urlparse(page.url).path).parent / link).is_file()


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((-3, 0), "0.001 0.003 0.01 0.03 0.1 0.3 1"),
        ((-5, -4), "1e-5 2e-5 5e-5 0.0001"),
        ((-6, 2), "1e-6 1e-5 0.0001 0.001 0.01 0.1 1 10 100"),
        ((-12, 5), "1e-12 1e-9 1e-6 0.001 1 1000"),
    ],
)
def test_rates_on_axes_are_written_out_on_the_page_as_in_the_pictures(visit, span, expected):
    page = visit()
    assert page.evaluate(f"logTicks({list(span)}).map(number).join(' ')") == expected
    low, high = (10.0**end for end in span)
    assert " ".join(map(ticks.number, ticks.log_ticks(low, high))) == expected


def test_every_log_axis_has_ticks_that_are_whole_numbers_also_after_a_zoom(visit):
    page = visit()
    texts = "document.getElementById('curves-fig4')._fullLayout.yaxis2.ticktext"
    assert all(float(text) > 0 for text in page.evaluate(texts))
    page.evaluate("Plotly.relayout('curves-fig4', {'yaxis2.range': [-2.2, -2]})")
    until(page, f"{texts}.length > 1")
    assert all(0.006 < float(text) <= 0.01 for text in page.evaluate(texts))


@pytest.mark.parametrize("width", [1200, 390])
def test_the_buttons_of_a_plot_cover_no_words(visit, width):
    page = visit(viewport={"width": width, "height": 900})
    assert page.evaluate(f"{BUTTONS}.length") > 4
    assert page.evaluate(UNDER_BUTTONS) == []


def test_no_button_sends_a_plot_anywhere(visit):
    page = visit()
    assert set(page.evaluate(BUTTONS)) == OFFERED


def test_the_buttons_of_a_plot_are_one_stop(visit):
    page = visit()
    stops = (
        "[...document.querySelectorAll('#plot-fig4 .modebar-btn')].filter(button => button.tabIndex === 0)"
    )
    assert page.evaluate("document.querySelectorAll('#plot-fig4 .modebar-btn').length") > 3
    assert page.evaluate(f"{stops}.length") == 1
    page.evaluate(f"{stops}[0].focus()")
    before = page.evaluate("document.activeElement.ariaLabel")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel") not in (before, None)


def test_the_keyboard_reaches_every_cell(visit):
    page = visit()
    page.locator("#cell-fig21").focus()
    page.keyboard.press("Home")
    values = {page.locator("#cell-fig21").input_value()}
    options = page.locator("#cell-fig21 option").count()
    for _ in range(options - 1):
        page.keyboard.press("ArrowDown")
        values.add(page.locator("#cell-fig21").input_value())
    assert len(values) == options
    assert len(curve_of(page, "fig21")) >= 2
    page.keyboard.press("Tab")  # and out of it again
    assert page.evaluate("document.activeElement.id") != "cell-fig21"


@pytest.mark.parametrize(
    ("scheme", "ink", "paper"), [("light", "#1a1a1a", "255, 255, 255"), ("dark", "#e8e8e8", "23, 25, 28")]
)
def test_light_and_dark_follow_the_reader(visit, scheme, ink, paper):
    page = visit(color_scheme=scheme)
    assert paper in page.evaluate("getComputedStyle(document.body).backgroundColor")
    for name in ("plot-fig1", "plot-fig4", "curves-fig4"):
        assert page.evaluate(f"document.getElementById('{name}').layout.font.color") == ink


def test_a_change_of_the_scheme_recolours_the_plots(visit):
    page = visit(color_scheme="light")
    page.emulate_media(color_scheme="dark")
    until(page, "document.getElementById('plot-fig1').layout.font.color === '#e8e8e8'")


def test_a_phone_scrolls_down_only(visit):
    page = visit(viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for verdict in page.locator("tr.holds td:first-child").all():
        box = verdict.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.locator(".hint").first.is_visible()
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")
    assert size >= 12


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Reports of folders that want to run a script in the reader's browser."""
    addresses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figures", lambda *args: [])  # no part of the page
        for text in HOSTILE:
            store = hostile_store(tmp_path_factory.mktemp("hostile"), text)
            addresses.append(report.write_report(store).as_uri())
    return addresses


@pytest.mark.parametrize("which", range(len(HOSTILE)))
def test_what_a_folder_says_runs_nothing_and_the_page_still_works(visit, hostile, which):
    page = visit(hostile[which])
    name = page.locator("section").nth(1).get_attribute("id")
    plot = page.locator(f"#plot-{name}")
    plot.scroll_into_view_if_needed()
    area = plot.locator(".nsewdrag").first.bounding_box()
    for share in (0.2, 0.5, 0.8):
        page.mouse.click(area["x"] + share * area["width"], area["y"] + share * area["height"])
    select = page.locator(f"#cell-{name}")
    select.select_option(index=2)
    assert len(curve_of(page, name)) >= 2
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot .main-svg').length") >= 3
    assert page.evaluate("window.owned") is None
    assert (
        page.evaluate("document.querySelectorAll('img, body svg a, section script:not([type])').length") == 0
    )
    shown = page.evaluate("document.body.innerText")
    assert documents.one_line(HOSTILE[which]).split()[0] in shown  # shown as the text that it is


def test_a_script_that_gets_into_the_page_is_not_run(browser, address, tmp_path):
    """The policy, were a text not escaped."""
    with open(address.removeprefix("file://"), encoding="utf-8") as file:
        text = file.read()
    spoiled_page = tmp_path / "page.html"
    spoiled_page.write_text(
        text.replace("<body>", f'<body><script>{SCRIPT}</script><img src=x onerror="{SCRIPT}">', 1)
    )
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(spoiled_page.as_uri())
    until(page, DRAWN)
    assert page.evaluate("window.owned") is None
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_moderate_or_worse(browser, address, scheme):
    """Axe-core's rules, contrast among them; its script is let in past the page's policy."""
    context = browser.new_context(offline=True, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(address)
    until(page, DRAWN)
    found = Axe().run(page).response["violations"]
    context.close()
    assert [(its["id"], its["nodes"][0]["html"]) for its in found if its["impact"] != "minor"] == []


def test_a_cell_without_a_run_says_why(visit, tmp_path):
    store = stored(tmp_path, {"fig4": story("fig4")})
    failed, waiting = store.figures[0].run_ids[:2]
    for run_id in (failed, waiting):
        shutil.rmtree(tmp_path / "runs" / run_id)
    store.failures.add(failed, "Traceback\nValueError: no room")
    page = visit(report.write_report(Store.open(tmp_path)).as_uri())
    said = []
    for key in ("0-0-0", "0-0-1"):
        page.locator("#cell-fig4").select_option(key)
        said.append(page.locator("#runs-fig4").inner_text())
        assert page.evaluate("document.getElementById('curves-fig4').data.length") == 0
    assert "error: ValueError: no room" in said[0]
    assert page.locator("#runs-fig4 a").count() == 0
    assert f"waiting. Run {waiting}" in said[1]


def test_a_diverged_cell_does_not_set_the_axis_of_the_one_beside_it(visit, tmp_path):
    runs = story("fig4")
    runs[0] = diverged(runs[0])  # up to a loss of 1e9
    page = visit(report.write_report(stored(tmp_path, {"fig4": runs})).as_uri())
    page.locator("#cell-fig4").select_option("0-0-1")
    page.locator("#beside-fig4").select_option("0-0-0")
    assert page.evaluate("document.getElementById('curves-fig4')._fullLayout.yaxis.range[1]") < 1


def test_a_browser_that_cannot_unpack_says_so(browser, address):
    context = browser.new_context(offline=True)
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    assert "open this page in a browser of 2023 or later" in page.locator("main").inner_text()
    context.close()
    assert complaints == []


def test_a_picture_of_a_plot_can_be_saved(visit):
    page = visit()
    with page.expect_download() as download:
        page.evaluate("Plotly.downloadImage(document.getElementById('plot-fig1'), {format: 'png'})")
    assert download.value.suggested_filename.endswith(".png")


def test_a_report_of_nothing_works(visit, tmp_path):
    store = stored(tmp_path, {figure: story(figure) for figure in FIGURES})
    shutil.rmtree(tmp_path / "runs")
    page = visit(report.write_report(Store.open(store.path)).as_uri())
    assert page.locator(".missing").count() == 2 * len(FIGURES)
