"""What the terminal shows.

Oracle: rich's own recorded output. Cannot see: a real terminal.
"""

import io
import shutil
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from edgewise.lab import overview, terminal
from edgewise.lab.recipes import RECIPES, Claim
from edgewise.lab.report import presentation
from edgewise.lab.results import progress
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from edgewise.lab.sweep import State
from lab_cases import made, save, shown, stored, story, tiny


def state(steps, *, finished=(), failed=(), beyond=()):
    """How far a sweep is, from config → steps and lists of configs."""
    parts = [frozenset(c.run_id for c in part) for part in (finished, failed, beyond)]
    return State(
        steps={c.run_id: n for c, n in steps.items()}, finished=parts[0], failed=parts[1], beyond=parts[2]
    )


def console(width=160):
    return Console(file=io.StringIO(), width=width, record=True, force_terminal=True)


def text_of(renderable, width=160):
    recorder = console(width)
    recorder.print(renderable, soft_wrap=isinstance(renderable, Text))
    return recorder.export_text()


def test_bars_follow_the_steps_of_each_figure():
    a, b, c = (tiny(seed=seed) for seed in range(3))
    recorder = console()
    with terminal.bars({"fig1": [(a, b)], "fig2": [(b,), (c,)]}, recorder) as move:
        move(state({a: 0, b: 0, c: 0}))
        move(state({a: 6, b: 3, c: 0}, finished=[a]))
    last = recorder.export_text().rstrip().splitlines()[-2:]
    assert "fig1" in last[0]
    assert " 75%" in last[0]
    assert " 1/2 1 running" in last[0]
    assert "fig2" in last[1]
    assert " 25%" in last[1]
    assert " 0/2 1 running" in last[1]


def test_a_continued_figure_starts_where_it_stood():
    a, b = (tiny(seed=seed) for seed in range(2))
    recorder = console()
    with terminal.bars({"fig1": [(a, b)]}, recorder) as move:
        move(state({a: 6, b: 0}, finished=[a]))
    assert " 50%" in recorder.export_text()


def test_nothing_is_shown_before_the_first_move():
    recorder = console()
    with terminal.bars({"fig1": [(tiny(),)]}, recorder):
        pass
    assert "fig1" not in recorder.export_text()


def test_a_bar_fits_into_eighty_columns():
    for figure in RECIPES:
        config = tiny()
        recorder = console(width=80)
        with terminal.bars({figure: [(config,)]}, recorder) as move:
            move(state({config: 6}, finished=[config]))
        lines = [line for line in recorder.export_text().splitlines() if figure in line]
        assert lines
        assert all("100%" in line for line in lines)


def judged(figure, claims, note=""):
    return replace(shown(RECIPES[figure], []), claims=tuple(claims), note=note)


def test_the_table_shows_each_claim_and_whether_it_holds():
    its = RECIPES["fig2"]
    good = its.claims(story("fig2"))
    bad = Claim(text="a bad one", expected="9", measured="8", holds=False)
    text = " ".join(text_of(terminal.findings([judged("fig2", [*good, bad])], 400), width=400).split())
    for claim in good:
        assert f"✓ {claim.text}" in text
        assert claim.expected in text
        assert claim.measured in text
    assert "✗ does not hold: a bad one" in text
    assert f"fig2 {its.title}" in text


def test_in_a_narrow_terminal_expected_and_measured_stand_below_the_claim():
    claim = Claim(text="a rate", expected="nine [1]", measured="eight", holds=False)
    found = judged("fig2", [claim], "judged on 3 of 4 runs.")
    lines = [line.strip().split() for line in text_of(terminal.findings([found], 60), width=60).splitlines()]
    at = lines.index(["✗", "does", "not", "hold:", "a", "rate"])
    assert lines[at + 1 : at + 4] == [
        ["expected", "nine", "[1]"],
        ["measured", "eight"],
        ["judged", "on", "3", "of", "4", "runs."],
    ]


def test_brackets_in_a_claim_are_shown_and_no_markup():
    claim = Claim(text="rates in [bold] [0, 1]", expected="[red]9[/red]", measured="[/] at [1]", holds=True)
    text = " ".join(text_of(terminal.findings([judged("fig2", [claim])], 400), width=400).split())
    assert "✓ rates in [bold] [0, 1] [red]9[/red] [/] at [1]" in text


