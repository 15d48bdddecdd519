"""The plots of an inspection's page, in plotly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from edgewise.lab.report import colors
from edgewise.lab.report.interactive import literal

Result = Mapping[str, Any]

_BUTTONS = 40  # pixels above a plot that its buttons take, which a touch screen shows all the time
_MOST_BARS, _SMALLEST_BAR = 10, 0.005  # parameters that are drawn, and the share from which one is


def ruler(result: Result) -> go.Figure:
    """Return every rate that was measured on one axis, what is too high shaded."""
    figure = go.Figure()
    rows = _rates(result)
    for name, value, interval, color in rows:
        low, high = interval or (value, value)
        figure.add_trace(
            go.Scatter(
                x=[value],
                y=[name],
                mode="markers+text",
                text=[f"  {value:.2g}"],
                textposition="top center" if interval else "middle right",
                marker={"color": color, "size": 13, "symbol": "diamond" if name == "your rate" else "circle"},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - value],
                    "arrayminus": [value - low],
                    "thickness": 2,
                    "width": 5,
                },
                hovertemplate=f"{literal(name)}<br>%{{x:.3g}}<extra></extra>",
            )
        )
    everything = [
        bound for _, value, interval, _ in rows for bound in (value, *(interval or ())) if bound > 0
    ]
    right = max(everything) * 6
    if (largest := result["lr_largest"]) is not None:
        figure.add_vrect(
            x0=largest,
            x1=right,
            fillcolor=colors.VERMILLION,
            opacity=0.1,
            line_width=0,
        )
        figure.add_annotation(
            x=1,
            y=1,
            xref="paper",
            yref="paper",
            text="expected to fail",
            showarrow=False,
            yanchor="bottom",  # above the rates, of which one may be there
        )
    styled(figure, height=102 + 44 * len(rows))
    figure.update_layout(showlegend=False, margin={"l": 190})
    figure.update_xaxes(type="log", title_text="learning rate")
    figure.update_xaxes(autorange=False, range=[math.log10(min(everything) / 3), math.log10(right)])
    figure.update_yaxes(autorange="reversed", ticksuffix="  ", showgrid=False)
    return figure


def _rates(result: Result) -> list[tuple[str, float, tuple[float, float] | None, str]]:
    """Return name, value, interval and colour of each rate that is known."""
    evidence = {line["name"]: line["evidence"] for line in result["findings"] if line["level"] != "unknown"}
    edge = evidence.get("rate × preconditioned sharpness", {}).get("lr_at_edge")
    critical = evidence.get("critical rate of the coming update", {})
    largest, within = result["lr_largest"], evidence.get("largest rate that trains", {}).get("within")
    spread = [largest / within, largest * within] if largest and within else None
    found: list[tuple[str, float | None, Any, str]] = [
        ("your rate", result["lr"], None, colors.BLUE),
        ("suggested", result["lr_suggested"], None, colors.GREEN),
        ("largest that trains, about", largest, spread, colors.VERMILLION),
        ("edge of stability here", edge, None, colors.GRAY),
        ("critical rate, coming update", critical.get("lr"), critical.get("interval"), colors.GRAY),
    ]
    return [
        (name, value, tuple(interval) if interval and all(interval) else None, color)
        for name, value, interval, color in found
        if value is not None and value > 0
    ]


def trial(result: Result) -> go.Figure:
    """Return the trial's path, rate and loss of each update, and beside it how its short runs ended."""
    figure = make_subplots(
        rows=1,
        cols=2,
        specs=[[{"secondary_y": True}, {}]],
        horizontal_spacing=0.22,
        subplot_titles=[
            "the rate rises as the loss allows",
            "short runs from there, by highest rate",
        ],
    )
    figure.update_annotations(yshift=6)  # above a tick at the top of an axis
    path = result["trial"]["path"] or {"lr": [], "loss": []}
    for name, values, color, dash in (
        ("loss of the batch", path["loss"], colors.BLUE, "solid"),
        ("learning rate", path["lr"], colors.VERMILLION, "dot"),
    ):
        line = {"color": color, "width": 1.9, "dash": dash}
        figure.add_trace(_curve(values, name, line), row=1, col=1, secondary_y=name == "learning rate")
    runs = sorted(result["trial"]["runs"], key=lambda run: run["lr"])
    figure.add_trace(_ends(runs), row=1, col=2)
    styled(figure, height=410)
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"}, margin={"t": _BUTTONS + 24, "b": 84})
    figure.update_xaxes(title_text="update", col=1)
    figure.update_xaxes(title_text="learning rate", type="log", col=2)
    figure.update_yaxes(title_text="loss", col=1, secondary_y=False)
    figure.update_yaxes(title_text="loss in the end", col=2)
    if result["lr_suggested"] is not None and runs:
        figure.add_vline(
            x=result["lr_suggested"], line={"color": colors.GREEN, "width": 1.6, "dash": "dash"}, row=1, col=2
        )
        figure.add_annotation(
            x=math.log10(result["lr_suggested"]),
            y=1,
            xref="x2",
            yref="y3 domain",
            text="suggested",
            showarrow=False,
            xanchor="left",
            xshift=4,
        )
    figure.update_yaxes(title_text="rate", title_standoff=4, row=1, col=1, secondary_y=True)
    figure.update_yaxes(type="log", showgrid=False, row=1, col=1, secondary_y=True)
    return figure


def _ends(runs: Sequence[Mapping[str, Any]]) -> go.Scatter:
    """Return the losses in which runs ended over their rates; where one is not finite there is a gap."""
    return go.Scatter(
        x=[run["lr"] for run in runs],
        y=[run["final"] for run in runs],
        name="loss after a short run",
        showlegend=False,
        mode="lines+markers",
        line={"color": colors.PINK, "width": 1.9},
        marker={"size": 9},
        hovertemplate="up to %{x:.3g}<br>loss %{y:.4g}<extra></extra>",
    )


def _curve(values: Sequence[float | None], name: str, line: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=list(range(len(values))),
        y=values,
        name=name,
        mode="lines",
        line=line,
        hovertemplate=f"{name}<br>update %{{x}}<br>%{{y:.3g}}<extra></extra>",
    )


def shares(by_parameter: Mapping[str, float]) -> go.Figure:
    """Return the parameters that hold the most of the top eigenvector."""
    top = [item for item in by_parameter.items() if item[1] >= _SMALLEST_BAR][:_MOST_BARS]
    figure = go.Figure(
        go.Bar(
            x=[share for _, share in top],
            y=[literal(name) for name, _ in top],
            orientation="h",
            marker={"color": colors.BLUE},
            text=[f"{share:.0%}" for _, share in top],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}<br>%{x:.1%}<extra></extra>",
        )
    )
    styled(figure, height=102 + 26 * len(top))
    figure.update_layout(showlegend=False, margin={"t": _BUTTONS, "r": 60})
    figure.update_xaxes(title_text="share of the top eigenvector", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix="  ", showgrid=False)
    return figure


def styled(figure: go.Figure, *, height: int) -> None:
    """Give a figure the look of the report."""
    figure.update_layout(
        height=height,
        margin={"l": 64, "r": 20, "t": _BUTTONS + 16, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "gray"},
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,0.25)", zeroline=False)
