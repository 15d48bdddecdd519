"""What a results folder is to hold: `sweep.json`, with its own checksum."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewise.lab.errors import DamagedError, StoreError
from edgewise.lab.results.files import Folder, is_plain, sealed, unsealed
from edgewise.lab.results.run_folder import RUNS, is_run_id

SCHEMA = 1
NAME = "sweep.json"
_UNSEALED = {"schema", "figures", "beyond", "recipe_file", "provenance"}  # keys of one without a checksum


@dataclass(frozen=True, kw_only=True)
class FigureRuns:
    """Which runs a figure is made of."""

    figure: str  # recipe id
    scale: str
    run_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Index:
    """What `sweep.json` says."""

    figures: tuple[FigureRuns, ...]
    provenance: dict[str, str]
    beyond: frozenset[str] = frozenset()  # beyond the failure boundary: the figures do without these runs
    unchecked: frozenset[str] | None = None  # runs that lack checksums; None: any may, none had them then
    recipe_file: Path | None = None


def read(folder: Folder) -> Index:
    """Return what is in the folder's index, which may come from anybody.

    Raises:
        DamagedError: it is no index, or not as it was written.
        StoreError: there is none, or one of another schema.
    """
    try:
        text = folder.read(NAME)
    except DamagedError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise StoreError(
                f"{folder.path} holds no results (no {NAME}): make some with edgewise demo or edgewise figure."
            ) from None
        raise
    try:
        content, is_sealed = unsealed(text)
        if (schema := content["schema"]) == SCHEMA:
            return _index(content, is_sealed)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"{folder.path / NAME} was not written by edgewise, or is damaged ({error}): run the command that made it "
            "again, or choose another folder."
        ) from error
    raise StoreError(
        f"{folder.path} was written with schema {schema}, this edgewise reads schema {SCHEMA}: "
        "use the version that wrote it, or run again into a new folder."
    )


def write(folder: Folder, index: Index) -> None:
    """Write the folder's index.

    Raises:
        OSError: it cannot be written; what was there before still is.
        StoreError: a symlink.
    """
    content = {
        "schema": SCHEMA,
        "figures": [dataclasses.asdict(figure) for figure in index.figures],
        "beyond": sorted(index.beyond),
        "unchecked": sorted(index.unchecked or ()),
        "recipe_file": str(index.recipe_file) if index.recipe_file else None,
        "provenance": index.provenance,
    }
    folder.write(sealed(content), NAME)


def to_continue(folder: Folder, figures: tuple[FigureRuns, ...]) -> Index | None:
    """Return the index of a folder that may be continued for these figures; None where one is to be written.

    That is in a new folder, and where the index is gone or damaged but the runs are of these figures.

    Raises:
        StoreError: the folder holds something else.
    """
    path = folder.path
    if os.path.lexists(path / NAME):
        try:
            existing = read(folder)
        except DamagedError:
            if _holds_runs_of(folder, figures) or _is_empty(path / NAME):
                return None
            raise
        if set(map(_content, existing.figures)) != set(map(_content, figures)):
            raise StoreError(
                f"{path} holds other results ({_summary(existing.figures)}; wanted {_summary(figures)}): "
                "choose another folder with --out, or delete this one."
            )
        return existing
    shown = os.path.lexists(path) and (
        not path.is_dir() or any(not name.startswith(".") for name in folder.names())
    )
    if shown and not _holds_runs_of(folder, figures):
        raise StoreError(f"{path} exists and holds no edgewise results: choose another folder with --out.")
    return None


def _index(content: dict[str, Any], is_sealed: bool) -> Index:
    if not is_sealed and content.keys() - _UNSEALED:
        raise ValueError("its checksum is gone")
    figures = tuple(FigureRuns(**f | {"run_ids": tuple(f["run_ids"])}) for f in content["figures"])
    beyond, unchecked = content.get("beyond", []), content.get("unchecked")
    for run_id in [*beyond, *(unchecked or ()), *(i for figure in figures for i in figure.run_ids)]:
        if not is_run_id(run_id):
            raise ValueError(f"{run_id!r} is no run id")
    for figure in figures:
        if not (is_plain(figure.figure) and is_plain(figure.scale)):  # they name files
            raise ValueError(f"{figure.figure!r} at scale {figure.scale!r} is no figure")
    recipe_file = content.get("recipe_file")
    return Index(
        figures=figures,
        provenance={str(name): str(value) for name, value in content["provenance"].items()},
        beyond=frozenset(beyond),
        unchecked=None if unchecked is None else frozenset(unchecked),
        recipe_file=Path(recipe_file) if recipe_file else None,
    )


def _holds_runs_of(folder: Folder, figures: tuple[FigureRuns, ...]) -> bool:
    """Whether there are runs, and all of these figures."""
    found = {name for name in folder.names(RUNS) if not name.startswith(".")}
    return bool(found) and found <= {run_id for figure in figures for run_id in figure.run_ids}


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _content(figure: FigureRuns) -> tuple[str, str, frozenset[str]]:
    return figure.figure, figure.scale, frozenset(figure.run_ids)


def _summary(figures: tuple[FigureRuns, ...]) -> str:
    return ", ".join(f"{f.figure} at scale {f.scale} with {len(f.run_ids)} runs" for f in figures)
