"""The scalar searches for a first rise.

Ladder: closed forms (power laws, whose root is known) → any monotone mean slope by property → curves that mislead:
walls, plateaus, several crossings, slopes that are not the loss's. Cannot see: rises between two rates that were tried.
"""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgewise.critical.methods import Line, Trace, check_gradient, paper_search, secant_search
from edgewise.status import Status

SEARCHES = [secant_search, paper_search]


def power_law(root=1.0, exponent=1.0, slope=-1.0):
    return lambda lr: slope * lr * (1 - (lr / root) ** exponent)


@pytest.mark.parametrize("search", SEARCHES)
@given(
    root=st.floats(1e-6, 1e6),
    exponent=st.floats(0.25, 4),
    off=st.floats(-4, 4),
    rtol=st.floats(1e-4, 1),
)
def test_the_bracket_holds_the_root_of_any_power_law(search, root, exponent, off, rtol):
    trace, status = search(power_law(root, exponent), Line(slope=-1.0, rtol=rtol), root * 10**off)
    assert status is Status.FOUND
    assert trace.low <= root * (1 + 1e-9)
    assert trace.high >= root * (1 - 1e-9)
    assert trace.high / trace.low - 1 <= rtol * (1 + 1e-9)
    assert trace.seen[trace.low] <= 0 < trace.seen[trace.high] == trace.rise


@given(exponent=st.floats(0.5, 3), off=st.floats(-2, 2))
@example(exponent=1.0, off=0.0)
def test_with_the_exponent_known_three_evaluations_do(exponent, off):
    """The first gives the root, the next two stand on its sides; from within rtol of it, two do."""
    line = Line(slope=-1.0, exponent=exponent)
    trace, _ = secant_search(power_law(exponent=exponent), line, 10**off)
    allowed = 2 if abs(off) < math.log10(17 / 16) * 0.9 else 3
    if abs(off) > 1.4:  # more than a jump away
        allowed += 1
    assert len(trace.seen) <= allowed
    assert trace.final_exponent() == pytest.approx(exponent, rel=0.1)


