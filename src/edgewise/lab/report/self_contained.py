"""What self-contained pages are made of: a policy under which nothing but their own scripts run, and data as data."""

import base64
import hashlib
import html
from collections.abc import Sequence

import plotly.graph_objects as go


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


def plot(name: str, title: str, figure: go.Figure) -> str:
    """Return a place for a plot, and its content as data: page.js draws it."""
    return (
        f'<div class="plot" role="img" aria-label="{html.escape(title)}"><div id="{name}"></div></div>'
        f"{data(f'content-{name}', figure.to_json())}"
    )
