"""Damage to a results folder is noticed, named and mended, and nothing outside of the folder is touched.

Oracle: bits of every file of a stored run, flipped; the runs as they were first trained. Cannot see: what changes
between a check and the reading after it.
"""

import json
import os
import random
import shutil

import pytest

from edgewise.lab import sweep
from edgewise.lab.errors import DamagedError, StoreError
from edgewise.lab.results import progress
from edgewise.lab.results.files import Folder, sealed, unsealed
from edgewise.lab.results.store import Store
from edgewise.lab.training import train
from lab_cases import made, runs_of, stored, tiny

FILES = ("config.json", "outcome.json", "rows.parquet", "SHA256SUMS")
CONFIGS = [tiny(seed=seed) for seed in range(3)]
HURT = CONFIGS[1].run_id
FLIPS = 600  # of each file


@pytest.fixture
def folder(tmp_path):
    """Three runs as if trained."""
    runs = [made(c, {"train_loss": 0.1 + c.seed}, mood="fine", seconds=1.0 + c.seed) for c in CONFIGS]
    stored(tmp_path / "out", {"fig1": runs})
    return tmp_path / "out"


def run_again(path, notices=None, configs=CONFIGS):
    """The same sweep again, with trained runs."""
    said = [] if notices is None else notices
    planned = {"fig1": [(config,) for config in configs]}
    return sweep.run(planned, "demo", path, engine="vectorized", workers=1, on_notice=said.append)


def unsealed_as_before(path):
    """Make a folder as versions before checksums left it."""
    content, _ = unsealed((path / "sweep.json").read_bytes())
    (path / "sweep.json").write_text(
        json.dumps({k: v for k, v in content.items() if k != "unchecked"}, indent=1)
    )
    for file in (path / "runs").glob("*/SHA256SUMS"):
        file.unlink()


