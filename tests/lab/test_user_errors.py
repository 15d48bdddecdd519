"""Errors as the terminal tells them.

Oracle: errors raised for the purpose, in files of a user and in libraries. Cannot see: Ray's own form of a traceback.
"""

import concurrent.futures
import multiprocessing
import tempfile
from pathlib import Path

import pytest

from edgewise.lab import user_errors
from edgewise.lab.ladders import run_of
from edgewise.lab.plugins import execute


@pytest.fixture
def raised(tmp_path):
    """What a file of a user's raises, deep in a library that it calls."""
    path = tmp_path / "mine.py"
    path.write_text("import json\n\ndef read():\n    return json.loads('{')\n\nread()\n")
    with pytest.raises(ValueError, match=r"mine\.py, line 4, raised JSONDecodeError") as caught:
        execute(path)
    return path, caught.value.__cause__


def test_the_last_line_of_the_user_s_is_told_and_the_file_has_all(raised, tmp_path, monkeypatch):
    path, error = raised
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    *words, last = user_errors.told(error, "edgewise: what happened").splitlines()
    assert words == ["edgewise: what happened", f"  {path}:4, in read", "    return json.loads('{')"]
    text = Path(last.removeprefix("full traceback: ")).read_text()
    assert "decoder.py" in text
    assert text.rstrip().splitlines()[-1].startswith("json.decoder.JSONDecodeError: ")


def test_a_traceback_that_is_kept_is_not_written_again(raised, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    kept = tmp_path / "kept.txt"
    assert user_errors.told(raised[1], "x", kept).endswith("cannot be written: no room")
    kept.write_text("all of it")
    assert user_errors.told(raised[1], "x", kept).endswith(f"full traceback: {kept}")


@pytest.mark.processes
def test_the_line_is_found_in_what_another_process_sent(raised):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        error = pool.submit(execute, raised[0]).exception()
    assert f"{raised[0]}:4, in read" in user_errors.own_line(error)


def test_a_text_that_holds_a_traceback_is_cut_short():
    text = "Caught KeyError in worker 0.\nOriginal Traceback (most recent call last):\n  File x\nKeyError: 3"
    assert (
        user_errors.in_short(RuntimeError(text)) == "RuntimeError: Caught KeyError in worker 0.\nKeyError: 3"
    )
    assert user_errors.in_short(RuntimeError("a\nb")) == "RuntimeError: a\nb"
    assert user_errors.in_short(RuntimeError()) == "RuntimeError"


def test_the_run_of_an_error_is_the_one_that_was_noted():
    error = ValueError("x")
    assert run_of(error) is None
    error.add_note("raised by loss_fn on batch 0 of 1")
    error.add_note("in run 0123456789ab: RunConfig()")
    assert run_of(error) == "0123456789ab"
