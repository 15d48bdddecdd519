"""What `make quick` leaves out. Cannot see: how long the rest takes."""

import pkgutil
import subprocess
import sys
from multiprocessing import get_context

import pytest

import sets
from edgewise.lab import training
from lab_cases import TINY


def starts_one():
    subprocess.run([sys.executable, "-c", "pass"], check=True)


def trains():
    return training.train(TINY)


def asks_nothing(model):
    model.train()
    return sys.platform


def by_a_helper():
    return [trains() for _ in range(2)]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (starts_one, {"processes"}),
        (trains, {"training"}),
        (by_a_helper, {"training"}),
        (asks_nothing, set()),
    ],
)
def test_a_test_is_marked_by_what_it_reaches(function, expected):
    assert sets.marks_of([function]) == expected


@pytest.fixture
def process():
    return starts_one


def test_a_fixture_marks_its_tests(process, request):
    assert request.node.get_closest_marker("processes") is not None


@pytest.mark.parametrize("start", [starts_one, lambda: get_context("spawn").Process().start()])
def test_what_is_not_marked_starts_no_process(start):
    with pytest.raises(pytest.fail.Exception, match=r"@pytest\.mark\.processes"):
        start()


@pytest.mark.parametrize("name", sorted(set().union(*sets.USES.values())))
def test_what_brings_a_mark_is_there(name):
    pytest.importorskip(name.split(":")[0].split(".")[0])
    assert sets.name_of(pkgutil.resolve_name(name)) == name


def test_the_slow_ones_are_there():
    text = "".join(path.read_text(encoding="utf-8") for path in sets.TESTS.rglob("test_*.py"))
    assert [name for name in sorted(sets.SLOW) if f"def {name}(" not in text] == []
