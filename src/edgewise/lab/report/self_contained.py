"""What self-contained pages are made of: a policy under which nothing but their own scripts run, and data as data."""

import base64
import gzip
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

import plotly.graph_objects as go

_HERE = Path(__file__).parent
PLOTLY = _HERE / "vendor" / "plotly-cartesian.min.js"
"""Plotly's own bundle of the traces that a page needs, from the package plotly.js-cartesian-dist-min 4.1.1 of npm."""


def page(title: str, body: str) -> str:
    """Return a whole page around a body: one file that holds all it needs.

    Args:
        title: as text.
        body: HTML, from `filled`.
    """
    plotly, script = PLOTLY.read_text(encoding="utf-8"), _read("page.js")
    parts = {"style": _read("page.css"), "title": html.escape(title), "body": body}
    return filled(
        "shell.html",
        **parts,
        plotly=packed("plotly", plotly),
        script=script,
        policy=policy([plotly, script]),
    )


def filled(template: str, **parts: str) -> str:
    """Return a template of this folder with its places filled, each with HTML."""
    return Template(_read(template)).substitute(parts)


def policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy under which a browser runs these scripts, and loads nothing."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        "script-src " + " ".join(f"'sha256-{value}'" for value in hashes)
    )


def data(name: str, content: str) -> str:
    """Return JSON as a part of the page that nothing in it can end."""
    escaped = content.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{escaped}</script>'


def packed(name: str, content: str) -> str:
    """Return a text as a part of the page that page.js unpacks, in a fifth to half of its bytes: gzip, as base64."""
    binary = gzip.compress(content.encode(), mtime=0)
    return f'<script type="application/gzip" id="{name}">{base64.b64encode(binary).decode()}</script>'


def plot(name: str, alternative: str, figure: go.Figure) -> str:
    """Return a place for a plot, and its content as data: page.js draws it.

    Args:
        name: of the place.
        alternative: what is to be seen, for those who do not see it.
        figure: the plot.
    """
    return (
        f'<div class="plot" role="group" tabindex="0" aria-label="{html.escape(alternative)}">'
        f'<div id="{name}"></div></div>'
        '<p class="hint">Wider than the screen: swipe it sideways.</p>'
        f"{packed(f'content-{name}', figure.to_json())}"
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
