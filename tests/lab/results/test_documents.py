"""JSON in a results folder.

Oracle: what was written; every single bit of it flipped. Cannot see: damage that also mends the checksum.
"""

import json
import math

import pytest

from edgewise.lab.errors import StoreError
from edgewise.lab.results import documents
from edgewise.lab.results.index import FigureRuns
from edgewise.lab.results.store import Store
from lab_cases import TINY

CONTENT = {"a": ["x", 1.5, None, True], "μ": {"b": "</script>\ud800"}}


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "out", [FigureRuns(figure="fig1", scale="demo", run_ids=(TINY.run_id,))])


def test_what_was_written_is_read(store):
    assert documents.read(store, "a.json") is None
    documents.write(store, "a.json", CONTENT)
    assert documents.read(store, "a.json") == CONTENT


def test_numbers_that_are_not_finite_are_kept(store):
    documents.write(store, "a.json", [math.inf, math.nan, 0.1 + 0.2])
    infinite, nothing, third = documents.read(store, "a.json")
    assert (infinite, third) == (math.inf, 0.1 + 0.2)
    assert math.isnan(nothing)


def test_equal_content_is_left_alone(store):
    documents.write(store, "a.json", CONTENT)
    before = (store.path / "a.json").stat().st_ino
    documents.write(store, "a.json", CONTENT)
    assert (store.path / "a.json").stat().st_ino == before
    documents.write(store, "a.json", [])
    assert documents.read(store, "a.json") == []


def test_every_flipped_bit_is_noticed(store):
    documents.write(store, "a.json", {"text": "a", "holds": True, "value": 1.25})
    whole = (store.path / "a.json").read_bytes()
    for i in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        (store.path / "a.json").write_bytes(flipped)
        with pytest.raises(StoreError, match="run the same command again, which writes it anew"):
            documents.read(store, "a.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", "[" * 100_000, '{"schema": 1}'])
def test_a_file_of_another_kind_is_damaged(store, text):
    (store.path / "a.json").write_text(text)
    with pytest.raises(StoreError, match=r"a\.json is damaged: run the same command again"):
        documents.read(store, "a.json")


def test_another_schema_is_named(store):
    documents.write(store, "a.json", CONTENT)
    document = json.loads((store.path / "a.json").read_text())
    (store.path / "a.json").write_text(json.dumps(document | {"schema": 7}))
    with pytest.raises(StoreError, match="has schema 7, this edgewise reads schema 1: run the same"):
        documents.read(store, "a.json")


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_no_document_is_read_or_written_through_a_symlink(store, tmp_path, target):
    documents.write(store, "a.json", CONTENT)
    (store.path / "a.json").rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    (store.path / "a.json").symlink_to(tmp_path / target)
    with pytest.raises(StoreError, match=r"a\.json is a symlink"):
        documents.read(store, "a.json")
    with pytest.raises(StoreError, match=r"a\.json is a symlink"):
        documents.write(store, "a.json", CONTENT)
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\tc\xa0d", "a  b c d"),
        ("\x1b]0;title\x07", "\ufffd]0;title\ufffd"),
        ("\ud800\u202e\x00", "\ufffd\ufffd\ufffd"),
        ("η·λ ≥ 2, Größe", "η·λ ≥ 2, Größe"),
    ],
)
def test_a_line_is_printable_and_one(text, shown):
    assert documents.one_line(text) == shown
    shown.encode()
