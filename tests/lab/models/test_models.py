"""FCN, CNN, WRN and LM.

Oracle: the same network written with plain functions; bitwise comparison of logits. Cannot see: how well they learn.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgewise.lab import data, models
from edgewise.lab.configs import PARAMETERIZATIONS, DataConfig, ModelConfig
from edgewise.lab.models import CNN, FCN, LM, WRN
from edgewise.lab.models.parameterization import ScaledLinear

DIGITS = data.load(DataConfig(name="digits"))
TEXT = data.load(DataConfig(name="stdlib-text", context=8))


def fcn(depth=3, width=16, parameterization="sp"):
    return models.build(
        ModelConfig(name="fcn", depth=depth, width=width, parameterization=parameterization), DIGITS
    )


def cnn(depth=3, width=8, images=DIGITS):
    return models.build(ModelConfig(name="cnn", depth=depth, width=width, parameterization="sp"), images)


def wrn(depth=10, width=2, parameterization="sp"):
    return models.build(
        ModelConfig(name="wrn", depth=depth, width=width, parameterization=parameterization), DIGITS
    )


def lm(depth=2, width=64, parameterization="sp", **options):
    return models.build(
        ModelConfig(name="lm", depth=depth, width=width, parameterization=parameterization, **options), TEXT
    )


def perturbed(model):
    """With norms and biases that do something."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_fcn_d_n_has_d_hidden_layers_of_n_units(depth):
    model = fcn(depth, 16)
    assert isinstance(model, FCN)
    sizes = [(m.in_features, m.out_features) for m in model if isinstance(m, ScaledLinear)]
    assert sizes == [(64, 16), *[(16, 16)] * (depth - 1), (16, 10)]
    assert sum(isinstance(m, nn.ReLU) for m in model) == depth
    assert model(DIGITS.train_inputs[:5]).shape == (5, 10)


def test_fcn_is_the_network_it_says():
    model = fcn(2, 16)
    x = DIGITS.train_inputs[:5]
    w = dict(model.named_parameters())
    hidden = F.relu(x @ w["0.weight"].T + w["0.bias"])
    hidden = F.relu(hidden @ w["2.weight"].T + w["2.bias"])
    torch.testing.assert_close(model(x), hidden @ w["4.weight"].T + w["4.bias"])


def test_lm_d_n_has_d_blocks_of_width_n():
    model = lm(3, 64)
    assert isinstance(model, LM)
    assert len(model.blocks) == 3
    assert model(TEXT.train_batch(torch.arange(5))[0]).shape == (5, 8, 256)
    assert model.embedding.weight.shape == (256, 64)
    block = model.blocks[0]
    assert block.mlp_in.weight.shape == (256, 64)
    assert block.mlp_out.weight.shape == (64, 256)


def attention_of(block, x):
    """Causal attention with heads of 32, written out."""
    mixed = []
    for head in range(x.shape[-1] // 32):
        q, k, v = (
            layer(x)[..., 32 * head : 32 * (head + 1)] for layer in (block.query, block.key, block.value)
        )
        scores = q @ k.transpose(1, 2) / 32**0.5
        scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
        mixed.append(scores.softmax(-1) @ v)
    return block.attention_out(torch.cat(mixed, -1))


def mlp_of(block, x):
    return block.mlp_out(F.gelu(block.mlp_in(x)))


def layer_norm(norm, x):
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_lm_is_the_network_it_says(norm, final_norm):
    model = perturbed(lm(2, 64, norm=norm, final_norm=final_norm))
    tokens = TEXT.train_batch(torch.arange(3))[0]
    x = model.embedding.weight[tokens] + model.positions[:8]
    for block in model.blocks:
        if norm == "pre":
            x = x + attention_of(block, layer_norm(block.attention_norm, x))
            x = x + mlp_of(block, layer_norm(block.mlp_norm, x))
        else:
            x = layer_norm(block.attention_norm, x + attention_of(block, x))
            x = layer_norm(block.mlp_norm, x + mlp_of(block, x))
    if final_norm:
        x = layer_norm(model.norm, x)
    expected = x @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "depth", "sizes"),
    [
        ("digits", 1, [(8, 8)]),
        ("digits", 3, [(8, 8), (4, 4), (2, 2)]),
        ("digits", 5, [(8, 8), (4, 4), (2, 2), (2, 2), (2, 2)]),
        ("digit-pairs", 4, [(8, 16), (4, 8), (2, 4), (2, 4)]),
        ("digit-pairs-2x", 5, [(16, 32), (8, 16), (4, 8), (2, 4), (2, 4)]),
        ("mnist1d", 3, [(1, 40), (1, 40), (1, 40)]),
    ],
)
def test_cnn_d_n_has_d_layers_of_n_channels_down_to_two_by_two(name, depth, sizes):
    images = data.load(DataConfig(name=name))
    model = cnn(depth, 6, images)
    assert isinstance(model, CNN)
    seen = []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, args, output: seen.append(tuple(output.shape)))
    assert model(images.train_inputs[:5]).shape == (5, images.num_classes)
    assert seen == [(5, 6, *size) for size in sizes]


