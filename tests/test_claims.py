"""The record of the paper's findings, and the page that is written from it.

Oracle: the recipes, judging the same made-up runs; small records, counted by hand. Cannot see: whether what was
recorded was trained as it says, or a cause is the true one.
"""

import doctest
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import claim_seeds
import claims
import claims_record
import pytest
from claims_record import Figure, Sweep

from edgewise.lab.recipes import PAPER, RECIPES, Claim
from edgewise.lab.report import presentation
from lab_cases import remade, stored, story

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WORDS = (
    *("none", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
)


def claim(text, *, holds, measured="1"):
    return Claim(text=text, expected="above 0", measured=measured, holds=holds)


def sweep(date="2026-11-24", **figures):
    made = {name: Figure(title=f"Title of {name}", claims=tuple(own)) for name, own in figures.items()}
    return Sweep(date=date, torch="2.13", runs=3, beyond=0, minutes=2.0, figures=made)


@pytest.fixture
def docs(tmp_path):
    """A folder with neither findings nor causes."""
    path = tmp_path / "docs"
    (path / "claims").mkdir(parents=True)
    (path / "claims" / "causes.toml").write_text("cause = []\n")
    return path


def made_folder(path, figures, scale="embedded"):
    """A results folder in which every claim holds, and its path."""
    return stored(path, {figure: story(figure, scale) for figure in figures}, scale=scale).path


def spoilt(path):
    """A folder of figure 26 whose runs far beyond the boundary are as good as the one that trains."""
    runs = story("fig26", "embedded")
    first = min(runs, key=lambda run: run.config.optimizer.lr)
    columns = {name: values for name, values in first.columns.items() if name != "step"}
    return stored(path, {"fig26": [remade(run, columns) for run in runs]}, scale="embedded").path


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_folder_is_taken_as_its_recipes_judge_it(docs, tmp_path, capsys):
    folder = made_folder(tmp_path / "folder", ("fig26", "fig2"))
    assert claims.main([str(folder)], docs) == 0
    assert "fig26 at embedded scale: 4 of 4 hold" in capsys.readouterr().out
    (taken,) = claims_record.read(docs)["embedded"]
    assert list(claims_record.figures_of([taken])) == ["fig2", "fig26"]
    for name, figure in taken.figures.items():
        assert list(figure.claims) == RECIPES[name].claims(story(name, "embedded"))
        assert figure.title == RECIPES[name].title
    runs = {run.config: run for name in ("fig2", "fig26") for run in story(name, "embedded")}
    assert taken.runs == len(runs)
    assert taken.minutes == pytest.approx(len(runs) / 60, abs=0.05)  # each took a second
    page = (docs / "claims.md").read_text(encoding="utf-8")
    assert "6 of 6 findings of the paper hold at embedded scale" in page
    assert claims.main([str(folder)], docs) == 0  # again: nothing more
    assert claims_record.read(docs) == {"embedded": [taken]}


def test_runs_beyond_the_failure_boundary_are_counted_apart(docs, tmp_path):
    store = stored(tmp_path / "folder", {"fig26": story("fig26", "embedded")}, scale="embedded")
    store.leave_out({story("fig26", "embedded")[-1].config.run_id})
    assert claims.main([str(store.path)], docs) == 0
    (taken,) = claims_record.read(docs)["embedded"]
    assert (taken.runs, taken.beyond) == (len(story("fig26", "embedded")) - 1, 1)
    assert "; 1 more beyond their failure boundary" in (docs / "claims.md").read_text(encoding="utf-8")


def test_a_figure_that_is_not_judged_on_all_its_runs_is_refused_and_the_others_are_taken(
    docs, tmp_path, capsys
):
    before = sweep(fig26=[claim("old", holds=True)], fig2=[claim("old", holds=True)])
    claims_record.write(docs, {"embedded": [before]})
    folder = made_folder(tmp_path / "folder", ("fig2", "fig26"))
    shutil.rmtree(folder / "runs" / story("fig26", "embedded")[0].config.run_id)
    assert claims.main([str(folder)], docs) == 1
    said = capsys.readouterr().out
    assert "REFUSED: fig26" in said
    assert "1 are missing now" in said
    old, new = claims_record.read(docs)["embedded"]
    assert old.figures == {"fig26": before.figures["fig26"]}
    assert set(new.figures) == {"fig2"}


def test_a_figure_that_was_never_judged_is_refused(docs, tmp_path, capsys):
    folder = made_folder(tmp_path / "folder", ("fig26",))
    (folder / presentation.FINDINGS).unlink()
    assert claims.main(["--check", str(folder)], docs) == 1
    assert "not judged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("figure", "scale", "why"),
    [
        ("warmups", "demo", "none of the paper's figures"),
        ("fig26", "embedded, first 2 steps", "its scale is 'embedded, first 2 steps'"),
        ("fig26", "desk", "settings are not those of its recipe today"),
        ("fig26", "embedded-seed-0", "its scale is 'embedded-seed-0'"),
    ],
)
def test_what_is_not_of_the_paper_or_not_of_the_scale_is_refused(docs, tmp_path, capsys, figure, scale, why):
    runs = story("fig26", "embedded") if figure == "fig26" else story(figure)[:1]
    folder = stored(tmp_path / "folder", {figure: runs}, scale=scale).path
    assert claims.main([str(folder)], docs) == 1
    assert why in capsys.readouterr().out
    assert claims_record.read(docs) == {}


