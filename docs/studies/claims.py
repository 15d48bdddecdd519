"""Which findings of the paper hold, at which scale: takes results folders into the record, and writes docs/claims.md.

    python docs/studies/claims.py FOLDER...           takes folders into docs/claims/SCALE.json, and writes the page
    python docs/studies/claims.py                     writes the page from the record
    python docs/studies/claims.py --check FOLDER...   names what no longer holds; changes nothing

A folder replaces the figures that it holds judged on all their runs, and no others. The exit status is 1 where a figure
is refused, where docs/claims/causes.toml has no cause of a finding that holds at no scale, or one of another finding,
and with `--check` where a finding stopped holding.
"""

import argparse
import sys
import tomllib
from collections.abc import Collection, Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import claims_record
from claims_record import DEMO, Record, Row, Sweep, figures_of, rows_of, voted, words

from edgewise.lab.errors import StoreError
from edgewise.lab.recipes import PAPER
from edgewise.lab.report.page import markdown_cell

DOCS = Path(__file__).resolve().parents[1]
_PAGE = """\
# What came out

**{number} of {total} findings of the paper hold at {scales} scale.**
✗ marks what does not hold, as measured: a recipe is never bent until its claim holds.
[What the scales are](laboratory.md). `docs/studies/claims.py` writes this page from what results folders say.

{summary}

An empty cell has not been trained at that scale yet; – is not claimed there. Phase diagrams are of three seeds at
embedded scale, but for figure 19. Curves are of seed 0. Where others are named as well, trained by
`docs/studies/claim_seeds.py`, a finding holds if it does with most of them. Some findings of residual networks are
chance: [seven turned](lab-log.md#2026-11-30-what-all-figures-take-and-what-chance-decides) when rates
changed by 4·10⁻⁷, and 117 held.

{table}

## What holds at no scale

{causes}

## What `make demo` shows

Figures {demo_figures}, smaller still: {demo}.

{demo_table}
"""


def read_causes(docs: Path) -> list[dict[str, Any]]:
    """Return why findings hold at no scale: title, text, and figure → texts of its claims."""
    causes: list[dict[str, Any]] = tomllib.loads((docs / "claims" / "causes.toml").read_text("utf-8"))[
        "cause"
    ]
    return causes


def cause_faults(record: Record, causes: Iterable[dict[str, Any]]) -> list[str]:
    """Return a line for each finding that holds at no scale and has no cause, and for each cause of another."""
    open_ones = {
        (name, words(claims[0].text)): claims[0].text
        for name, rows in rows_of(record).items()
        for claims in (list(row.values()) for row in rows)
        if not any(claim.holds for claim in claims)
    }
    given = {(name, words(text)): text for cause in causes for name, text in _claims_of(cause)}
    return [
        f"{said}: {name}: {texts[name, key]}"
        for said, texts, others in (
            ("NO CAUSE in causes.toml", open_ones, given),
            ("LEFT in causes.toml, though it holds or is not claimed", given, open_ones),
        )
        for name, key in texts
        if (name, key) not in others
    ]


def _claims_of(cause: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, text) for name, texts in cause["claims"].items() for text in texts]


def page(record: Record, causes: Iterable[dict[str, Any]]) -> str:
    """Return docs/claims.md."""
    record = voted(record)
    scales = [scale for scale in record if scale != DEMO]
    rows = rows_of(record)
    all_rows = [list(row.values()) for its_rows in rows.values() for row in its_rows]
    demo = {DEMO: record.get(DEMO, [])}
    demo_rows = {
        name: [{DEMO: claim} for claim in its.claims] for name, its in figures_of(demo[DEMO]).items()
    }
    return _PAGE.format(
        number=sum(any(claim.holds for claim in claims) for claims in all_rows),
        total=len(all_rows),
        scales=" or ".join(scales),
        summary=_table(("scale", "hold", "figures", "trained"), [_summary(s, record[s]) for s in scales]),
        table=_table(("finding", "expected", *scales), _lines({s: record[s] for s in scales}, rows)),
        causes="\n\n".join(map(_cause, causes)),
        demo_figures=_listed(demo_rows),
        demo=_trained(demo[DEMO]),
        demo_table=_table(("finding", "expected", "measured"), _lines(demo, demo_rows)),
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _summary(scale: str, sweeps: Sequence[Sweep]) -> tuple[str, str, str, str]:
    """Return the line of a scale: how many of its claims hold, of which figures, and what they took."""
    figures = figures_of(sweeps)
    claims = [claim for figure in figures.values() for claim in figure.claims]
    hold = f"{sum(claim.holds for claim in claims)} of {len(claims)}"
    which = "all" if len(figures) == len(PAPER) else f"{_listed(figures)} so far"
    return f"`{scale}`", hold, which, _trained(sweeps)


def _listed(figures: Collection[str]) -> str:
    return ", ".join(name.removeprefix("fig") for name in figures)


def _trained(sweeps: Sequence[Sweep]) -> str:
    """Return how much was trained, how long it took, when, and with what."""
    minutes, beyond = (
        sum(sweep.minutes for sweep in sweeps),
        sum(sweep.beyond for sweep in sweeps),
    )
    took = f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.0f} hours"
    dates = sorted(sweep.date for sweep in sweeps)
    when = " to ".join(dict.fromkeys((*dates[:1], *dates[-1:])))
    versions = ", ".join(sorted({sweep.torch for sweep in sweeps}))
    left_out = f"; {beyond:,} more beyond their failure boundary were left out" if beyond else ""
    runs = f"{sum(sweep.runs for sweep in sweeps):,} runs, {took} by the clock one after the other"
    return f"{runs}, {when}, torch {versions}{left_out}"


