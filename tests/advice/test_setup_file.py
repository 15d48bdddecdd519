"""The file that `edgewise inspect` runs.

Ladder: files written for the purpose; the text of the errors, with the line of the user's own that raised.
"""

import sys
from pathlib import Path

import pytest

from edgewise.advice import setup_file
from edgewise.advice.setup_file import SetupError, load, raised_by
from edgewise.lab.user_errors import own_line

GOOD = """
import torch
from torch import nn

def loss_fn(model, batch):
    return model(batch).square().mean()

def setup():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, [torch.ones(2, 2)] * 3

def stream():
    model, optimizer, loss, batches = setup()
    return model, optimizer, loss, iter(batches * 9)

def short():
    return setup()[:2]

def nothing():
    setup()

def broken():
    return deeper()

def deeper():
    raise RuntimeError("no data here")

number = 3

def torn():
    return *setup()[:3], (deeper() for _ in range(2))
"""

DEEPER = '  {}:26, in deeper\n    raise RuntimeError("no data here")'


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in ("mine", "edgewise_setup_mine", "neighbour_of_mine"):
        sys.modules.pop(name, None)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("target", ["{}", "{}:setup"])
def test_a_function_is_called(file, target):
    found = load(target.format(file), most=5)
    assert type(found.model).__name__ == "Linear"
    assert len(found.batches) == 3


def test_the_file_has_its_own_name_unless_another_module_has_it(file, monkeypatch):
    assert load(f"{file}", most=5).loss_fn.__module__ == "mine"
    assert load(f"{file}", most=5).loss_fn.__module__ == "edgewise_setup_mine"


def test_what_can_be_read_only_once_is_held_as_far_as_it_is_needed(file):
    assert len(load(f"{file}:stream", most=5).batches) == 5


def test_a_function_that_ends_the_program_is_told(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import sys\n\ndef setup():\n    sys.exit('no data')\n")
    with pytest.raises(SetupError, match=r"setup\(\) of .* ended the program \(SystemExit\('no data'\)\)"):
        load(str(path), most=4)


def test_batches_that_raise_are_told_with_the_line_of_the_user(file):
    with pytest.raises(SetupError, match=r"returned raised RuntimeError: no data here") as caught:
        load(f"{file}:torn", most=4)
    assert own_line(caught.value.__cause__) == DEEPER.format(file)


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text(GOOD)
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import setup")
    assert load(str(tmp_path / "mine.py"), most=5).loss_fn.__name__ == "loss_fn"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.py:setup", "nowhere.py does not exist: give the path of a Python file and"),
        ("{}.txt:setup", "mine.py.txt is no Python file"),
        ("{}:absent", r"mine.py has no function absent\(\): write one"),
        ("{}:number", "number of .*mine.py must be a function, got 3 of type int"),
        ("{}:short", r"short\(\) of .*mine.py must return model, optimizer, loss_fn and batches, got 2 things"),
        ("{}:nothing", r"nothing\(\) of .*mine.py must return model, optimizer, loss_fn and batches, got None"),
    ],
)  # fmt: skip
def test_bad_targets_are_told(file, target, message):
    Path(f"{file}.txt").touch()
    with pytest.raises(SetupError, match=message):
        load(target.format(file), most=5)


def test_an_error_is_told_with_the_last_line_of_the_user(file):
    with pytest.raises(SetupError) as caught:
        load(f"{file}:broken", most=5)
    assert str(caught.value) == f"broken() of {file} raised RuntimeError: no data here"
    assert own_line(caught.value.__cause__) == DEEPER.format(file)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import torch\nimport absent_library", "mine.py:2, in <module>\n    import absent_library"),
        ("def setup(:\n    pass", "mine.py:1\n    def setup(:"),
        ("import sys\nsys.exit(0)", "ended the program as it was imported"),
    ],
)
def test_a_file_that_does_not_import_is_told(tmp_path, content, message):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(SetupError) as caught:
        load(str(tmp_path / "mine.py"), most=5)
    assert message in f"{caught.value}\n{own_line(caught.value.__cause__ or caught.value)}"


def test_an_error_of_edgewise_has_no_line_of_the_user():
    try:
        setup_file.load("nowhere.py", most=5)
    except SetupError as error:
        inner = error.with_traceback(error.__traceback__.tb_next)  # without this test's own line
    assert own_line(inner) == ""


def test_notes_of_an_error_are_kept():
    error = ValueError("odd")
    error.add_note("raised by loss_fn on batch 0 of 1")
    assert "\n  raised by loss_fn on batch 0 of 1" in raised_by(error, "setup()")