def test_a_folder_without_results_is_refused(docs, tmp_path, capsys):
    assert claims.main(["--check", str(tmp_path / "nothing")], docs) == 1
    assert "holds no results" in capsys.readouterr().out


def test_the_check_fails_where_a_finding_stopped_holding(docs, tmp_path, capsys):
    claims.main([str(made_folder(tmp_path / "good", ("fig26",)))], docs)
    (docs / "claims.md").write_text("not written anew")
    before = contents(docs)
    assert claims.main(["--check", str(tmp_path / "good")], docs) == 0
    capsys.readouterr()
    assert claims.main(["--check", str(spoilt(tmp_path / "bad"))], docs) == 1
    said = capsys.readouterr().out
    good, bad = RECIPES["fig26"].claims(story("fig26", "embedded")), judged(tmp_path / "bad")
    lost = [(then, now) for then, now in zip(good, bad, strict=True) if not now.holds]
    assert len(lost) == 3  # the spikes
    assert said.count("NO LONGER HOLDS: fig26 at embedded scale") == 3
    for then, now in lost:
        assert (
            f"{now.text}\n    expected: {now.expected}\n    then: {then.measured}\n    now: {now.measured}"
            in said
        )
    assert contents(docs) == before


def test_taking_what_holds_no_more_asks_for_a_cause(docs, tmp_path, capsys):
    claims.main([str(made_folder(tmp_path / "good", ("fig26",)))], docs)
    assert claims.main([str(spoilt(tmp_path / "bad"))], docs) == 1
    assert capsys.readouterr().out.count("NO CAUSE in causes.toml: fig26: ") == 3
    assert "1 of 4 findings" in (docs / "claims.md").read_text(encoding="utf-8")


def judged(path):
    return [
        Claim(**data)
        for data in json.loads((path / "findings.json").read_text())["content"]["fig26"]["claims"]
    ]


def test_the_check_fails_where_a_finding_vanished_and_names_what_is_new():
    then = sweep(fig1=[claim("a", holds=True), claim("b", holds=False), claim("c", holds=False)])
    now = sweep(fig1=[claim("c", holds=True, measured="2"), claim("d", holds=True)])
    lost, gained = claims_record.compare("fig1", then.figures["fig1"], now.figures["fig1"])
    assert [line.splitlines()[0] for line in lost] == [
        "NO LONGER CLAIMED: fig1: a",
        "NO LONGER CLAIMED: fig1: b",
    ]
    assert [line.splitlines()[0] for line in gained] == ["holds now: fig1: c", "new, and holds: fig1: d"]


def test_findings_meet_at_both_scales_whatever_the_numbers_in_their_texts():
    record = {
        "embedded": [
            sweep(
                fig1=[
                    claim("only here: 5", holds=True),
                    claim("saves (T_wrm = 80)", holds=False),
                    claim("same words 1", holds=True),
                    claim("same words 2", holds=False),
                ]
            )
        ],
        "desk": [sweep(fig1=[claim("saves (T_wrm = 160)", holds=True), claim("same words 7", holds=False)])],
    }
    rows = claims_record.rows_of(record)["fig1"]
    assert [sorted(row) for row in rows] == [
        ["embedded"],
        ["desk", "embedded"],
        ["desk", "embedded"],
        ["embedded"],
    ]
    page = claims.page(record, [])
    assert "**3 of 4 findings of the paper hold at embedded or desk scale.**" in page
    assert "| `embedded` | 2 of 4 | 1 so far | 3 runs, 2 minutes" in page
    assert "| `desk` | 1 of 2 | 1 so far |" in page
    assert "| saves (T_wrm = 80 (desk: 160)) | above 0 | ✗ 1 | ✓ 1 |" in page
    assert "| only here: 5 | above 0 | ✓ 1 | – |" in page