def test_the_table_says_why_claims_are_not_judged():
    text = text_of(terminal.findings([judged("fig2", [], "not judged: 1 of 2 runs [/] missing.")], 80))
    assert "not judged: 1 of 2 runs [/] missing." in text


def test_the_table_of_no_results_is_a_table():
    assert "Findings: expected" in text_of(terminal.findings([], 80))


def test_runs_that_failed_or_lie_beyond_are_counted_apart():
    a, b, c, d = (tiny(seed=seed) for seed in range(4))
    recorder = console()
    with terminal.bars({"fig1": [(a, b, c, d)]}, recorder) as move:
        move(state({a: 6, b: 2, c: 6, d: 6}, finished=[a, c], failed=[b], beyond=[d]))
    assert " 2/3 1 failed" in recorder.export_text()


def row_of(text, figure):
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [figure])


def test_status_counts_what_is_done_running_failed_beyond_and_waiting(tmp_path):
    configs = [tiny(seed=seed) for seed in range(7)]
    done, running, failed, beyond, *_ = configs
    store = Store.create(
        tmp_path / "out",
        [FigureRuns(figure="fig4", scale="demo", run_ids=tuple(c.run_id for c in configs))],
    )
    save(store, made(done))
    store.failures.add(failed.run_id, "Traceback: ...")
    progress.write(store.folder, {running.run_id: 3})
    store.leave_out([beyond.run_id])
    now = progress.read(store.folder)[0]
    store = Store.open(tmp_path / "out")
    assert row_of(text_of(terminal.status(store, now + 1)), "fig4") == [
        "fig4",
        "demo",
        "7",
        "1",
        "1",
        "1",
        "1",
        "3",
    ]
    # a sweep that was killed does not run on, nor one whose clock is wrong
    for later in (now + 60, now - 60):
        assert row_of(text_of(terminal.status(store, later)), "fig4") == [
            "fig4",
            "demo",
            "7",
            "1",
            "0",
            "1",
            "1",
            "4",
        ]
    assert f"failures/{failed.run_id}.txt" in text_of(terminal.failures(store))


def test_status_says_which_runs_failed_and_why_and_where(tmp_path):
    runs = story("fig4")
    store = stored(tmp_path / "out", {"fig4": runs})
    for run, error in zip(runs[:2], ("RuntimeError: [bold] shapes", "ValueError: a\x1b[2Jb"), strict=True):
        shutil.rmtree(store.path / "runs" / run.config.run_id)
        store.failures.add(run.config.run_id, f"Traceback (most recent call last):\n  File x\n{error}\n")
    store = Store.open(tmp_path / "out")
    lines = [line.strip() for line in text_of(terminal.failures(store), 60).splitlines()]
    for run, error in zip(runs[:2], ("RuntimeError: [bold] shapes", "ValueError: a\ufffd[2Jb"), strict=True):
        config = run.config
        at = lines.index(f"fig4: Adam · η {config.optimizer.lr:g} · warmup {config.warmup.steps}, seed 0")
        assert lines[at + 1] == error
        assert lines[at + 2] == str(tmp_path / "out" / "failures" / f"{config.run_id}.txt")  # not broken
        assert (tmp_path / "out" / "failures" / f"{config.run_id}.txt").is_file()


def test_many_failures_are_counted_and_an_old_folder_shows_its_own(tmp_path):
    runs = story("fig4")
    store = stored(tmp_path / "out", {"fig4": runs})
    shutil.rmtree(store.path / "runs")
    (store.path / presentation.PRESENTATION).unlink()
    for run in runs:
        store.failures.add(run.config.run_id, "Traceback\nValueError: x\n")
    text = text_of(terminal.failures(Store.open(store.path)))
    assert text.count("ValueError: x") == 20
    assert f"and {len(runs) - 20} more" in text
    assert runs[0].config.run_id in text