@pytest.mark.parametrize("training", [True, False])
def test_cnn_is_the_network_it_says(training):
    """Convolution, normalization over the batch or by running statistics, ReLU; mean over the image."""
    model = perturbed(cnn(3, 8))
    images = DIGITS.train_inputs[:5]
    for _ in range(3):
        model(images)  # moves the running statistics
    model.train(training)
    x = images.reshape(5, 1, 8, 8)
    for layer, stride in zip(model.layers, (1, 2, 2), strict=True):
        x = F.conv2d(x, layer.conv.weight, stride=stride, padding=1)
        mean, variance = layer.norm.running_mean, layer.norm.running_var
        if training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        scaled = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = F.relu(scaled * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None])
    expected = F.linear(x.mean((2, 3)), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_cnn_starts_from_truncated_normals_of_deviation_root_of_two_over_fan_in():
    model = cnn(3, 64)
    for layer, fan_in in zip(model.layers, (9, 576, 576), strict=True):
        weight, deviation = layer.conv.weight.detach(), (2 / fan_in) ** 0.5
        # κ − 1 = 1.37 of the truncated normal; five deviations
        assert float(weight.std()) == pytest.approx(deviation, rel=5 * (1.37 / 4 / weight.numel()) ** 0.5)
        assert float(weight.abs().max()) < 2.3 * deviation
        assert layer.conv.bias is None


def test_a_batch_of_one_can_be_normalized():
    assert cnn(4)(DIGITS.train_inputs[:1]).isfinite().all()


@pytest.mark.parametrize(("depth", "blocks"), [(10, 1), (16, 2)])
def test_wrn_d_k_has_three_stages_of_widening_channels(depth, blocks):
    model = wrn(depth, 4)
    assert isinstance(model, WRN)
    assert model.conv.weight.shape == (16, 1, 3, 3)
    channels = [block.conv2.weight.shape[0] for block in model.blocks]
    assert channels == [64] * blocks + [128] * blocks + [256] * blocks
    assert model.head.weight.shape == (10, 256)
    assert model(DIGITS.train_inputs[:5]).shape == (5, 10)


def test_wrn_is_the_network_it_says():
    """Activations before convolutions, LayerNorm over channels, projections of strides 1, 2, 2, mean over the image."""
    model = perturbed(wrn(10, 2))
    images = DIGITS.train_inputs[:5]

    def normed(norm, x):
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
        scaled = (x - mean) / (variance + 1e-5).sqrt()
        return F.relu(scaled * norm.weight[:, None, None] + norm.bias[:, None, None])

    x = F.conv2d(images.reshape(5, 1, 8, 8), model.conv.weight, model.conv.bias, padding=1)
    for block, stride in zip(model.blocks, (1, 2, 2), strict=True):
        h = normed(block.norm1, x)
        stream = F.conv2d(h, block.shortcut.weight, block.shortcut.bias, stride=stride)
        h = F.conv2d(h, block.conv1.weight, block.conv1.bias, stride=stride, padding=1)
        h = normed(block.norm2, h)
        x = stream + F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    assert x.shape == (5, 128, 2, 2)
    expected = F.linear(normed(model.norm, x).mean((2, 3)), model.head.weight, model.head.bias)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_blocks_that_keep_the_shape_keep_the_stream():
    model = wrn(16, 2)
    assert [block.shortcut is None for block in model.blocks] == [False, True] * 3


def test_a_later_token_leaves_earlier_logits_alone():
    model = lm()
    tokens = TEXT.train_batch(torch.arange(4))[0]
    before = model(tokens)
    for position in range(8):
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % 256
        after = model(other)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


def test_positions_tell_equal_tokens_apart():
    model = lm()
    logits = model(torch.full((1, 8), 7))
    assert not torch.allclose(logits[0, 0], logits[0, 1])
    assert "positions" not in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("build", "options"),
    [(cnn, {}), *((build, {"parameterization": p}) for build in (fcn, wrn, lm) for p in PARAMETERIZATIONS)],
)
def test_the_seed_decides_the_weights(build, options):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(**options).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_embedding_s_deviation_is_the_root_of_two_at_any_width():
    for width in (32, 128):  # κ − 1 = 1.37 of the truncated normal; five deviations
        weight = lm(1, width).embedding.weight.detach()
        assert float(weight.std()) == pytest.approx(2**0.5, rel=5 * (1.37 / 4 / weight.numel()) ** 0.5)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 2), (96, 3)])
def test_heads_are_32_wide(width, heads):
    assert lm(1, width).blocks[0].num_heads == heads
