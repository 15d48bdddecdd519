"""What warmup gains over the distance from the edge, in plotly."""

import math

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from edgewise.lab.report import panels
from edgewise.lab.report.interactive import literal, styled
from edgewise.lab.results.gains import Gain


def points(shown: panels.Points) -> go.Figure:
    """Return a panel of points for each kind of gain; hollow ones gain no more than the tolerance."""
    down = -(-len(shown.panels) // panels.GAINS_ACROSS)
    figure = make_subplots(
        rows=down,
        cols=panels.GAINS_ACROSS,
        subplot_titles=list(map(literal, shown.panels)),
        shared_xaxes="all",
        horizontal_spacing=0.09,
        vertical_spacing=0.12,
    )
    for i, (panel, lines) in enumerate(shown.panels.items()):
        at = {"row": i // panels.GAINS_ACROSS + 1, "col": i % panels.GAINS_ACROSS + 1}
        for line in lines:
            figure.add_trace(_line(shown, panel, line), **at)
        figure.add_hline(y=shown.tolerances[panel], line={"color": "gray", "width": 1, "dash": "dot"}, **at)
        figure.add_vline(x=1, line={"color": "gray", "width": 1.2, "dash": "dash"}, **at)
        figure.update_yaxes(range=shown.ends(panel), **at)
    figure.update_xaxes(type="log", showticklabels=True, dtick=1, exponentformat="power")
    figure.update_xaxes(title_text=panels.DISTANCE, row=down)
    figure.update_yaxes(title_text=literal(shown.label), col=1)
    names = {"circle": "gains", "circle-open": "gains no more than the dotted line"}
    names |= {"triangle-up": "trains with warmup alone", "triangle-down": "trains without alone"}
    for symbol, name in names.items():
        look = {"color": "gray", "symbol": symbol, "size": 8}
        figure.add_trace(go.Scatter(x=[None], y=[None], name=name, mode="markers", marker=look))
    return styled(figure, height=330 * down + 150)


def _line(shown: panels.Points, panel: str, line: str) -> go.Scatter:
    found = shown.panels[panel][line]
    return go.Scatter(
        x=[gain.distance for gain in found],
        y=shown.heights(panel, line),
        name=literal(line),
        mode="markers",
        marker={
            "color": shown.colors[panel][line],
            "size": 8,
            "symbol": [_symbol(gain, shown.tolerances[panel]) for gain in found],
        },
        text=list(map(_words, found)),
        hovertemplate=f"{literal(line)}<br>distance %{{x:.3g}}<br>%{{text}}<extra></extra>",
    )


def _symbol(gain: Gain, tolerance: float) -> str:
    if math.isinf(gain.value):
        return "triangle-up" if gain.value > 0 else "triangle-down"
    return "circle" if gain.value > tolerance else "circle-open"


def _words(gain: Gain) -> str:
    ends = {math.inf: "trains with warmup alone", -math.inf: "trains without warmup alone"}
    what = ends.get(gain.value, f"gain {gain.value:+.3f}")
    return f"η {gain.target}, seed {gain.config.seed}<br>{what}"
