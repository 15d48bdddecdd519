"""What came out of the paper's findings, as docs/claims/SCALE.json has it; the command is `claims.py`."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgewise.lab.recipes import PAPER, RECIPES, SCALES, Claim
from edgewise.lab.report import presentation
from edgewise.lab.report.figures import FigureResults
from edgewise.lab.results.documents import one_line
from edgewise.lab.results.store import Store

DEMO = SCALES[0]  # has a table of its own, and no part in the count


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the paper with its findings, as they were judged."""

    title: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was taken from a results folder. Its numbers stay when some of its figures are trained anew elsewhere."""

    date: str  # on which it was begun
    torch: str
    runs: int
    beyond: int  # runs beyond the failure boundary, not trained
    minutes: float  # of all runs by the clock, one after the other, whatever else the machine did
    figures: dict[str, Figure]


# Scale, or scale and another seed → sweeps, the newest last; a figure is in one of them.
Record = dict[str, list[Sweep]]
Key = tuple[str, int]  # the words of a claim, and how many claims of its figure before it have the same
Row = dict[str, Claim]  # scale → what one finding came to there


def read(docs: Path) -> Record:
    """Return what docs/claims/ says, of the scales and seeds that it has."""
    found = {file.stem for file in (docs / "claims").glob("*.json")}
    return {
        scale: [_sweep(data) for data in json.loads(_file(docs, scale).read_text(encoding="utf-8"))]
        for scale in (*(scale for scale in SCALES if scale in found), *sorted(found.difference(SCALES)))
    }


def _file(docs: Path, scale: str) -> Path:
    return docs / "claims" / f"{scale}.json"


def _sweep(data: dict[str, Any]) -> Sweep:
    figures = {
        name: Figure(title=figure["title"], claims=tuple(Claim(**claim) for claim in figure["claims"]))
        for name, figure in data["figures"].items()
    }
    return Sweep(**data | {"figures": figures})


def write(docs: Path, record: Record) -> None:
    """Write a file for each scale, a value on each line, so that a difference shows what has changed."""
    for scale, sweeps in record.items():
        text = json.dumps([asdict(sweep) for sweep in sweeps], ensure_ascii=False, indent=1)
        _file(docs, scale).write_text(text + "\n", encoding="utf-8")


def seeded(scale: str, seed: int) -> str:
    """Return the name of a scale whose figures of single runs are trained with another seed.

    >>> seeded("embedded", 1), scale_and_seed("embedded-seed-1"), scale_and_seed("desk")
    ('embedded-seed-1', ('embedded', 1), ('desk', 0))
    """
    return f"{scale}-seed-{seed}"


def scale_and_seed(name: str) -> tuple[str, int]:
    """Return the scale and the seed of a name; 0 is that of the recipes, and not named."""
    scale, _, seed = name.partition("-seed-")
    return (scale, int(seed)) if seed.isdecimal() and int(seed) else (name, 0)


def voted(record: Record) -> Record:
    """Return the record of the scales, in which claims that were judged with other seeds hold if they do with most.

    With as many that hold as do not, a claim does not.
    """
    return {
        scale: [
            replace(
                sweep,
                figures={name: _voted(record, scale, name, figure) for name, figure in sweep.figures.items()},
            )
            for sweep in sweeps
        ]
        for scale, sweeps in record.items()
        if scale in SCALES
    }


def _voted(record: Record, scale: str, name: str, figure: Figure) -> Figure:
    others = {
        seed: by_words(figures_of(sweeps)[name].claims)
        for its, sweeps in record.items()
        for own, seed in [scale_and_seed(its)]
        if seed and own == scale and name in figures_of(sweeps)
    }
    found = []
    for key, claim in by_words(figure.claims).items():
        votes = {seed: claims[key].holds for seed, claims in others.items() if key in claims}
        found.append(_with_votes(claim, votes) if votes else claim)
    return replace(figure, claims=tuple(found))


def _with_votes(claim: Claim, votes: dict[int, bool]) -> Claim:
    marks = ", ".join(f"{seed} {'✓' if holds else '✗'}" for seed, holds in {0: claim.holds, **votes}.items())
    return replace(
        claim,
        measured=f"{claim.measured} (seeds {marks})",
        holds=2 * sum((claim.holds, *votes.values())) > 1 + len(votes),
    )


def figures_of(sweeps: Iterable[Sweep]) -> dict[str, Figure]:
    """Return all figures of a scale, in the paper's order."""
    found = {name: figure for sweep in sweeps for name, figure in sweep.figures.items()}
    return {name: found[name] for name in PAPER if name in found}


