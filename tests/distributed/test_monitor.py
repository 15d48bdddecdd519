"""One decision of two monitors. Oracle: what each rank has done."""

import pytest

from distributed import monitor


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(monitor.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(monitor.fsdp)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_monitor_measures_on_all_ranks_or_on_none(how, request):
    """Of two clocks that run apart, the more cautious decides."""
    first, second = request.getfixturevalue(how)
    assert first == second
    assert 3 <= len(first) < 30
    assert all(len(shares) == 2 for *_, shares in first)