CURVES = {
    "saturating": lambda x: x * (1 - math.exp(-x)) / (1 - math.exp(-1)) - x,
    "exponential": lambda x: math.expm1(min(x, 700)) - x * math.expm1(1),
    "wall": lambda x: math.inf if x > 1 else -x,
    "NaN beyond": lambda x: math.nan if x > 1 else -x,
    "wall behind a well": lambda x: math.inf if x > 1.5 else x * (x - 1),
    "falls faster first": lambda x: x * (x - 1) * (1 + 3 * x),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("off", [1e-3, 0.1, 0.9, 1.1, 7.0, 1e3])
@pytest.mark.parametrize("name", CURVES)
def test_curves_that_mislead_are_bracketed_all_the_same(name, off, search):
    curve = CURVES[name]
    slope = curve(1e-6) / 1e-6
    trace, status = search(curve, Line(slope=slope), off)
    assert status is Status.FOUND
    assert trace.low <= 1 + 1e-9
    assert trace.high >= 1 - 1e-9
    assert trace.high / trace.low <= 17 / 16
    assert len(trace.seen) <= 20


@pytest.mark.parametrize("clipped", [0.5, 0.1, 0.01])
def test_a_clipped_slope_costs_little_and_is_no_fault(clipped):
    line = Line(slope=-clipped)
    for first in (0.93, 1.0, 1.05):
        trace, status = secant_search(power_law(), line, first)
        assert status is Status.FOUND
        assert len(trace.seen) <= 7
        assert check_gradient(trace) is None


@pytest.mark.parametrize("first", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("scale", [2**8, 2**16])
def test_a_loss_scale_is_recognised(scale, first):
    trace, status = secant_search(power_law(), Line(slope=-1.0 * scale, resolution=1e-9), first)
    num = len(trace.seen)
    assert status is Status.FOUND
    assert trace.low <= 1 <= trace.high
    assert check_gradient(trace) is Status.SCALED_GRADIENT
    assert len(trace.seen) <= num + 1


@pytest.mark.parametrize("share", [0.1, 0.03, 1 / 300])
def test_a_slope_much_too_steep_is_another_loss_s(share):
    trace, _ = secant_search(power_law(), Line(slope=-1.0 / share, resolution=1e-9), 1.0)
    assert check_gradient(trace) is Status.OTHER_GRADIENT


def test_a_loss_that_rises_at_once_has_another_gradient():
    trace, status = secant_search(lambda lr: lr + lr**2, Line(slope=-1.0, resolution=1e-9), 1.0)
    assert status is Status.BELOW_RESOLUTION
    assert trace.low == 0
    assert check_gradient(trace) is Status.OTHER_GRADIENT


@pytest.mark.parametrize("exponent", [0.5, 1, 2, 3])
def test_a_slope_of_the_loss_s_own_is_not_doubted(exponent):
    for first in (1e-3, 1.0, 1e3):
        trace, _ = secant_search(power_law(exponent=exponent), Line(slope=-1.0, resolution=1e-9), first)
        num = len(trace.seen)
        assert check_gradient(trace) is None
        assert len(trace.seen) <= num + 1


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    ("curve", "most"),
    [(lambda x: -x, 30), (lambda x: -x / (1 + x), 30), (lambda x: -min(x, 1.0), 8)],
    ids=["falls on", "levels off slowly", "constant"],
)
def test_a_loss_that_never_rises_has_no_catapult(curve, most, search):
    trace, status = search(curve, Line(slope=-1.0, resolution=1e-12), 0.5)
    assert status is Status.NO_CATAPULT
    assert (trace.high, trace.rise) == (math.inf, pytest.approx(math.nan, nan_ok=True))
    assert len(trace.seen) <= most


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("limit", [0.5, 0.9, 3.0])
def test_no_rate_above_the_limit_is_tried(limit, search):
    trace, status = search(power_law(), Line(slope=-1.0, limit=limit), 0.1)
    assert max(trace.seen) <= limit
    assert status is (Status.FOUND if limit > 1 else Status.ABOVE_MAX_LR)
    assert trace.low == (limit if limit < 1 else pytest.approx(1, rel=1 / 16))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_the_budget_is_kept(most, search):
    trace, status = search(power_law(exponent=3), Line(slope=-1.0, max_forwards=most), 1e-4)
    assert (len(trace.seen), status) == (most, Status.BUDGET_EXHAUSTED)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_rise_below_what_the_loss_shows_is_not_looked_for(search):
    trace, status = search(lambda lr: lr, Line(slope=-1.0, resolution=1e-3), 1.0)
    assert status is Status.BELOW_RESOLUTION
    assert min(trace.seen) >= 1e-3


@pytest.mark.parametrize("search", SEARCHES)
def test_a_first_rate_that_the_loss_cannot_show_is_raised(search):
    trace, status = search(power_law(), Line(slope=-1.0, resolution=1e-6), 1e-12)
    assert min(trace.seen) == pytest.approx(16e-6)
    assert status is Status.FOUND


def test_the_first_of_several_crossings_is_bracketed_where_a_dip_betrays_it():
    """The loss falls at 0.22 and 0.6, and rises between 0.3 and 0.4: φ is smaller at 0.6 than at 0.22."""

    def curve(lr):
        bump = 2.0 * math.exp(-(((lr - 0.35) / 0.05) ** 2))
        return lr * (-1 + bump + max(0.0, lr - 0.8) * 5)

    trace, status = Trace(curve, Line(slope=-1.0)), None
    assert curve(0.35) > 0 > curve(0.6)
    for lr in (0.22, 0.6):
        trace.rises(lr)
    assert trace.dip() == pytest.approx(math.sqrt(0.22 * 0.6))
    trace, status = secant_search(curve, Line(slope=-1.0, exponent=2.0), 0.22)
    assert status is Status.MULTIPLE_CROSSINGS
    first = next(lr / 1000 for lr in range(1, 1000) if curve(lr / 1000) > 0)
    assert trace.low - 1e-3 <= first <= trace.high + 1e-3


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("most_rise", [1e-2, 1e-3])
def test_the_upper_end_is_brought_down_until_the_rise_is_small(most_rise, search):
    trace, status = search(power_law(), Line(slope=-1.0, rtol=1.0, most_rise=most_rise), 0.7)
    assert status is Status.FOUND
    assert 0 < trace.rise <= most_rise
    trace, status = search(CURVES["wall"], Line(slope=-1.0, rtol=1.0, most_rise=most_rise), 0.7)
    assert (status, trace.rise) == (Status.FOUND, math.inf)
    assert 2.0**-12 < trace.high / trace.low - 1 <= 2.0**-10
