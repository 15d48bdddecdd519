"""What the terminal shows.

Oracle: rich's own recorded output. Cannot see: a real terminal.
"""

import io

from rich.console import Console

from edgewise.lab import progress
from edgewise.lab.recipes import RECIPES, Claim
from lab_cases import story, tiny


def console(width=160):
    return Console(file=io.StringIO(), width=width, record=True, force_terminal=True)


def text_of(renderable, width=160):
    recorder = console(width)
    recorder.print(renderable)
    return recorder.export_text()


def test_bars_follow_the_steps_of_each_figure():
    a, b, c = (tiny(seed=seed) for seed in range(3))
    recorder = console()
    with progress.bars({"fig1": [(a, b)], "fig2": [(b,), (c,)]}, recorder) as move:
        move({a.run_id: 0, b.run_id: 0, c.run_id: 0})
        move({a.run_id: 6, b.run_id: 3, c.run_id: 0})
    last = recorder.export_text().rstrip().splitlines()[-2:]
    assert "fig1" in last[0]
    assert " 75%" in last[0]
    assert "fig2" in last[1]
    assert " 25%" in last[1]


def test_a_continued_figure_starts_where_it_stood():
    a, b = (tiny(seed=seed) for seed in range(2))
    recorder = console()
    with progress.bars({"fig1": [(a, b)]}, recorder) as move:
        move({a.run_id: 6, b.run_id: 0})
    assert " 50%" in recorder.export_text()


def test_nothing_is_shown_before_the_first_move():
    recorder = console()
    with progress.bars({"fig1": [(tiny(),)]}, recorder):
        pass
    assert "fig1" not in recorder.export_text()


def test_a_bar_fits_into_eighty_columns():
    for figure in RECIPES:
        config = tiny()
        recorder = console(width=80)
        with progress.bars({figure: [(config,)]}, recorder) as move:
            move({config.run_id: 6})
        lines = [line for line in recorder.export_text().splitlines() if figure in line]
        assert lines
        assert all("100%" in line for line in lines)


def test_the_table_shows_each_claim_and_whether_it_holds():
    its = RECIPES["fig2"]
    good = its.claims(story("fig2"))
    bad = Claim(text="a bad one", expected="9", measured="8", holds=False)
    text = " ".join(text_of(progress.findings([(its, [*good, bad])]), width=400).split())
    for claim in good:
        assert f"✓ {claim.text}" in text
        assert claim.expected in text
        assert claim.measured in text
    assert "✗ does not hold: a bad one" in text
    assert f"fig2 {its.title}" in text


def test_brackets_in_a_claim_are_shown_and_no_markup():
    claim = Claim(text="rates in [bold] [0, 1]", expected="[red]9[/red]", measured="[/] at [1]", holds=True)
    text = " ".join(text_of(progress.findings([(RECIPES["fig2"], [claim])]), width=400).split())
    assert "✓ rates in [bold] [0, 1] [red]9[/red] [/] at [1]" in text


def test_the_table_of_no_results_is_a_table():
    assert "Findings of the paper" in text_of(progress.findings([]))