def open_folder(path: Path) -> tuple[str, Sweep, list[str]]:
    """Return the scale of a results folder, what is to be taken from it, and a line for each figure that is not.

    Raises:
        StoreError: it is no results folder, or cannot be read.
    """
    store = Store.open(path)
    taken, refused, beyond = [], [], set[str]()
    for planned, shown in zip(store.figures, presentation.read(store), strict=True):
        if why := _refusal(shown, planned.run_ids):
            refused.append(f"REFUSED: {shown.id} of {path}: {why}")
        else:
            taken.append(shown)
            beyond |= store.beyond.intersection(planned.run_ids)
    seconds = {run.config: run.outcome["seconds"] for shown in taken for run in shown.finished}
    sweep = Sweep(
        date=one_line(store.provenance["started"])[:10],
        torch=one_line(store.provenance["torch"]),
        runs=len(seconds),
        beyond=len(beyond),
        minutes=round(sum(seconds.values()) / 60, 1),
        figures={shown.id: Figure(title=shown.title, claims=shown.claims) for shown in taken},
    )
    return one_line(store.figures[0].scale), sweep, refused


def _refusal(shown: FigureResults, run_ids: Sequence[str]) -> str:
    """Return why a figure is not to be taken, or nothing."""
    if shown.id not in PAPER:
        return "it is none of the paper's figures."
    scale, seed = scale_and_seed(shown.scale)
    if scale not in SCALES:
        return f"its scale is {shown.scale!r}, none of {', '.join(SCALES)}."
    configs = RECIPES[shown.id].configs(scale)
    if {(replace(config, seed=seed) if seed else config).run_id for config in configs} != set(run_ids):
        return "its settings are not those of its recipe today: train it again, in a new folder."
    return shown.note


def take(record: Record, scale: str, sweep: Sweep) -> None:
    """Put a sweep into the record; its figures are no longer those of the sweeps before."""
    left = [
        replace(old, figures={name: old.figures[name] for name in old.figures if name not in sweep.figures})
        for old in record.get(scale, [])
    ]
    record[scale] = [*(old for old in left if old.figures), sweep]


def words(text: str) -> str:
    """Return a claim's text without its numbers, which may be those of a scale.

    >>> words("SP, T_wrm = 64, 200: trains")
    'SP T_wrm = trains'
    """
    return " ".join(word.strip(",:;()") for word in text.split() if not re.search(r"\d", word))


def by_words(claims: Iterable[Claim]) -> dict[Key, Claim]:
    """Return the claims of a figure by what they have in common at every scale."""
    found: dict[Key, Claim] = {}
    for claim in claims:
        own = words(claim.text)
        found[own, sum(own == other for other, _ in found)] = claim
    return found


def rows_of(record: Record) -> dict[str, list[Row]]:
    """Return figure → its findings, each at all scales that claim it, by all seeds; without the demo's."""
    rows: dict[str, dict[Key, Row]] = {name: {} for name in PAPER}
    for scale, sweeps in voted(record).items():
        if scale != DEMO:
            for name, figure in figures_of(sweeps).items():
                for key, claim in by_words(figure.claims).items():
                    rows[name].setdefault(key, {})[scale] = claim
    return {name: list(found.values()) for name, found in rows.items() if found}


def compare(where: str, then: Figure | None, now: Figure) -> tuple[list[str], list[str]]:
    """Return what a figure lost since it was recorded, and what there is to be taken into the record."""
    if then is None:
        return [], [f"new: {where}: {sum(claim.holds for claim in now.claims)} of {len(now.claims)} hold"]
    old, new = by_words(then.claims), by_words(now.claims)
    lost, gained = [], []
    for key, claim in old.items():
        if key not in new:
            lost.append(_difference("NO LONGER CLAIMED", where, claim, claim.measured, "nothing"))
        elif claim.holds and not new[key].holds:
            lost.append(_difference("NO LONGER HOLDS", where, new[key], claim.measured, new[key].measured))
    for key, claim in new.items():
        if key not in old:
            said = "new, and holds" if claim.holds else "new, and does not hold"
            gained.append(_difference(said, where, claim, "nothing", claim.measured))
        elif claim.holds and not old[key].holds:
            gained.append(_difference("holds now", where, claim, old[key].measured, claim.measured))
    return lost, gained


def _difference(what: str, where: str, claim: Claim, then: str, now: str) -> str:
    return f"{what}: {where}: {claim.text}\n    expected: {claim.expected}\n    then: {then}\n    now: {now}"
