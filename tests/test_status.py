"""Codes of results for trackers that take numbers only.

Oracle: the table itself, written out a second time: a code in somebody's stored runs keeps its meaning.
"""

import math
import re
from pathlib import Path

import pytest

from edgewise import Status
from edgewise.monitor.regime import REGIME_CODES
from edgewise.status import flat_metrics

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "results.md"
STATUS_CODES = {
    10: "CONVERGED",
    11: "NOT_FINITE",
    20: "FOUND",
    21: "MULTIPLE_CROSSINGS",
    22: "ABOVE_MAX_LR",
    23: "NO_CATAPULT",
    24: "BELOW_RESOLUTION",
    25: "NOT_A_DESCENT_DIRECTION",
    26: "SCALED_GRADIENT",
    27: "OTHER_GRADIENT",
    30: "EXACT",
    31: "NO_LINEAR_LIMIT",
    32: "NO_PRECONDITIONER",
    40: "UNDER_WAY",
    41: "AT_TARGET",
    42: "HELD_BELOW_TARGET",
    43: "FELL_BACK",
    50: "BUDGET_EXHAUSTED",
}
REGIMES = {
    0: "unknown",
    1: "sharpness reduction",
    2: "constant",
    3: "progressive sharpening",
    4: "edge of stability",
}


def test_the_code_of_a_status_is_its_own_and_stays():
    assert {status.code: status.name for status in Status} == STATUS_CODES
    assert len({status.code for status in Status}) == len(Status)


def test_the_code_of_a_regime_is_its_own_and_stays():
    assert {code: name for name, code in REGIME_CODES.items()} == REGIMES


def test_the_reference_has_every_code():
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", REFERENCE.read_text(encoding="utf-8"), flags=re.M)
    assert {int(code): name for code, name in rows if name.isupper()} == STATUS_CODES
    assert {int(code): name for code, name in rows if not name.isupper()} == REGIMES


def test_numbers_stay_what_they_are_and_the_rest_is_left_out():
    values = {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": None,
        "e": "words",
        "f": math.nan,
        "g": math.inf,
        "h": {"i": 1},
    }
    flat = flat_metrics(values, "p/")
    assert flat == {"p/a": 1, "p/b": 0.5, "p/c": 1, "p/g": math.inf}
    assert [type(value) for value in flat.values()] == [int, float, int, float]


@pytest.mark.parametrize("prefix", [None, 3, b"edgewise/"])
def test_a_prefix_that_is_no_str_is_refused(prefix):
    with pytest.raises(TypeError, match="prefix must be a str, such as"):
        flat_metrics({}, prefix)