def flips(size):
    return random.Random(0).sample(range(8 * size), FLIPS)


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_of_a_run_is_silent(folder, name):
    file = folder / "runs" / HURT / name
    whole = file.read_bytes()
    silent = []
    for bit in flips(len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        store = Store.open(folder)
        told = store.runs.damaged().get(HURT, "")  # a changed checksum looks like a changed file
        if store.runs.has(HURT) or (name not in told and name != "SHA256SUMS") or "changed" not in told:
            silent.append(bit)
        for read in (store.runs.load, store.runs.outcome):
            with pytest.raises(DamagedError):
                read(HURT)
    assert silent == []
    file.write_bytes(whole)
    assert Store.open(folder).runs.load(HURT).outcome["mood"] == "fine"


def test_no_flipped_bit_of_the_index_is_silent(folder):
    file = folder / "sweep.json"
    whole = file.read_bytes()
    for bit in flips(len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(StoreError, match=r"sweep\.json"):
            Store.open(folder)


def emptied(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def grown(file):
    file.write_bytes(file.read_bytes() + b"\n")


def missing(file):
    file.unlink()


def a_folder(file):
    file.unlink()
    file.mkdir()


def garbage(file):
    file.write_bytes(random.Random(1).randbytes(300))


def of_another_run(file):
    shutil.copy(file.parents[1] / CONFIGS[0].run_id / file.name, file)


HURTS = [emptied, cut, grown, missing, a_folder, garbage, of_another_run]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("hurt", HURTS)
def test_a_damaged_run_is_named_moved_aside_and_trained_again_by_the_same_command(folder, hurt, name):
    hurt(folder / "runs" / HURT / name)
    others = [c.run_id for c in CONFIGS if c.run_id != HURT]
    store = Store.open(folder)
    assert set(others) == store.runs.finished()
    assert HURT in store.runs.damaged()
    assert any(HURT in notice and "left out" in notice for notice in store.notices())
    before = [(folder / "runs" / i / "outcome.json").stat().st_mtime_ns for i in others]
    notices = []
    store = run_again(folder, notices)
    (notice,) = [notice for notice in notices if HURT in notice]
    assert name in notice or name == "SHA256SUMS"
    assert "damaged/" in notice
    assert notice.endswith("trained again.")
    assert [(folder / "runs" / i / "outcome.json").stat().st_mtime_ns for i in others] == before
    assert store.runs.load(HURT).columns["train_loss"].tolist() == [
        row["train_loss"] for row in train(CONFIGS[1]).rows
    ]
    aside = [p.name for p in (folder / "damaged").iterdir()]
    assert any(p.startswith(HURT) for p in aside)  # moved, not deleted
    assert Store.open(folder).notices() == []


def test_all_files_of_a_run_gone_or_another_run_in_its_place_is_damage(folder):
    empty, moved = (folder / "runs" / config.run_id for config in CONFIGS[:2])
    for file in empty.iterdir():
        file.unlink()
    shutil.rmtree(moved)
    shutil.copytree(folder / "runs" / CONFIGS[2].run_id, moved)
    store = Store.open(folder)
    assert store.runs.finished() == {CONFIGS[2].run_id}
    assert store.runs.damaged().keys() == {CONFIGS[0].run_id, CONFIGS[1].run_id}
    assert run_again(folder).runs.load(HURT).config == CONFIGS[1]


def test_reading_a_damaged_folder_changes_nothing(folder):
    cut(folder / "runs" / HURT / "rows.parquet")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    store = Store.open(folder)
    store.notices()
    with pytest.raises(
        DamagedError, match=rf"{HURT}: rows\.parquet changed since it was stored.* train it anew"
    ):
        runs_of(store, store.figures[0])
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("hurt", [emptied, cut, grown, missing, garbage])
def test_a_damaged_index_is_moved_aside_and_written_anew_and_the_runs_stay(folder, hurt):
    hurt(folder / "sweep.json")
    with pytest.raises(StoreError, match=r"sweep\.json"):
        Store.open(folder)
    notices = []
    store = run_again(folder, notices)
    assert len(notices) == 1
    assert "sweep.json was " in notices[0]
    assert "written anew" in notices[0]
    assert Store.open(folder).provenance["index"].startswith("written anew")
    assert [run.outcome["mood"] for run in runs_of(store, store.figures[0])] == ["fine"] * 3
    if hurt is not missing:
        assert [name.startswith("sweep.json-") for name in os.listdir(folder / "damaged")] == [True]
    again = []
    run_again(folder, again)
    assert again == []


def test_an_index_that_never_was_one_is_left_alone(tmp_path):
    (tmp_path / "sweep.json").write_text("program: train.py")
    with pytest.raises(DamagedError, match="was not written by edgewise, or is damaged"):
        run_again(tmp_path)
    assert os.listdir(tmp_path) == ["sweep.json"]


def test_a_damaged_index_above_runs_of_another_sweep_is_left_alone(folder):
    emptied(folder / "runs" / HURT / "rows.parquet")
    garbage(folder / "sweep.json")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(StoreError, match=r"sweep\.json was not written by edgewise, or is damaged"):
        run_again(folder, configs=CONFIGS[:2])
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_a_folder_of_before_checksums_is_read_and_continued_and_that_is_said_once(folder):
    unsealed_as_before(folder)
    (folder / "runs" / CONFIGS[2].run_id).rename(folder.parent / "aside")
    store = Store.open(folder)
    assert store.runs.load(HURT).outcome["mood"] == "fine"
    (notice,) = store.notices()
    assert "2 of 2 runs were stored before runs had checksums" in notice
    notices = []
    store = run_again(folder, notices)
    assert notices == [notice]
    assert [run.outcome.get("mood") for run in runs_of(store, store.figures[0])] == ["fine", "fine", None]
    assert "2 of 3 runs were stored before" in Store.open(folder).notices()[0]
    (folder / "runs" / CONFIGS[2].run_id / "SHA256SUMS").unlink()  # of one that had them
    assert Store.open(folder).runs.damaged().keys() == {CONFIGS[2].run_id}


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("hurt", [emptied, missing, a_folder, garbage])
def test_what_can_be_noticed_without_checksums_is(folder, hurt, name):
    unsealed_as_before(folder)
    hurt(folder / "runs" / HURT / name)
    store = Store.open(folder)
    assert store.runs.damaged().keys() == {HURT}
    assert name in store.runs.damaged()[HURT]
    assert run_again(folder).runs.damaged() == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"time": "x", "steps": {}}', '{"time": 1e999, "steps": {}}', "[" * 100_000,
     '{"time": 1, "steps": [1]}', '{"time": NaN, "steps": {}}', '{"steps": {}}', "\0" * 50,
     f'{{"time": 1{"0" * 400}, "steps": {{}}}}'],
)  # fmt: skip
def test_progress_that_is_none_is_no_reason_to_fail(folder, text):
    (folder / "progress.json").write_text(text)
    assert progress.read(Folder(folder)) == (-float("inf"), {})
    shutil.rmtree(folder / "runs" / HURT)
    assert run_again(folder).runs.has(HURT)


