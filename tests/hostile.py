"""Results folders that want to run a script in the reader's browser, or to confuse it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgewise.lab.report import presentation
from edgewise.lab.results import documents, index
from edgewise.lab.results.store import Store
from lab_cases import stored, story

SCRIPT = "window.owned = (window.owned || 0) + 1"
HOSTILE = (
    f"</script><script>{SCRIPT}</script>",
    f"<script>{SCRIPT}</script>",
    f'"><img src=x onerror="{SCRIPT}">',
    f"' onmouseover='{SCRIPT}' x='",
    f'<a href="javascript:{SCRIPT}">a</a><svg onload="{SCRIPT}">',
    '\\u003c/script>"}]\\',
    "<!-- <script>",
    "%{x} $a$ ${b} `c` \u2028 \r\n \ud800 \x00",
    "__proto__",
)


def spoiled(value: Any, text: str) -> Any:
    """Plain values with a text appended to every one that a reader sees."""
    if isinstance(value, str):
        return value + text
    if isinstance(value, list):
        return [spoiled(v, text) for v in value]
    if isinstance(value, dict):
        kept = ("kind", "entry", "column") if isinstance(value.get("column", ""), str) else ("kind",)
        return {k: v if k in kept else spoiled(v, text) for k, v in value.items()}
    return value


def spoil(path: Path, text: str) -> None:
    """Append a text to whatever a results folder says, as somebody could who sends it, checksums and all."""
    store = Store.open(path)
    content, findings = (
        documents.read(store, name) for name in (presentation.PRESENTATION, presentation.FINDINGS)
    )
    in_id = re.sub(r"[/\\\x00]", "", text)  # an id with one of these is refused
    figures = {name + in_id: spoiled(figure, text) for name, figure in content["figures"].items()}
    documents.write(store, presentation.PRESENTATION, content | {"figures": figures})
    judged = {
        name + in_id: its | {"claims": spoiled(its["claims"], text), "error": text}
        for name, its in findings.items()
    }
    documents.write(store, presentation.FINDINGS, judged)
    spoiled_figures = tuple(
        replace(figure, figure=figure.figure + in_id, scale=figure.scale + in_id) for figure in store.figures
    )
    provenance = {"note": text, text: "note"}
    index.write(
        store.folder, replace(index.read(store.folder), figures=spoiled_figures, provenance=provenance)
    )


def hostile_store(path: Path, text: str) -> Store:
    """A folder with the text wherever a reader sees one; of two figures a run is missing."""
    store = stored(path, {figure: story(figure) for figure in ("fig2", "fig4", "table1")})
    lost = store.figures[0].run_ids[0], store.figures[1].run_ids[0]
    for run_id in lost:
        shutil.rmtree(path / "runs" / run_id)
    store.failures.add(lost[0], f"Traceback\nValueError: {text.encode(errors='replace').decode()}")
    spoil(path, text)
    return Store.open(path)