def _lines(record: Record, rows: dict[str, list[Row]]) -> Iterable[list[str]]:
    """Yield the lines of a table: a figure's title, and its findings, a column for each scale."""
    trained = {scale: figures_of(sweeps) for scale, sweeps in record.items()}
    for name, its_rows in rows.items():
        title = next(figures[name].title for figures in trained.values() if name in figures)
        yield [f"**{name}: {markdown_cell(title)}**", *[""] * (1 + len(record))]
        for row in its_rows:
            yield [
                markdown_cell(beside({scale: claim.text for scale, claim in row.items()})),
                markdown_cell(beside({scale: claim.expected for scale, claim in row.items()})),
                *(_cell(row, scale, is_trained=name in figures) for scale, figures in trained.items()),
            ]


def _cell(row: Row, scale: str, *, is_trained: bool) -> str:
    if scale not in row:
        return "–" if is_trained else ""
    return f"{'✓' if row[scale].holds else '✗'} {markdown_cell(row[scale].measured)}"


def beside(texts: dict[str, str]) -> str:
    """Return the text of the first scale, with what others say in its place.

    >>> beside({"embedded": "at 80: larger", "desk": "at 160: larger"})
    'at 80 (desk: 160): larger'
    >>> beside({"embedded": "1 at 80", "desk": "2 at 160"})
    '1 at 80 (desk: 2 at 160)'
    """
    (_, first), *others = texts.items()
    told = [(scale, text) for scale, text in others if text != first]
    if len(told) == 1 and (place := _one_place(first, told[0][1])):
        before, here, there, after = place
        return f"{before}{here} ({told[0][0]}: {there}){after}"
    return first + "".join(f" ({scale}: {text})" for scale, text in told)


def _one_place(first: str, second: str) -> tuple[str, str, str, str] | None:
    """Return what is before, in either text, and after, if words differ in one place."""
    old, new = first.split(" "), second.split(" ")
    codes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changed = [places for kind, *places in codes if kind != "equal"]
    if len(changed) != 1:
        return None
    ((i, j, k, m),) = changed
    here, there = " ".join(old[i:j]), " ".join(new[k:m])
    if not (here and there):
        return None
    end = _common_end(here, there)
    before = "".join(f"{word} " for word in old[:i])
    after = "".join(f" {word}" for word in old[j:])
    return before, here.removesuffix(end), there.removesuffix(end), end + after


def _common_end(*texts: str) -> str:
    """Return the punctuation that both texts end with."""
    (first, second) = (text[len(text.rstrip(",:)")) :] for text in texts)
    return first if first == second else ""


def _cause(cause: dict[str, Any]) -> str:
    """Return the paragraph of a cause, and below it what it is of."""
    claims = [f"- {name}: {markdown_cell(text)}" for name, text in _claims_of(cause)]
    return f"**{cause['title']}** {cause['text'].strip()}\n\n" + "\n".join(claims)


def main(arguments: Sequence[str], docs: Path = DOCS) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=Path, help="a results folder")
    parser.add_argument("--check", action="store_true", help="compare with the record, and change nothing")
    given = parser.parse_args(arguments)
    record, faults, told = claims_record.read(docs), list[str](), list[str]()
    for folder in given.folders:
        try:
            scale, sweep, refused = claims_record.open_folder(folder)
        except StoreError as error:
            faults.append(f"REFUSED: {error}")
            continue
        faults += refused
        recorded = figures_of(record.get(scale, []))
        for name, figure in sweep.figures.items():
            lost, gained = claims_record.compare(f"{name} at {scale} scale", recorded.get(name), figure)
            (faults if given.check else told).extend(lost)
            told += gained
        if sweep.figures and not given.check:
            claims_record.take(record, scale, sweep)
    if not given.check:
        claims_record.write(docs, record)
        causes = read_causes(docs)
        (docs / "claims.md").write_text(page(record, causes), encoding="utf-8")
        faults += cause_faults(record, causes)
    for line in (*told, *faults):
        print(line)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