def test_progress_names_runs_alone(folder):
    steps = {HURT: 3, "../x": 4, CONFIGS[0].run_id: "many"}
    (folder / "progress.json").write_text(json.dumps({"time": 5, "steps": steps}))
    assert progress.read(Folder(folder)) == (5.0, {HURT: 3})


@pytest.mark.parametrize("kind", ["folder", "pipe", "symlink", "unreadable"])
def test_progress_that_is_no_file_is_no_reason_to_fail(folder, kind, monkeypatch):
    file = folder / "progress.json"
    (folder.parent / "mine").write_text("mine")
    match kind:
        case "folder":
            (file / "x").mkdir(parents=True)
        case "pipe":
            os.mkfifo(file)
        case "symlink":
            file.symlink_to(folder.parent / "mine")
        case "unreadable":
            file.write_text('{"time": 1, "steps": {}}')
            real = Folder.read

            def read(self, *names):
                if names == ("progress.json",):
                    raise StoreError("may not be read")
                return real(self, *names)

            monkeypatch.setattr(Folder, "read", read)
    assert progress.read(Folder(folder)) == (-float("inf"), {})
    progress.write(Folder(folder), {HURT: 1})
    shutil.rmtree(folder / "runs" / HURT)
    assert run_again(folder).runs.has(HURT)
    assert (folder.parent / "mine").read_text() == "mine"


LINKED = ["runs", f"runs/{HURT}", f"runs/{HURT}/rows.parquet", "failures", "sweep.json", ".sweep.lock",
          ".sweep.holder"]  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("target", ["inside", "outside"])
def test_a_sweep_refuses_a_folder_with_a_symlink_and_touches_nothing(tmp_path, folder, name, target):
    elsewhere = (tmp_path if target == "outside" else folder) / "elsewhere"
    link = folder / name
    if link.exists():
        link.rename(elsewhere)
    elif name == "failures":
        elsewhere.mkdir()
        (elsewhere / f"{HURT}.txt").write_text("mine")
        (elsewhere / "notes.txt").write_text("mine")
    else:
        elsewhere.write_text("mine")
    link.symlink_to(elsewhere)
    shutil.rmtree(folder / "runs" / CONFIGS[2].run_id)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match="is a symlink"):
        run_again(folder)
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".sweep.lock"}
    assert after == {p: content for p, content in before.items() if p.name != ".sweep.lock"}


def test_a_linked_run_is_left_out_and_named_by_readers(tmp_path, folder):
    (folder / "runs" / HURT).rename(tmp_path / "elsewhere")
    (folder / "runs" / HURT).symlink_to(tmp_path / "elsewhere")
    store = Store.open(folder)
    assert store.runs.finished() == {config.run_id for config in CONFIGS} - {HURT}
    assert "is a symlink" in store.runs.damaged()[HURT]
    with pytest.raises(StoreError, match=f"{HURT} is a symlink"):
        store.runs.load(HURT)


