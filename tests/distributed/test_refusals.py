"""No rank waits forever: what raises on one raises on both. Oracle: the messages, written down."""

import pytest
import torch

from distributed import refusals
from edgewise.ranks import Ranks, ranks_of


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(refusals.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(refusals.fsdp)


# DistributedDataParallel


@pytest.mark.parametrize(
    ("name", "raised", "told"),
    [
        ("no batches on rank 1", "ValueError: batches is empty", "ValueError: batches is empty"),
        ("an iterator on rank 1", "TypeError: batches can be read only once", "TypeError: batches can be"),
        ("raised at first", "KeyError: 'out of cheese'", "KeyError: 'out of cheese'"),
        ("raised in a product", "KeyError: 'out of cheese'", "KeyError: 'out of cheese'"),
        ("not a number", "LossError: the loss of batch 0 is nan", "LossError: the loss of batch 0 is nan"),
        (
            "does not repeat",
            "LossError: the loss of batch 0 is",
            "evaluated again from the same random state",
        ),
        ("no batches to follow", "ValueError: batches is empty", "ValueError: batches is empty"),
    ],
)
def test_an_error_on_one_rank_is_one_on_all(ddp, name, raised, told):
    assert ddp[1][name].startswith(raised)
    assert ddp[0][name].startswith(
        "EdgewiseError: rank 1 of 2 failed, so that rank 0 stops as well; it raised"
    )
    assert told in ddp[0][name]


def test_batches_without_a_size_have_no_weight_among_ranks(ddp):
    for rank in ddp:
        assert rank["no size"].startswith("ValueError: cannot tell the size of batch 0")


def test_what_is_distributed_otherwise_is_refused_or_measured_alone(ddp):
    for rank in ddp:
        assert "holds DistributedDataParallel as its module '0'" in rank["a wrapped model inside"]
        assert rank["unwrapped"] == 1


# FSDP2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other numbers of batches", "ValueError: ranks have 1, 2 batches"),
        ("reverse", "SecondDerivativeError: reverse-over-reverse is not possible for this model"),
        ("forward", "SecondDerivativeError: forward-over-reverse is not possible for this model"),
        (
            "dtype",
            "ValueError: a model that is sharded (FSDP2) is measured in the precision of its parameters",
        ),
        ("max_graph_bytes", "ValueError: max_graph_bytes must be None for a model that is sharded"),
        ("scipy", "ValueError: to_scipy() needs whole vectors"),
        ("unsynchronized", "LossError: no gradient of batch 0 arrived at the shards"),
        ("other scale", "LossError: the loss rises by 0.5 times what its gradient says"),
        (
            "two dimensions",
            "ValueError: the model's parameters must all be sharded by fully_shard over one mesh",
        ),
    ],
)
def test_what_sharded_models_lack_is_refused_on_all_ranks(fsdp, name, message):
    for rank in fsdp:
        assert rank[name].startswith(message)


@pytest.mark.parametrize(
    ("name", "raised"),
    [
        ("not a number", "LossError: the loss of batch 0 is nan"),
        ("raised after the forward", "KeyError: 'out of cheese'"),
        ("no graph", "LossError: the loss of batch 0 has no graph"),
    ],
)
def test_an_error_behind_a_sharded_forward_is_one_on_all(fsdp, name, raised):
    assert fsdp[1][name].startswith(raised)
    assert fsdp[0][name].startswith("EdgewiseError: rank 1 of 2 failed")
    assert raised in fsdp[0][name]
    assert fsdp[0]["still well"]


# One process


def test_one_process_is_a_rank_of_its_own():
    ranks = ranks_of(torch.nn.Linear(2, 1))
    assert ranks == Ranks()
    assert (ranks.num, ranks.index, ranks.gather(3)) == (1, 0, [3])
    tensor = torch.ones(2)
    assert ranks.sum(tensor) is tensor
    with pytest.raises(KeyError, match="mine"), ranks.together():
        raise KeyError("mine")