def test_names_in_a_folder_are_no_markup(tmp_path):
    figure = FigureRuns(figure="[/]\x1b[2J", scale="[bold]", run_ids=(tiny().run_id,))
    store = Store.create(tmp_path / "[red]", [figure])
    text = text_of(terminal.status(store, 0.0))
    assert "[/]\ufffd[2J" in text
    assert "[bold]" in text
    assert "[red]" in text


class Clock:
    """A clock that stands until it is moved."""

    now = 1000.0

    def __call__(self):
        return self.now


def log(width=80):
    """A console whose output goes into a file."""
    return Console(file=io.StringIO(), width=width)


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end():
    a, b = (tiny(seed=seed, num_steps=100) for seed in range(2))
    recorder, clock = log(), Clock()
    with terminal.bars({"fig1": [(a, b)], "fig2": [(b,)]}, recorder, clock) as move:
        for steps in range(0, 61, 3):  # one of a in a second
            clock.now = 1000 + steps
            move(state({a: steps, b: 0}))
        clock.now = 1061
        move(state({a: 100, b: 100}, finished=[a, b]))
    assert recorder.file.getvalue().splitlines() == [
        "0%  runs 0/2",
        "6%  runs 0/2 1 running  0:03:08 left",
        "12%  runs 0/2 1 running  0:02:56 left",
        "18%  runs 0/2 1 running  0:02:44 left",
        "24%  runs 0/2 1 running  0:02:32 left",
        "30%  runs 0/2 1 running  0:02:20 left",
        "100%  runs 2/2",
    ]


def test_a_log_of_a_continued_sweep_reckons_the_time_left_by_what_it_does_itself():
    a, b = (tiny(seed=seed, num_steps=100) for seed in range(2))
    recorder, clock = log(), Clock()
    with terminal.bars({"fig1": [(a, b)]}, recorder, clock) as move:
        move(state({a: 100, b: 0}, finished=[a]))
        clock.now += 20
        move(state({a: 100, b: 10}, finished=[a]))
    assert recorder.file.getvalue().splitlines()[-1] == "55%  runs 1/2 1 running  0:03:00 left"


def test_the_time_that_processes_take_to_start_is_not_reckoned_with():
    config = tiny(num_steps=100)
    recorder, clock = log(), Clock()
    with terminal.bars({"fig1": [(config,)]}, recorder, clock) as move:
        for seconds in (0, 60):
            clock.now = 1000 + seconds
            move(state({config: 0}))
        clock.now += 10
        move(state({config: 10}))
    assert recorder.file.getvalue().splitlines()[-1] == "10%  runs 0/1 1 running  0:01:30 left"


def test_a_log_of_an_inspection_says_what_is_done():
    recorder, clock = log(), Clock()
    with terminal.inspecting(recorder, clock) as move:
        move(0, 200, "trial")
        clock.now += 10
        move(50, 200, "trial")
    assert recorder.file.getvalue().splitlines() == ["0%  trial", "25%  trial  0:00:30 left"]


def test_bars_and_tables_are_readable_in_sixty_columns(tmp_path):
    configs = [tiny(seed=seed) for seed in range(12)]
    recorder = console(width=60)
    with terminal.bars({"edge-warmup": [tuple(configs)]}, recorder) as move:
        move(state(dict.fromkeys(configs, 3) | {configs[0]: 6}, finished=configs[:1], failed=configs[1:2]))
    last = recorder.export_text().rstrip().splitlines()[-1]
    for words in ("edge-warmup", " 54%", "1/12 10 running 1 failed", "left"):
        assert words in last
    assert len("edge-warmup" + last.rpartition("edge-warmup")[2]) <= 60  # what is drawn last
    figure = FigureRuns(figure="edge-warmup", scale="embedded", run_ids=tuple(c.run_id for c in configs))
    text = text_of(terminal.status(Store.create(tmp_path / "out", [figure]), 0.0), 60)
    assert row_of(text, "edge-warmup") == ["edge-warmup", "embedded", "12", "0", "0", "0", "0", "12"]
    recorder = console(60)
    terminal.show_overview(overview.rows(tmp_path), recorder)
    text = recorder.export_text()
    assert all(len(line) <= 60 for line in text.splitlines())
    for figure in RECIPES:
        assert row_of(text, figure)
