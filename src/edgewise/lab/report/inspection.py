"""The page of an inspection: one self-contained HTML file, drawn from the plain dict that `as_dict` returns."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.lab.report import inspection_plots, self_contained
from edgewise.lab.results.documents import one_line

_MARKS = {"good": "✓", "notice": "!", "bad": "✗", "unknown": "?"}
_WORDS = {
    "good": "nothing to do",
    "notice": "worth a look",
    "bad": "to be changed",
    "unknown": "not measured",
}

_NEAR = 2.0  # factor within which a rate is as good as another

Result = Mapping[str, Any]


def page_of(result: Result) -> str:
    """Return the page.

    Args:
        result: what `InspectionResult.as_dict` returns, also read back from JSON.

    Returns:
        HTML that loads nothing, and runs nothing but its own scripts.
    """
    subject = result["subject"]
    body = self_contained.filled(
        "inspection.html",
        heading=_text(f"{subject['model']} with {subject['optimizer']}"),
        lead=_text(_lead(result)),
        cards=_cards(result),
        ruler=self_contained.plot("rates", _alternative(result), inspection_plots.ruler(result)),
        path=self_contained.plot(
            "trial",
            "The trial: its rate and loss over the updates, and how short runs ended by their rate",
            inspection_plots.trial(result),
        ),
        sections="".join(_section(result, key) for key in result["questions"]),
        evidence=self_contained.data("result", json.dumps(result, allow_nan=False)),
        provenance=_provenance(result),
    )
    return self_contained.page(one_line(f"edgewise inspect · {subject['model']}"), body)


def _alternative(result: Result) -> str:
    """Return what the first plot shows, in words."""
    rates = {
        "yours": result["lr"],
        "suggested": result["lr_suggested"],
        "largest that trains": result["lr_largest"],
    }
    said = ", ".join(f"{name} {_rate(value)}" for name, value in rates.items())
    return f"Learning rates on one axis: {said}. What is above the largest is shaded."


def _lead(result: Result) -> str:
    subject = result["subject"]
    where = f"{_count(subject['num_parameters'])} parameters in {', '.join(subject['dtypes'])} on {subject['device']}"
    how = f"Measured at one point and along trials worth {result['num_updates']} updates, in {result['seconds']:.0f} s"
    return f"{where}. {how}; nothing was changed."


def _count(number: int) -> str:
    """Return a number of parameters in few digits."""
    units = ((1e9, " billion"), (1e6, " million"))
    return next((f"{number / unit:.3g}{name}" for unit, name in units if number >= unit), f"{number:,}")


def _cards(result: Result) -> str:
    """Return the answers that are looked for first."""
    lr, steps = result["lr"], result["warmup_steps"]
    bound = "≥ " if any(line["evidence"].get("is_bound") for line in result["findings"]) else ""
    warmup = "unknown" if steps is None else f"{bound}{steps}" if steps else "none"
    how = "" if steps is None else "updates, linear" if steps else "from the first update on"
    cards = [
        ("suggested rate", _rate(result["lr_suggested"]), _beside(result["lr_suggested"], lr), "main"),
        ("largest that trains, about", _rate(result["lr_largest"]), _beside(result["lr_largest"], lr), ""),
        ("warmup", warmup, how, ""),
        ("your rate", _rate(lr), _verdict(result), ""),
    ]
    return "".join(
        f'<div class="card {kind}"><span>{_text(name)}</span><strong>{_text(value)}</strong>'
        f"<small>{_text(note)}</small></div>"
        for name, value, note, kind in cards
    )


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


def _beside(value: float | None, lr: float) -> str:
    if value is None:
        return ""
    ratio = value / lr
    return f"{ratio:.2g} × yours" if ratio < 99.5 else f"{ratio:,.0f} × yours"


def _verdict(result: Result) -> str:
    """Say of the rate that was given how it stands beside the one suggested."""
    lr, suggested, largest = result["lr"], result["lr_suggested"], result["lr_largest"]
    if largest is not None and lr > largest:
        return "expected to fail"
    if suggested is None:
        return ""
    ratio = lr / suggested
    if 1 / _NEAR <= ratio <= _NEAR:
        return "as good as the suggested one"
    return "higher than is best" if ratio > 1 else "lower than it bears"


def _section(result: Result, key: str) -> str:
    lines = [line for line in result["findings"] if line["question"] == key]
    if not lines:
        return ""
    shares = next((line["evidence"]["shares"] for line in lines if "shares" in line["evidence"]), None)
    bars = ""
    if shares:
        bars = self_contained.plot(
            "shares", "Parameters of the top eigenvector", inspection_plots.shares(shares)
        )
    fine = [line for line in lines if line["level"] == "good"] if key == "odd" else []
    shown = [line for line in lines if line not in fine]
    rest = "" if shown else "<p>Nothing that was looked for.</p>"
    if fine:
        rest += (
            f"<details><summary>{len(fine)} things that were looked for are in order</summary>"
            f"{_list(fine)}</details>"
        )
    return (
        f'<section id="{_text(key)}"><h2>{_text(result["questions"][key])}</h2>'
        f"{_list(shown)}{rest}{bars}</section>"
    )


def _list(lines: Sequence[Mapping[str, Any]]) -> str:
    return f'<ul class="findings">{"".join(map(_line, lines))}</ul>' if lines else ""


def _line(line: Mapping[str, Any]) -> str:
    level = line["level"] if line["level"] in _MARKS else "unknown"
    advice = f'<p class="advice">{_text(line["advice"])}</p>' if line["advice"] else ""
    return (
        f'<li class="{level}"><span class="mark" role="img" aria-label="{_WORDS[level]}">{_MARKS[level]}</span>'
        f'<div><p><b>{_text(line["name"])}</b> <span class="number">{_text(line["shown"])}</span></p>'
        f"<p>{_text(line['meaning'])}</p>{advice}</div></li>"
    )


def _provenance(result: Result) -> str:
    rows: Sequence[tuple[str, Any]] = list(result["subject"].items())
    body = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table><tbody>{body}</tbody></table>"


def _text(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return html.escape(one_line(str(value)))
