"""All figures at a glance: what they show, how long they take, and what of them lies in the results folders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgewise.lab.errors import StoreError
from edgewise.lab.recipes import RECIPES
from edgewise.lab.recipes.costs import about
from edgewise.lab.results.store import Store


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure."""

    figure: str
    title: str
    takes: str  # about so long at embedded scale, on two cores
    trained: str  # scale by scale: all of it, or how much; empty if nothing is


def rows(runs: Path) -> list[Row]:
    """Return all figures in their order, with what is trained of them in the folders below `runs`."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for figure, scale, done, wanted in _stored(runs):
        best = found.setdefault(figure, {})
        if done / wanted >= (best[scale][0] / best[scale][1] if scale in best else 0):
            best[scale] = done, wanted
    return [
        Row(figure=name, title=its.title, takes=about(name), trained=_words(found.get(name, {})))
        for name, its in RECIPES.items()
    ]


def _stored(runs: Path) -> Iterator[tuple[str, str, int, int]]:
    """Yield figure, scale, and of how many runs how many are trained, or need not be, for each results folder."""
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        try:
            store = Store.open(folder)
            behind = store.runs.finished() | store.beyond
        except StoreError:
            continue  # none, or a damaged one, of which `edgewise status` tells
        for figure in store.figures:
            if figure.run_ids:
                yield figure.figure, figure.scale, len(behind & set(figure.run_ids)), len(set(figure.run_ids))


def _words(trained: dict[str, tuple[int, int]]) -> str:
    parts = [
        scale if done == wanted else f"{scale} {done}/{wanted}"
        for scale, (done, wanted) in trained.items()
        if done
    ]
    return ", ".join(parts)
