"""Two processes that train one model: the numbers of one process, one decision, and no rank that waits forever.

Ladder: the same measurement in this process, on the batches of both. Cannot see: accelerators, more than one
machine, nor a collective library whose sums differ between ranks.
"""

import pytest
import torch

import edgewise as ew
import processes
from cases import BY_NAME, MLP, mse, train_step
from edgewise.ranks import Ranks, ranks_of

CLOSE = 1e-5  # relative


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return processes.run(processes.ddp, tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    return processes.run(processes.apart, tmp_path_factory.mktemp("apart"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    return processes.run(processes.fsdp, tmp_path_factory.mktemp("fsdp"))


@pytest.fixture(scope="module")
def gi_adam(tmp_path_factory):
    return processes.run(processes.gi_adam, tmp_path_factory.mktemp("gi_adam"))


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
    for key in ("value", "num_hvps", "hvp", "converged"):
        assert first[key] == second[key], key
    assert first["converged"]
    return first


# DistributedDataParallel


@pytest.mark.parametrize("name", ["tanh-mlp-mse", "attention-xent", "conv-batchnorm-xent", "tied-mse"])
def test_whole_parameters_have_the_sharpness_of_one_process(ddp, name):
    expected = alone(name, processes.SHARES, num=2)
    found = same(ddp, name)
    assert found["hvp"] == "reverse"
    torch.testing.assert_close(found["values"], expected.values, rtol=CLOSE, atol=0)


@pytest.mark.parametrize("how", ["forward", "difference", "checked", "budget"])
def test_every_route_has_it_on_whole_parameters(ddp, how):
    expected = alone(MLP.name, processes.SHARES, num=2)
    torch.testing.assert_close(same(ddp, how)["values"], expected.values, rtol=CLOSE, atol=0)


def test_blocks_casts_and_warm_starts_of_whole_parameters(ddp):
    expected = alone(MLP.name, processes.SHARES)
    assert same(ddp, "float32")["value"] == pytest.approx(expected.value, rel=1e-3)
    warm = same(ddp, "warm")
    assert warm["value"] == pytest.approx(expected.value, rel=CLOSE)
    assert warm["num_hvps"] < expected.num_hvps / 2
    block = alone(MLP.name, processes.SHARES, params="0.*")
    assert same(ddp, "block")["value"] == pytest.approx(block.value, rel=CLOSE)


def test_products_of_whole_parameters_go_to_scipy(ddp):
    model, batches = MLP.build()
    with ew.hessian(model, mse, batches) as operator:
        expected = operator.matvec(torch.ones(operator.size).double())
    for rank in ddp:
        torch.testing.assert_close(torch.from_numpy(rank["scipy"]), expected)


def test_whole_parameters_have_the_preconditioned_sharpness_of_one_process(ddp):
    found = same(ddp, "preconditioned")
    model, state = ddp[0]["trained"]
    optimizer = processes.adamw(model)
    optimizer.load_state_dict(state)
    expected = ew.preconditioned_sharpness(model, mse, MLP.build()[1], optimizer, rtol=1e-8)
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)


def test_a_derivative_that_one_rank_lacks_is_taken_by_none(ddp):
    found = same(ddp, "one rank lacks a derivative")
    assert found["hvp"] == "difference"
    assert found["value"] == pytest.approx(alone(MLP.name, processes.SHARES).value, rel=CLOSE)
    assert "rank 1 of 2 failed" in ddp[0]["one rank lacks a derivative"]["reason"]


def test_a_loss_that_is_not_a_number_on_one_rank_is_none_in_a_warmup(ddp):
    for rank in ddp:
        assert rank["not a number in a warmup"].startswith(
            "LossError: the loss of the current parameters is nan"
        )


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


@pytest.mark.parametrize("name", ["tanh-mlp-mse", "attention-xent", "tied-mse", "linear-bias-unused"])
def test_sharded_parameters_have_the_sharpness_of_one_process(fsdp, name):
    expected = alone(name, processes.EVEN_SHARES, num=2)
    found = same(fsdp, name, vectors=False)
    assert found["hvp"] == "difference"
    assert "sharded by FSDP2" in found["reason"]
    torch.testing.assert_close(found["values"], expected.values, rtol=CLOSE, atol=1e-9)
    sizes = [len(rank[name]["vectors"]) for rank in fsdp]
    assert sum(sizes) == len(expected.vectors)
    squares = sum(rank[name]["vectors"].square().sum(0) for rank in fsdp)
    torch.testing.assert_close(squares, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("how", ["warm", "checked", "after a forward", "several batches"])
def test_sharded_parameters_are_measured_in_every_state(fsdp, how):
    expected = alone(MLP.name, processes.EVEN_SHARES)
    found = same(fsdp, how, vectors=False)
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)
    if how == "warm":
        assert found["num_hvps"] < expected.num_hvps / 2


def test_a_block_of_sharded_parameters(fsdp):
    expected = alone(MLP.name, processes.EVEN_SHARES, params="0.*")
    assert same(fsdp, "block", vectors=False)["value"] == pytest.approx(expected.value, rel=CLOSE)


def test_sharded_parameters_have_the_preconditioned_sharpness_of_one_process(fsdp):
    weights, state = fsdp[0]["trained"]
    model, batches = MLP.build()
    optimizer = processes.adamw(model)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    batches = [batch for share in processes.EVEN_SHARES for batch in batches[share]]
    expected = ew.preconditioned_sharpness(model, mse, batches, optimizer, rtol=1e-8)
    found = same(fsdp, "preconditioned", vectors=False)
    assert found["value"] == pytest.approx(expected.value, rel=CLOSE)


def test_hooks_of_the_shards_are_silent_in_a_measurement(fsdp):
    for rank in fsdp:
        assert (rank["hooks in a measurement"], rank["hooks in training"]) == (0, 4)


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


# GI-Adam


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", processes.GI_ADAMS)
def test_gi_adam_on_shards_trains_the_parameters_of_one_process(gi_adam, name, scaled):
    expected = processes.train_embedding(*processes.GI_ADAMS[name], range(processes.NUM), scaled=scaled)
    for rank in gi_adam:
        for found, one in zip(rank[name, scaled], expected, strict=True):
            torch.testing.assert_close(found, one, rtol=1e-12, atol=1e-13)


def test_rejected_steps_leave_no_trace_on_shards(gi_adam):
    for name in processes.GI_ADAMS:
        for found, unscaled in zip(gi_adam[0][name, True], gi_adam[0][name, False], strict=True):
            torch.testing.assert_close(found, unscaled, rtol=1e-12, atol=1e-13)


# Both


def test_value_and_gradient_are_those_of_one_process(ddp, fsdp):
    for ranks, shares in ((ddp, processes.SHARES), (fsdp, processes.EVEN_SHARES)):
        model, batches = MLP.build()
        batches = [batch for share in shares for batch in batches[share]]
        expected = processes.evaluated(model, batches)
        for rank in ranks:
            assert rank["evaluated"]["value"] == pytest.approx(expected["value"], rel=1e-12)
        norms = [rank["evaluated"]["gradient"].norm() for rank in ranks]
        norm = norms[0] if ranks is ddp else torch.stack(norms).norm()
        torch.testing.assert_close(norm, expected["gradient"].norm(), rtol=1e-12, atol=0)
    for rank in ddp:
        model, batches = MLP.build()
        expected = processes.evaluated(model, batches)["gradient"]
        torch.testing.assert_close(rank["evaluated"]["gradient"], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_training_is_the_same_with_and_without_measuring(how, request):
    for rank in request.getfixturevalue(how):
        assert len(rank["measured"]) == 4 + 3 * 4  # parameters; steps and two moments of each
        assert rank["measured"] == rank["unmeasured"]


@pytest.mark.parametrize("which", ["computed", "closure", "current"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_critical_rate_is_that_of_one_process(how, which, request):
    """Gradients are means over ranks, whatever their batches' sizes; the loss is, for a closure."""
    first, second = (rank["critical"][which] for rank in request.getfixturevalue(how))
    assert first == second
    shares = processes.SHARES if how == "ddp" else processes.EVEN_SHARES
    model, batches = MLP.build()
    mine = [batches[share] for share in shares]
    firsts = [batches[0] for batches in mine]
    mean_of_ranks = lambda model, firsts: sum(mse(model, batch) for batch in firsts) / len(firsts)
    optimizer = processes.adamw(model)
    for _ in range(3):
        train_step(model, optimizer, mean_of_ranks, firsts)
    if which == "computed":
        expected = ew.critical_lr(model, optimizer, mse, batches=[*mine[0], *mine[1]], rtol=1e-3)
    elif which == "closure":
        expected = ew.critical_lr(model, optimizer, mean_of_ranks, firsts, rtol=1e-3)
    else:
        optimizer.zero_grad()
        mean_of_ranks(model, firsts).backward()
        expected = ew.critical_lr(model, optimizer, mse, batches=firsts, gradient="current", rtol=1e-3)
    assert first.status is expected.status is ew.Status.FOUND
    assert first.bracket == pytest.approx(expected.bracket, rel=2e-3)
    assert first.slope == pytest.approx(expected.slope, rel=1e-6)
    assert first.loss == pytest.approx(expected.loss, rel=1e-9)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", processes.WARMUPS)
def test_warmups_are_those_of_one_process_on_all_ranks(how, kind, request):
    """Each rank sees the loss of its own batch only."""
    first, second = (rank["warmed"][kind] for rank in request.getfixturevalue(how))
    assert first == second
    model, batches = MLP.build()
    firsts = [batches[share][0] for share in (processes.SHARES if how == "ddp" else processes.EVEN_SHARES)]
    expected = processes.warmed_rates(
        model, lambda model: sum(mse(model, batch) for batch in firsts) / 2, kind
    )
    assert first == pytest.approx(expected, rel=1e-3)
    assert 0 < first[0] < 20.0  # searched, and found below the target
    assert first[-1] > first[0] or kind == "catapult"  # which waits longer


@pytest.mark.parametrize("kind", processes.FIRST_LOOKS)
def test_a_closure_of_one_model_that_sees_this_rank_s_loss_alone_is_refused_on_all(kind, apart):
    for rank in apart:
        told = [rank["inside", kind, True], rank["inside", kind, False], rank["averaged by hand", kind]]
        for text in told:
            assert text.startswith("LossError: the 2 processes train one model")
            assert "call the DistributedDataParallel module in it" in text


@pytest.mark.parametrize("kind", processes.FIRST_LOOKS)
def test_ranks_that_see_the_same_loss_or_train_models_of_their_own_are_left_alone(kind, apart):
    for rank in apart:
        for case in (
            ("wrapped", kind, True),
            ("wrapped", kind, False),
            ("one start", kind),
            ("two starts", kind),
        ):
            assert rank[case] == ""
        assert rank["on one rank", kind] == ""  # and waits for no other


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_monitor_measures_on_all_ranks_or_on_none(how, request):
    """Of two clocks that run apart, the more cautious decides."""
    first, second = (rank["followed"] for rank in request.getfixturevalue(how))
    assert first == second
    assert 3 <= len(first) < 30


# One process


def test_one_process_is_a_rank_of_its_own():
    ranks = ranks_of(torch.nn.Linear(2, 1))
    assert ranks == Ranks()
    assert (ranks.num, ranks.index, ranks.gather(3)) == (1, 0, [3])
    tensor = torch.ones(2)
    assert ranks.sum(tensor) is tensor
    with pytest.raises(KeyError, match="mine"), ranks.together():
        raise KeyError("mine")