@pytest.mark.parametrize(
    "run_id", ["../../x", "..", "", "x", "2d74161b3dc8/", "2D74161B3DC8", 3, None, "2d74161b3dc8\n"]
)
@pytest.mark.parametrize("where", ["figures", "beyond", "unchecked"])
def test_ids_are_ids(folder, run_id, where):
    content, _ = unsealed((folder / "sweep.json").read_bytes())
    ids = content["figures"][0]["run_ids"] if where == "figures" else content[where]
    ids.append(run_id)
    (folder / "sweep.json").write_text(sealed(content))  # as somebody who knows how
    with pytest.raises(StoreError, match=r"sweep\.json was not written by edgewise, or is damaged"):
        Store.open(folder)


def test_an_id_that_is_none_is_never_a_path(tmp_path, folder):
    (tmp_path / "x").mkdir()
    store = Store.open(folder)
    assert not store.runs.has("../../x")
    for read in (store.runs.load, store.runs.outcome):
        with pytest.raises(StoreError, match="is missing"):
            read("../../x")
    with pytest.raises(StoreError, match="lead out"):
        store.failures.add("../../x", "Traceback")
    (folder / "failures").mkdir(exist_ok=True)
    (folder / "failures" / "notes.txt").write_text("mine")
    assert Store.create(folder, store.figures).failures.ids() == set()
    assert (folder / "failures" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("figure", ["../x", "a/b", "..", "", 3])
def test_a_figure_s_name_leads_nowhere(folder, figure):
    content, _ = unsealed((folder / "sweep.json").read_bytes())
    content["figures"][0]["figure"] = figure
    (folder / "sweep.json").write_text(sealed(content))
    with pytest.raises(StoreError, match=r"sweep\.json was not written by edgewise, or is damaged"):
        Store.open(folder)


def test_a_run_that_may_not_be_read_is_not_moved(folder, monkeypatch):
    real = Folder.read

    def read(self, *names):
        if names[-2:] == (HURT, "rows.parquet"):
            raise StoreError("cannot read rows.parquet: Permission denied.")
        return real(self, *names)

    monkeypatch.setattr(Folder, "read", read)
    assert "Permission denied" in Store.open(folder).runs.damaged()[HURT]
    with pytest.raises(StoreError, match="Permission denied"):
        run_again(folder)
    assert (folder / "runs" / HURT / "rows.parquet").exists()


def test_a_run_found_whole_is_not_read_again_to_be_counted_but_what_is_loaded_is_checked(folder):
    store = Store.open(folder)
    assert HURT in store.runs.finished()
    emptied(folder / "runs" / HURT / "rows.parquet")
    assert HURT in store.runs.finished()
    with pytest.raises(DamagedError):
        store.runs.load(HURT)


@pytest.mark.parametrize("name", ["report.html", "figures/fig1.png", "figures"])
def test_no_file_of_the_report_is_written_through_a_symlink(tmp_path, folder, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "fig1.png").write_text("mine")
    (folder / name).parent.mkdir(exist_ok=True)
    deep = name == "figures"
    (folder / name).symlink_to(tmp_path / "elsewhere" if deep else tmp_path / "elsewhere" / "fig1.png")
    store = Store.open(folder)
    with pytest.raises(StoreError, match="is a symlink"):
        store.write_file("figures/fig1.png" if deep else name, "new")
    assert (tmp_path / "elsewhere" / "fig1.png").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_a_sentence(folder):
    store = Store.open(folder)
    store.write_file("figures/fig1.png", b"picture")
    assert (folder / "figures" / "fig1.png").read_bytes() == b"picture"
    with pytest.raises(StoreError, match=r"cannot write .*out/figures: .*Finished runs are kept"):
        store.write_file("figures", "new")
    with pytest.raises(StoreError, match="lead out"):
        store.write_file("../x", "new")
