"""What a plan comes to.

Oracle: operations of a fully connected network by hand; a count on the whole batch; parameters of the network itself.
Cannot see: whether the time of a step here is that of a step elsewhere.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import edgewise as ew
from edgewise.lab import data, estimate, models
from edgewise.lab.configs import DataConfig
from edgewise.lab.data import sources
from edgewise.lab.results.runs import stored_bytes
from edgewise.lab.training import loss_function, train
from edgewise.lab.trial import kind_of
from lab_cases import TINY, TINY_CNN, TINY_LM, changed, save, stored, tiny
from lab_cases import made as made_run

WRN = tiny(model={"name": "wrn", "depth": 10, "width": 1, "parameterization": "mup"}, batch_size=12)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(estimate, "_timed", lambda kind, model, number: 1.0)
    monkeypatch.setattr(estimate, "_timed_product", lambda kind, model, number: 2.5)


def test_operations_of_a_fully_connected_network():
    """Each layer's product forwards, and backwards for weights and inputs, but for the pixels; a product is two."""
    config = tiny(model={"depth": 3, "width": 32}, batch_size=100)
    forwards = [64 * 32, 32 * 32, 32 * 32, 32 * 10]
    expected = 2 * 100 * (3 * sum(forwards) - forwards[0])
    assert estimate.gradient_of(config).flops == expected
    assert estimate.gradient_of(changed(config, batch_size=None)).flops == expected / 100 * 1437
    assert (
        estimate.gradient_of(changed(config, batch_size=None, data={"num_samples": 50})).flops == expected / 2
    )


@pytest.mark.parametrize(
    "config",
    [
        WRN,
        changed(TINY_LM, batch_size=12),
        changed(TINY_CNN, batch_size=12),
        tiny(model={"parameterization": "mup"}, batch_size=12),
    ],
    ids=["wrn", "lm", "cnn", "scaled"],
)
def test_few_samples_tell_of_all(config):
    gradient = estimate.gradient_of(config)
    model = models.build(config.model, data.load(config.data))
    flops, kept = estimate._counted(config, model, 12)
    assert gradient.flops == flops
    assert gradient.kept == pytest.approx(kept, rel=1e-3)
    assert gradient.num_parameters == sum(p.numel() for p in model.parameters())


def test_attention_is_counted():
    """Its two products of every pair of positions, forwards, and four backwards."""
    counts = {}
    for context in (8, 16):
        config = changed(TINY_LM, data={"context": context}, batch_size=2)
        counts[context] = estimate.gradient_of(config).flops / context  # a position
    per_pair = 3 * 2 * 2 * 32  # width 32
    assert counts[16] - counts[8] == 2 * 8 * per_pair


def test_a_large_batch_is_timed_in_part(monkeypatch):
    timed = []
    monkeypatch.setattr(estimate, "_timed", lambda kind, model, number: timed.append(number) or 2.0)
    assert estimate.gradient_of(tiny(batch_size=16)).seconds == 2.0
    monkeypatch.setattr(estimate, "_TIMED_FLOPS", estimate.gradient_of(tiny(batch_size=4)).flops)
    timed.clear()
    assert estimate.gradient_of(tiny(batch_size=16)).seconds == 2.0 * 4
    assert timed == [4] * 3
    assert estimate.gradient_of(tiny(batch_size=16, measure=("sharpness",))).product_seconds == 2.5 * 4


@pytest.mark.parametrize(("batch_size", "products"), [(None, 4), (16, 7)])
def test_a_measurement_is_so_many_products_as_its_batch_is_known_or_new(batch_size, products):
    def costs(**changes):
        (found,) = estimate.estimates({"fig1": [(tiny(num_steps=100, batch_size=batch_size, **changes),)]})
        one = estimate.gradient_of(found.kind)
        return found.flops / one.flops, found.core_seconds - 100 * one.seconds, one.product_seconds

    assert costs() == (100, 0.0, 0.0)
    gradients, seconds, each = costs(measure=("sharpness",), measure_every=8)
    assert (gradients, seconds) == (100 + 2 * 13 * products, 13 * products * each)
    gradients, seconds, each = costs(measure=("sharpness", "preconditioned_sharpness", "gradient_norm"))
    assert (gradients, seconds) == (100 + 2 * 200 * products, 200 * products * each)


@pytest.mark.parametrize(
    "config",
    [WRN, TINY_LM, TINY_CNN, tiny(model={"depth": 4, "width": 128})],
    ids=["wrn", "lm", "cnn", "fcn"],
)
def test_a_product_has_the_operations_of_two_gradients(config):
    model = models.build(config.model, data.load(config.data))
    batch = data.load(config.data).first(12).train_batch()
    loss_fn = loss_function(config.loss)
    with sdpa_kernel(SDPBackend.MATH), ew.hessian(model, loss_fn, [batch]) as operator:
        operator.matvec(torch.ones(operator.size))
        with FlopCounterMode(display=False) as counter:
            operator.matvec(torch.ones(operator.size))
    gradient, _ = estimate._counted(config, model, 12)
    assert counter.get_total_flops() == pytest.approx(2 * gradient, rel=0.1)


