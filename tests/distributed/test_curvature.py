"""Sharpness measured by two processes is that of one.

Ladder: the same measurement in this process, on the batches of both. Cannot see: accelerators, more than one
machine, nor a collective library whose sums differ between ranks.
"""

import pytest
import torch

import edgewise as ew
from cases import BY_NAME, MLP, mse
from distributed import curvature
from distributed.setups import EVEN_SHARES, SHARES, adamw

CLOSE = 1e-5  # relative


@pytest.fixture(scope="module")
def ddp(two_ranks):
    return two_ranks.run(curvature.ddp)


@pytest.fixture(scope="module")
def fsdp(two_ranks):
    return two_ranks.run(curvature.fsdp)


def alone(name, shares, **options):
    """The measurement in one process, on the batches of all ranks."""
    case = BY_NAME[name]
    model, batches = case.build()
    batches = [batch for share in shares for batch in batches[share]]
    return ew.sharpness(model.eval(), case.loss_fn, batches, rtol=1e-8, **options)


def same(ranks, name, vectors=True):
    """What both ranks found, the same bit for bit."""
    first, second = (rank[name] for rank in ranks)
    assert torch.equal(first["values"], second["values"])
    assert not vectors or torch.equal(first["vectors"], second["vectors"])
    for key in ("value", "num_hvps", "cost", "hvp", "converged", "shares"):
        assert first[key] == second[key], key
    assert first["converged"]
    return first


# DistributedDataParallel


@pytest.mark.parametrize("name", ["tanh-mlp-mse", "attention-xent", "conv-batchnorm-xent", "tied-mse"])
def test_whole_parameters_have_the_sharpness_of_one_process(ddp, name):
    expected = alone(name, SHARES, num=2)
    found = same(ddp, name)
    assert found["hvp"] == "reverse"
    torch.testing.assert_close(found["values"], expected.values, rtol=CLOSE, atol=0)
    assert found["shares"] == pytest.approx(expected.by_parameter(), abs=1e-4)


@pytest.mark.parametrize("how", ["forward", "difference", "checked", "budget"])
def test_every_route_has_it_on_whole_parameters(ddp, how):
    expected = alone(MLP.name, SHARES, num=2)
    torch.testing.assert_close(same(ddp, how)["values"], expected.values, rtol=CLOSE, atol=0)


def test_blocks_casts_and_warm_starts_of_whole_parameters(ddp):
    expected = alone(MLP.name, SHARES)
    assert same(ddp, "float32")["value"] == pytest.approx(expected.value, rel=1e-3)
    warm = same(ddp, "warm")
    assert warm["value"] == pytest.approx(expected.value, rel=CLOSE)
    assert warm["num_hvps"] < expected.num_hvps / 2
    block = alone(MLP.name, SHARES, params="0.*")
    assert same(ddp, "block")["value"] == pytest.approx(block.value, rel=CLOSE)


def test_ranks_look_at_parts_alike(ddp):
    """Parts of uneven batches, and of a loss that refuses them on one rank only."""
    model, batch = curvature.wide_network()
    expected = ew.sharpness(model, mse, [batch], rtol=1e-8)
    found = same(ddp, "parts")
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)
    assert found["cost"] > found["num_hvps"]
    refused = same(ddp, "parts refused by one rank")
    assert refused["value"] == pytest.approx(expected.value, rel=CLOSE)
    assert refused["num_hvps"] > found["num_hvps"]


def test_products_of_whole_parameters_go_to_scipy(ddp):
    model, batches = MLP.build()
    with ew.hessian(model, mse, batches) as operator:
        expected = operator.matvec(torch.ones(operator.size).double())
    for rank in ddp:
        torch.testing.assert_close(torch.from_numpy(rank["scipy"]), expected)


def test_whole_parameters_have_the_preconditioned_sharpness_of_one_process(ddp):
    found = same(ddp, "preconditioned")
    model, state = ddp[0]["trained"]
    optimizer = adamw(model)
    optimizer.load_state_dict(state)
    expected = ew.preconditioned_sharpness(model, mse, MLP.build()[1], optimizer, rtol=1e-8)
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)


def test_a_derivative_that_one_rank_lacks_is_taken_by_none(ddp):
    found = same(ddp, "one rank lacks a derivative")
    assert found["hvp"] == "difference"
    assert found["value"] == pytest.approx(alone(MLP.name, SHARES).value, rel=CLOSE)
    assert "rank 1 of 2 failed" in ddp[0]["one rank lacks a derivative"]["reason"]


# FSDP2


@pytest.mark.parametrize("name", ["tanh-mlp-mse", "attention-xent", "tied-mse", "linear-bias-unused"])
def test_sharded_parameters_have_the_sharpness_of_one_process(fsdp, name):
    expected = alone(name, EVEN_SHARES, num=2)
    found = same(fsdp, name, vectors=False)
    assert found["hvp"] == "difference"
    assert "sharded by FSDP2" in found["reason"]
    torch.testing.assert_close(found["values"], expected.values, rtol=CLOSE, atol=1e-9)
    sizes = [len(rank[name]["vectors"]) for rank in fsdp]
    assert sum(sizes) == len(expected.vectors)
    squares = sum(rank[name]["vectors"].square().sum(0) for rank in fsdp)
    torch.testing.assert_close(squares, torch.ones(2, dtype=torch.float64))
    assert found["shares"] == pytest.approx(expected.by_parameter(), abs=1e-4)


@pytest.mark.parametrize("how", ["warm", "checked", "after a forward", "several batches"])
def test_sharded_parameters_are_measured_in_every_state(fsdp, how):
    expected = alone(MLP.name, EVEN_SHARES)
    found = same(fsdp, how, vectors=False)
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)
    if how == "warm":
        assert found["num_hvps"] < expected.num_hvps / 2


def test_a_block_of_sharded_parameters(fsdp):
    expected = alone(MLP.name, EVEN_SHARES, params="0.*")
    assert same(fsdp, "block", vectors=False)["value"] == pytest.approx(expected.value, rel=CLOSE)


def test_sharded_parameters_have_the_preconditioned_sharpness_of_one_process(fsdp):
    weights, state = fsdp[0]["trained"]
    model, batches = MLP.build()
    optimizer = adamw(model)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    batches = [batch for share in EVEN_SHARES for batch in batches[share]]
    expected = ew.preconditioned_sharpness(model, mse, batches, optimizer, rtol=1e-8)
    found = same(fsdp, "preconditioned", vectors=False)
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)
