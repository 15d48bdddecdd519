"""Tables of costs.

Oracle: numbers put in by hand, and what a terminal of 60 columns shows.
"""

from pathlib import Path

import pytest
from rich.console import Console

from edgewise.lab import cost_tables
from edgewise.lab.estimate import Estimate
from edgewise.lab.trial import Cost, kind_of, name_of
from lab_cases import TINY, tiny


def printed(table):
    console = Console(width=60, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def rows(text):
    """The lines, a space between cells."""
    return [" ".join(line.split()) for line in text.splitlines()]


def estimated(**changes):
    values = {
        "kind": kind_of(TINY),
        "num_runs": 4,
        "num_steps": 4000,
        "num_parameters": 1234,
        "flops": 5.85e15,
    }
    values |= {"core_seconds": 7200.0, "memory": 3e9, "stored": 2e6, "on_gpu": True}
    return Estimate(**values | changes)


@pytest.mark.parametrize(
    ("number", "text"),
    [(12.0, "12 B"), (2048, "2.05 kB"), (3.5e6, "3.5 MB"), (1e9, "1 GB"), (2.5e13, "25 TB")],
)
def test_bytes_are_said_in_few_digits(number, text):
    assert cost_tables.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (59.4, "59.4 s"), (90.0, "1.5 min"), (5400.0, "1.5 h"), (180_000.0, "2.08 d")],
)
def test_times_are_said_in_few_digits(seconds, text):
    assert cost_tables.duration(seconds) == text


def test_what_was_tried_is_a_line_a_kind():
    cost = Cost(kind=kind_of(TINY), num_runs=3, seconds_a_step=0.25, peak_memory=10**9, seconds_whole=7200.0)
    text = printed(cost_tables.tried([cost]))
    assert "1 3 0.25 1 GB 2 h" in rows(text)
    assert " ".join(name_of(cost.kind).split()) in " ".join(text.split())


def test_what_is_planned_is_added_up_and_what_stays_on_cores_is_marked():
    other = estimated(kind=kind_of(tiny(measure=("sharpness",))), on_gpu=False, memory=5e9)
    text = printed(cost_tables.planned([estimated(), other]))
    assert "1 4 4,000 5.8e+15 2 h 16.7 min 3 GB" in rows(text)
    assert "2 4 4,000 5.8e+15 2 h 16.7 min * 5 GB" in rows(text)
    assert "all 8 8,000 1.2e+16 4 h 33.3 min 5 GB" in rows(text)
    assert f"{name_of(other.kind)}; 1,234 parameters" in " ".join(text.split())


def test_sixty_columns_show_all_that_a_plan_says():
    kinds = [kind_of(tiny(measure=("sharpness",))), kind_of(tiny(warmup={"kind": "catapult"}))]
    large = [estimated(kind=kind, num_runs=1560, num_steps=15_600_000, on_gpu=False) for kind in kinds]
    text = printed(cost_tables.planned(large))
    assert "…" not in text
    for number in ("1,560", "15,600,000", "31,200,000", "16.7 min *"):
        assert number in text


def test_notes_say_how_long_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWISE_DATA", str(tmp_path))
    on_cores = estimated(kind=kind_of(tiny(data={"name": "cifar10"})), on_gpu=False)
    notes = cost_tables.plan_notes([estimated(), on_cores], Path("x"), 2, 7)
    assert notes[0].startswith("time: 2 h in 2 processes of one thread here.")
    assert notes[0].endswith("down to the longest run, 30 min.")
    assert notes[1] == "memory: of one process; up to 6 GB for 2."
    assert notes[2] == "disk: 4 MB in x."
    assert notes[3] == "data: digits, needs no download."
    assert notes[4].startswith("data: data set 'cifar10' is not in ")
    assert notes[5] == "finished: 7 runs in x, which are not counted."
    assert notes[6].startswith("* trained on cores by every engine")
    assert len(cost_tables.plan_notes([estimated()], Path("x"), 2, 0)) == 5
    for name in ("train", "test"):
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        (tmp_path / "cifar10" / f"{name}.parquet").touch()
    assert "data: cifar10, prepared." in cost_tables.plan_notes([on_cores], Path("x"), 2, 0)


def test_nothing_left_is_a_plan_too():
    assert cost_tables.plan_notes([], Path("x"), 2, 3)[0].startswith("time: 0 s")
    assert "all" in printed(cost_tables.planned([]))
