"""FCN and LM.

Oracle: the same network written with plain functions; bitwise comparison of logits. Cannot see: how well they learn.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgewise.lab import data, models
from edgewise.lab.configs import DataConfig, ModelConfig
from edgewise.lab.models import FCN, LM
from edgewise.lab.parameterization import ScaledLinear

DIGITS = data.load(DataConfig(name="digits"))
TEXT = data.load(DataConfig(name="stdlib-text", context=8))


def fcn(depth=3, width=16, parameterization="sp"):
    return models.build(
        ModelConfig(name="fcn", depth=depth, width=width, parameterization=parameterization), DIGITS
    )


def lm(depth=2, width=64, parameterization="sp"):
    return models.build(
        ModelConfig(name="lm", depth=depth, width=width, parameterization=parameterization), TEXT
    )


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


def test_lm_is_the_network_it_says():
    """Pre-LN blocks, GELU, causal attention with heads of 32, a final LayerNorm: written out."""
    model = lm(2, 64)
    with torch.no_grad():
        for p in model.parameters():  # norms and biases that do something
            p.add_(0.1 * torch.randn_like(p))
    tokens = TEXT.train_batch(torch.arange(3))[0]
    x = model.embedding.weight[tokens] + model.positions[:8]
    for block in model.blocks:
        normed = F.layer_norm(x, (64,), block.attention_norm.weight, block.attention_norm.bias)
        mixed = []
        for head in range(2):
            q, k, v = (
                layer(normed)[..., 32 * head : 32 * (head + 1)]
                for layer in (block.query, block.key, block.value)
            )
            scores = q @ k.transpose(1, 2) / 32**0.5
            scores = scores.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf)
            mixed.append(scores.softmax(-1) @ v)
        x = x + block.attention_out(torch.cat(mixed, -1))
        normed = F.layer_norm(x, (64,), block.mlp_norm.weight, block.mlp_norm.bias)
        x = x + block.mlp_out(F.gelu(block.mlp_in(normed)))
    x = F.layer_norm(x, (64,), model.norm.weight, model.norm.bias)
    expected = x @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(tokens), expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("build", [fcn, lm])
@pytest.mark.parametrize("parameterization", ["sp", "mup", "simple-mup"])
def test_the_seed_decides_the_weights(build, parameterization):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build(parameterization=parameterization).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_embedding_s_deviation_is_the_root_of_two_at_any_width():
    for width in (32, 128):  # κ − 1 = 1.37 of the truncated normal; five deviations
        weight = lm(1, width).embedding.weight.detach()
        assert float(weight.std()) == pytest.approx(2**0.5, rel=5 * (1.37 / 4 / weight.numel()) ** 0.5)


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (64, 2), (96, 3)])
def test_heads_are_32_wide(width, heads):
    assert lm(1, width).blocks[0].num_heads == heads
