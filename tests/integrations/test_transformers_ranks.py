"""edgewise in a `Trainer` of two processes, over gloo.

Ladder: the other rank, bit for bit → one process with batches twice as large, but for sums in another order.
Cannot see: devices other than the CPU.
"""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch

from integrations import trainer_ranks
from integrations.trainer_ranks import OPTIONS, WARMUPS

KINDS = [*WARMUPS, "resumed"]


@pytest.fixture(scope="module")
def ranks(two_ranks):
    return two_ranks.run(trainer_ranks.ddp)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ranks_have_the_same_rates_and_parameters(kind, ranks):
    one, other = (rank[kind] for rank in ranks)
    assert one["rates"] == other["rates"]
    assert len(set(one["rates"])) > 3
    assert one["sharpness"] == other["sharpness"]
    assert all(torch.equal(p, q) for p, q in zip(one["parameters"], other["parameters"], strict=True))


@pytest.mark.parametrize("kind", WARMUPS)
def test_they_are_those_of_one_process_with_all_the_data(kind, ranks, tmp_path):
    make, options = WARMUPS[kind]
    alone = OPTIONS | options | {"per_device_train_batch_size": 2 * OPTIONS["per_device_train_batch_size"]}
    trainer = trainer_ranks.trainer(tmp_path, make, **alone)
    rates, losses = trainer_ranks.run(trainer)
    found = ranks[0][kind]
    assert found["rates"] == pytest.approx(rates, rel=0.02)
    assert found["losses"] == pytest.approx(losses, rel=1e-3)
    assert found["sharpness"] == pytest.approx(trainer_ranks.column(trainer, "edgewise/sharpness"), rel=0.1)


def test_a_resumed_run_has_the_same_rates_and_losses_bit_for_bit(ranks):
    for rank in ranks:
        assert rank["resumed"]["rates"] == rank["edge"]["rates"]
        assert rank["resumed"]["losses"] == rank["edge"]["losses"]