def test_runs_of_two_figures_and_finished_ones_are_not_counted_twice():
    others = [tiny(seed=1, optimizer={"lr": 0.1}), tiny(num_steps=10)]
    planned = {"fig1": [(TINY,), (WRN,)], "fig2": [(TINY, *others)]}
    first, second = estimate.estimates(planned)
    assert (first.kind, first.num_runs, first.num_steps) == (kind_of(TINY), 3, 6 + 6 + 10)
    assert first.core_seconds == 22.0
    assert first.flops == estimate.gradient_of(TINY).flops * 22
    assert first.gpu_seconds == first.flops / (0.3 * 19.5e12)
    assert (second.kind, second.num_runs) == (kind_of(WRN), 1)
    left = estimate.estimates(planned, {TINY.run_id, WRN.run_id})
    assert [(its.kind, its.num_runs) for its in left] == [(kind_of(TINY), 2)]
    assert estimate.estimates({"fig1": [(TINY,)]}, {TINY.run_id}) == []


def test_what_no_engine_puts_on_a_gpu_is_marked():
    def on_gpu(**changes):
        (found,) = estimate.estimates({"fig1": [(tiny(**changes),)]})
        return found.on_gpu

    assert on_gpu()
    assert not on_gpu(measure=("sharpness",))
    assert not on_gpu(warmup={"kind": "edge"})
    assert not on_gpu(data={"name": "cifar10", "augment": True, "num_samples": 9})


def test_memory_is_of_weights_graphs_and_data():
    def memory(**changes):
        (found,) = estimate.estimates({"fig1": [(tiny(**changes),)]})
        return found.memory

    number = estimate.gradient_of(TINY).num_parameters
    assert memory(optimizer={"name": "adam"}) - memory() == 2 * 4 * number
    assert memory(optimizer={"momentum": 0.9}) - memory() == 4 * number
    kept = estimate.gradient_of(TINY).kept
    assert memory(measure=("sharpness",)) - memory() == pytest.approx(7 * kept)
    first, few = (estimate.gradient_of(tiny(batch_size=number)).kept for number in (2048, 4))
    initial = memory(batch_size=4, optimizer={"lr_unit": "1/sharpness"}) - memory(batch_size=4)
    assert initial == pytest.approx(8 * first - few)
    wrn = {
        "model": {"name": "wrn", "depth": 16, "width": 4},
        "data": {"name": "tiny-imagenet", "num_samples": 4},
    }
    residual = estimate.gradient_of(tiny(**wrn)).kept
    initial = memory(**wrn, optimizer={"lr_unit": "1/sharpness"}) - memory(**wrn)
    assert initial == pytest.approx(8 * 2.5e9 - residual)  # in parts: 512 images would keep 15.7 GB
    images = memory(data={"name": "tiny-imagenet", "num_samples": 4}) - memory(
        data={"name": "cifar10", "num_samples": 4}
    )
    assert images > 3 * 4 * (110_000 * 64**2 - 60_000 * 32**2) * 3


@pytest.mark.parametrize("name", sources.SOURCES)
def test_made_up_samples_have_the_shapes_of_the_real_ones(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEWISE_DATA", str(tmp_path))  # where nothing is prepared
    few = estimate.samples(DataConfig(name=name, context=16), 3)
    source = sources.SOURCES[name]
    if source.pixels is None:
        assert few.train_inputs.shape == few.train_targets.shape == (3, 16)
        assert few.num_classes == sources.VOCABULARY
        assert estimate._num_train(DataConfig(name=name)) > 10_000
    else:
        assert few.image_shape == (3, source.pixels, source.pixels)
        assert few.train_inputs.shape == (3, math.prod(few.image_shape))
        assert (few.num_classes, estimate._num_train(DataConfig(name=name))) == (
            source.num_classes,
            source.samples[0],
        )


def test_the_size_on_disk_is_about_that_of_a_stored_run(tmp_path):
    config = tiny(num_steps=3000, measure=("sharpness",), measure_every=5)
    random = torch.rand(3000, generator=torch.Generator().manual_seed(0)).double().numpy()
    run = made_run(config, {"train_loss": random, "lr": random, "sharpness": random})
    store = stored(tmp_path, {"fig1": [run]})
    save(store, run)
    size = sum(path.stat().st_size for path in (tmp_path / "runs" / config.run_id).iterdir())
    assert 0.5 < stored_bytes(config) / size < 2


def test_planning_draws_no_random_number_and_leaves_the_threads_alone():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    estimate.gradient_of(replace(WRN, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_step_is_timed_with_its_update(monkeypatch):
    monkeypatch.undo()
    calls = []
    original = estimate.make_optimizer

    def counting(*args):
        optimizer = original(*args)
        optimizer.register_step_post_hook(lambda *a: calls.append(1))
        return optimizer

    monkeypatch.setattr(estimate, "make_optimizer", counting)
    gradient = estimate.gradient_of(changed(TINY, measure=("sharpness",)))
    assert gradient.seconds > 0
    assert gradient.product_seconds > 0
    assert len(calls) == 3
    assert train(TINY).rows[0]["step"] == 0  # and no step of it is a run's
