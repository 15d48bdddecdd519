"""Loops by hand on two ranks, with clipping and a decay. Ladder: one process that takes all micro-batches."""

import pytest

from integrations import loops


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def both(request, two_ranks):
    return two_ranks.run(getattr(loops, request.param))


def test_two_ranks_have_the_rates_and_parameters_of_one_process(both):
    expected = loops.by_hand(loops.network(), ranks=(0, 1), num=2)
    first, second = both
    assert first["rates"] == second["rates"]
    assert first["parameters"] == second["parameters"]
    assert first["rates"] == pytest.approx(expected["rates"], rel=1e-6)
    for found, one in zip(first["parameters"], expected["parameters"], strict=True):
        assert found == pytest.approx(one, rel=1e-6)
    mean = [sum(losses) / 2 for losses in zip(first["losses"], second["losses"], strict=True)]
    assert mean == pytest.approx(expected["losses"], rel=1e-6)
    assert len(set(first["rates"])) > 3
