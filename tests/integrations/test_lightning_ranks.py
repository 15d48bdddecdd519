"""The callbacks for Lightning in two processes, over gloo, under DDP and FSDP2.

Ladder: the other rank, bit for bit; a plain loop in one process with batches twice as large, but for sums in another
order. Cannot see: devices other than the CPU.
"""

import pytest

pytest.importorskip("lightning.pytorch")

import torch

import edgewise as ew
from integrations import lightning_ranks
from integrations import lightning_runs as runs

NUM = 3 * runs.NUM_BATCHES // 2  # updates of both ranks together
SETTINGS = {
    ("ddp", "plain"): (runs.adamw, {}),
    ("ddp", "clipped"): (runs.gi_adamw, {"accumulate": 2, "clip": 0.1}),
    ("fsdp", "plain"): (runs.adamw, {}),
    ("fsdp", "clipped"): (runs.adamw, {"accumulate": 2, "clip": 0.1}),
}


@pytest.fixture(scope="module", autouse=True)  # every test here is known by it to start processes
def ranks(two_ranks):
    return {"ddp": two_ranks.run(lightning_ranks.ddp), "fsdp": two_ranks.run(lightning_ranks.fsdp)}


@pytest.fixture
def twice_as_large(monkeypatch):
    """What both ranks have of an update: every other sample each."""
    monkeypatch.setattr(runs, "SIZE", 16)


@pytest.mark.parametrize("kind", ["plain", "clipped", "resumed"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_both_ranks_have_the_same_rates_rows_and_parameters(how, kind, ranks):
    one, other = (rank[kind] for rank in ranks[how])
    assert one["rates"] == other["rates"]
    assert len(set(one["rates"])) > 4
    assert one["losses"] != other["losses"]  # of batches of their own
    assert one["rows"] == other["rows"]
    assert len(one["rows"]) > 1
    assert all(torch.equal(a, b) for a, b in zip(one["parameters"], other["parameters"], strict=True))
    assert one["fallback"] is None


@pytest.mark.usefixtures("twice_as_large")
@pytest.mark.parametrize(("how", "kind"), SETTINGS)
def test_rates_are_those_of_one_process(how, kind, ranks):
    make_optimizer, settings = SETTINGS[how, kind]
    found = ranks[how][0][kind]
    num = NUM // settings.get("accumulate", 1)
    follow = lambda warmup: warmup.then_until(num, "cosine")
    expected = runs.plain(runs.Net(make_optimizer), follow=follow, **settings)
    assert found["rates"] == pytest.approx(expected.rates, rel=1e-3)
    for a, b in zip(found["parameters"], expected.parameters, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


@pytest.mark.usefixtures("twice_as_large")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_first_row_is_the_sharpness_of_both_ranks_batches(how, ranks):
    model = runs.Net().net
    samples = tuple(tensor[:16] for tensor in runs.data())
    expected = ew.sharpness(model, lambda m, b: runs.mse_loss(m(b[0]), b[1]), [samples])
    for rank in ranks[how]:
        assert rank["plain"]["rows"][0] == pytest.approx(expected.value, rel=0.02)


def test_a_run_resumed_under_ddp_is_the_same_bit_for_bit(ranks):
    for rank in ranks["ddp"]:
        whole, rest = rank["plain"], rank["resumed"]
        done = NUM // 3
        assert rest["rates"] == whole["rates"][done:]
        assert rest["losses"] == whole["losses"][done:]
        assert all(torch.equal(a, b) for a, b in zip(rest["parameters"], whole["parameters"], strict=True))


def test_a_run_resumed_under_fsdp_takes_a_fresh_look_from_the_rate_that_it_had(ranks):
    """Rank 0 alone saves the state, which therefore holds no shards."""
    done = NUM // 3
    for rank in ranks["fsdp"]:
        whole, (of_loading, *rest) = rank["plain"]["rates"], rank["resumed"]["rates"]
        assert of_loading == 0  # torch fills the optimizer's state by a step of its own
        assert len(rest) == len(whole) - done
        assert rest[0] == whole[done - 1]  # from where it grows on
        assert rest[1] > rest[0]
        assert rest == pytest.approx(whole[done:], rel=0.2)


def test_a_model_that_is_sharded_in_part_is_refused_before_any_compute(ranks):
    for rank in ranks["fsdp"]:
        message, num_calls = rank["refused"]
        assert "2 of 4 sharded" in message
        assert num_calls == 0
