"""accelerate in one process and in two. Ladder: the same updates by hand in plain torch, to the bit.

Cannot see: mixed precision, whose autocast is tested with plain torch.
"""

import math

import pytest

import edgewise as ew
from integrations import loops

pytest.importorskip("accelerate")

WARMUPS = {
    "edge": ew.EdgeWarmup,
    "catapult": ew.CatapultWarmup,
    "critical": lambda optimizer: ew.LinearWarmup(optimizer, warmup_steps=9, lr_init="critical"),
}


@pytest.fixture(scope="module")
def accelerated(two_ranks):
    return two_ranks.run(loops.accelerated_on_ranks)


@pytest.fixture(scope="module")
def by_hand(two_ranks):
    return two_ranks.run(loops.ddp)


@pytest.mark.parametrize("make", WARMUPS.values(), ids=WARMUPS)
@pytest.mark.parametrize("order", loops.ORDERS)
def test_one_process_has_the_bits_of_a_plain_loop(order, make):
    found = loops.accelerated(order, make)
    assert found.pop("processes") == 1
    assert found.pop("fractions") == []
    assert found == loops.by_hand(loops.network(), make=make)
    assert len(set(found["rates"])) > 3


@pytest.mark.parametrize("order", loops.ORDERS)
def test_two_processes_have_the_bits_of_a_plain_loop(order, accelerated, by_hand):
    for rank in (0, 1):
        found = dict(accelerated[rank][order])
        assert found.pop("processes") == 2
        assert found.pop("fractions") == []
        assert found == by_hand[rank]


@pytest.mark.parametrize("order", loops.ORDERS)
def test_the_ranks_agree(order, accelerated):
    first, second = (rank[order] for rank in accelerated)
    assert first["rates"] == second["rates"]
    assert first["parameters"] == second["parameters"]
    assert first["losses"] != second["losses"]  # each of its own micro-batches


def test_a_monitor_knows_the_prepared_optimizer_and_changes_nothing(accelerated):
    first, second = (dict(rank["followed"]) for rank in accelerated)
    assert first["fractions"] == second["fractions"]
    assert len(first["fractions"]) == loops.UPDATES / 8
    assert all(0 < fraction < math.inf for fraction in first["fractions"])
    for rank, found in enumerate((first, second)):
        assert found | {"fractions": []} == accelerated[rank][loops.ORDERS[0]]


def test_an_optimizer_of_deepspeed_s_is_refused():
    from accelerate import Accelerator  # noqa: PLC0415
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper  # noqa: PLC0415

    Accelerator(cpu=True)  # which a wrapper asks for its state
    with pytest.raises(TypeError, match=r"DeepSpeed's engine .* warmup\.export\(\) says how"):
        ew.EdgeWarmup(DeepSpeedOptimizerWrapper(loops.adam(loops.network())))


def test_a_loss_of_the_module_inside_the_wrapper_is_refused(accelerated):
    for rank in accelerated:
        assert "call the DistributedDataParallel module in it" in rank["inside"]