def test_every_claim_at_desk_scale_is_one_of_embedded_scale():
    """Of all figures, on made-up runs: nothing is counted twice because its text has another number."""
    record = {
        scale: [sweep(**{name: RECIPES[name].claims(story(name, scale)) for name in PAPER})]
        for scale in ("embedded", "desk")
    }
    alone = [row for rows in claims_record.rows_of(record).values() for row in rows if "embedded" not in row]
    assert alone == []
    shared = [row for rows in claims_record.rows_of(record).values() for row in rows if len(row) == 2]
    assert len(shared) > 100


def test_the_demo_has_no_part_in_the_count():
    record = {
        "demo": [sweep(fig1=[claim("a", holds=True)])],
        "embedded": [sweep(fig2=[claim("b", holds=False)])],
    }
    page = claims.page(record, [])
    assert "**0 of 1 findings" in page
    assert "| a | above 0 | ✓ 1 |" in page.split("## What `make demo` shows")[1]


def test_a_finding_holds_if_it_does_with_most_seeds():
    own = [claim("luck", holds=True), claim("bad luck", holds=False), claim("once more", holds=True)]
    record = {
        "embedded": [sweep(fig1=own, fig2=[claim("alone", holds=True)])],
        "embedded-seed-1": [sweep(fig1=[claim("luck", holds=False), claim("bad luck", holds=True)])],
        "embedded-seed-2": [
            sweep(fig1=[claim("luck", holds=False), claim("bad luck", holds=True)]),
            sweep(fig3=[claim("of another figure", holds=True)]),
        ],
        "desk": [sweep(fig1=[claim("luck", holds=False)])],
        "desk-seed-4": [sweep(fig1=[claim("luck", holds=True)])],
    }
    before = {scale: list(sweeps) for scale, sweeps in record.items()}
    page = claims.page(record, [])
    assert record == before
    assert "**3 of 4 findings of the paper hold at embedded or desk scale.**" in page
    # One of two is not most.
    assert "| luck | above 0 | ✗ 1 (seeds 0 ✓, 1 ✗, 2 ✗) | ✗ 1 (seeds 0 ✗, 4 ✓) |" in page
    assert "| bad luck | above 0 | ✓ 1 (seeds 0 ✗, 1 ✓, 2 ✓) | – |" in page
    assert "| once more | above 0 | ✓ 1 | – |" in page
    assert "| `embedded` | 3 of 4 |" in page
    assert claims.cause_faults(record, []) == ["NO CAUSE in causes.toml: fig1: luck"]


def test_a_folder_of_another_seed_is_taken_beside_that_of_the_recipe(docs, tmp_path, capsys):
    claims.main([str(made_folder(tmp_path / "own", ("fig26",)))], docs)
    runs = [replace(run, config=replace(run.config, seed=1)) for run in story("fig26", "embedded")]
    folder = stored(tmp_path / "seed", {"fig26": runs}, scale="embedded-seed-1").path
    assert claims.main([str(folder)], docs) == 0
    assert list(claims_record.read(docs)) == ["embedded", "embedded-seed-1"]
    assert (docs / "claims.md").read_text(encoding="utf-8").count("(seeds 0 ✓, 1 ✓)") == 4
    capsys.readouterr()
    wrong = stored(tmp_path / "wrong", {"fig26": runs}, scale="embedded-seed-2").path
    assert claims.main([str(wrong)], docs) == 1
    assert "settings are not those of its recipe today" in capsys.readouterr().out


def test_figures_are_planned_with_another_seed_unless_they_have_several():
    planned = claim_seeds.planned_with(3, ["fig7", "fig31"], "embedded")
    for figure, ladders in planned.items():
        configs = [config for ladder in ladders for config in ladder]
        assert [replace(config, seed=0) for config in configs] == list(RECIPES[figure].configs("embedded"))
        assert {config.seed for config in configs} == {3}
    with pytest.raises(ValueError, match="fig3 must have one seed, got 3"):
        claim_seeds.planned_with(3, ["fig3"], "embedded")


def test_a_figure_is_in_one_sweep():
    record = {"desk": [sweep("2026-11-29", fig1=[claim("a", holds=True)], fig2=[claim("b", holds=True)])]}
    claims_record.take(record, "desk", sweep("2026-12-03", fig2=[claim("b", holds=False)]))
    assert [list(each.figures) for each in record["desk"]] == [["fig1"], ["fig2"]]
    assert "2026-11-29 to 2026-12-03" in claims.page(record, [])
    claims_record.take(record, "desk", sweep("2026-12-04", fig1=[claim("a", holds=False)]))
    assert [list(each.figures) for each in record["desk"]] == [["fig2"], ["fig1"]]


def test_a_text_cannot_break_the_table():
    page = claims.page({"embedded": [sweep(fig1=[claim("a | b <script>", holds=True)])]}, [])
    assert "| a \\| b &lt;script> | above 0 |" in page


def test_findings_that_hold_nowhere_need_a_cause_and_no_others_may_have_one():
    record = {
        "embedded": [sweep(fig1=[claim("saves 1", holds=False), claim("falls", holds=False)])],
        "desk": [sweep(fig1=[claim("saves 2", holds=True), claim("falls", holds=False)])],
    }
    cause = {"title": "Why.", "text": "So.", "claims": {"fig1": ["falls"]}}
    assert claims.cause_faults(record, [cause]) == []
    assert claims.cause_faults(record, []) == ["NO CAUSE in causes.toml: fig1: falls"]
    left = cause | {"claims": {"fig1": ["falls", "saves 1"], "fig2": ["falls"]}}
    assert [fault.split(": ", 1)[1] for fault in claims.cause_faults(record, [left])] == [
        "fig1: saves 1",
        "fig2: falls",
    ]
    assert "**Why.** So.\n\n- fig1: falls\n" in claims.page(record, [cause])


def test_every_finding_that_holds_at_no_scale_has_a_cause():
    assert claims.cause_faults(claims_record.read(DOCS), claims.read_causes(DOCS)) == []


def test_the_page_is_what_the_record_says():
    """`python docs/studies/claims.py` writes it anew."""
    written = claims.page(claims_record.read(DOCS), claims.read_causes(DOCS))
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == written


def test_the_record_has_what_the_recipes_claim():
    """A recipe that claims something else by now has to be trained, and its folder taken."""
    record = claims_record.read(DOCS)
    assert list(claims_record.figures_of(record["embedded"])) == list(PAPER)
    for scale, sweeps in record.items():
        for name, figure in claims_record.figures_of(sweeps).items():
            own = RECIPES[name].claims(story(name, claims_record.scale_and_seed(scale)[0]))
            assert list(claims_record.by_words(figure.claims)) == list(claims_record.by_words(own)), name


def test_what_is_recorded_is_written_as_it_is_read(docs):
    record = claims_record.read(DOCS)
    claims_record.write(docs, record)
    for scale in record:
        name = f"claims/{scale}.json"
        assert (docs / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")


def counts(figures):
    own = [each for figure in figures for each in figure.claims]
    return sum(each.holds for each in own), len(own)


def test_numbers_of_claims_on_other_pages_follow():
    """The lab log is dated, and keeps what was counted then."""
    record = claims_record.voted(claims_record.read(DOCS))
    embedded = claims_record.figures_of(record["embedded"])
    totals = {counts(claims_record.figures_of(sweeps).values()) for sweeps in record.values()}
    rows = [row for its_rows in claims_record.rows_of(record).values() for row in its_rows]
    totals.add((sum(any(each.holds for each in row.values()) for row in rows), len(rows)))
    found = 0
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    for page in (page for page in pages if page.name not in ("claims.md", "lab-log.md")):
        text = page.read_text(encoding="utf-8")
        for number, total in re.findall(r"(\d+) of (\d+) (?:findings|claims)", text):
            assert (int(number), int(total)) in totals, page
        for number, total, figure in re.findall(r"(\w+)(?: of (\w+))? claims of \[(\w+)\]", text):
            hold, all_of_it = counts([embedded[figure]])
            said = (number.lower(), total or number)
            assert said == (WORDS[hold], WORDS[all_of_it]), (page, figure)
            found += 1
    assert found >= 3


def test_the_examples_of_the_scripts_run():
    for module in (claims, claims_record):
        tried = doctest.testmod(module)
        assert (tried.failed, tried.attempted > 0) == (0, True)


def test_make_figures_holds_them_against_the_record():
    recipe = re.search(r"^figures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)[1]
    trains, checks = recipe.splitlines()
    assert trains.endswith("edgewise figure all")
    assert checks.endswith("python docs/studies/claims.py --check runs/all-embedded")
