"""SP, NTP, μP and simple-μP.

Oracle: the formulas of the paper's section 5; closed-form variances of a wide ReLU network, with tolerances from
their own fluctuations; numpy for the positions. Cannot see: whether rates transfer across widths.
"""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from edgewise.lab.configs import OPTIMIZERS, PARAMETERIZATIONS, OptimizerConfig
from edgewise.lab.models.fcn import FCN
from edgewise.lab.models.lm import LM
from edgewise.lab.models.parameterization import (
    ScaledConv,
    ScaledEmbedding,
    ScaledLinear,
    parameter_groups,
    sinusoidal_positions,
    truncated_normal_,
)
from edgewise.lab.training import make_optimizer

FAN_IN, FAN_OUT = 300, 500
WIDTHS = (64, 256, 1024)
# of the standard normal cut at two deviations: Var = 1 − 2·2φ(2)/(2Φ(2) − 1)
TRUNCATED_DEVIATION = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))

# (parameterization, role) → variance of the weights, multiplier of the output: σ² is 2, and 1 in the last layer
SCALES = {
    ("sp", "input"): (2 / FAN_IN, 1.0),
    ("sp", "hidden"): (2 / FAN_IN, 1.0),
    ("sp", "last"): (1 / FAN_IN, 1.0),
    ("ntp", "input"): (2.0, math.sqrt(1 / FAN_IN)),
    ("ntp", "hidden"): (2.0, math.sqrt(1 / FAN_IN)),
    ("ntp", "last"): (1.0, math.sqrt(1 / FAN_IN)),
    **{
        (p, role): (2 / FAN_OUT, math.sqrt(FAN_OUT / FAN_IN))
        for p in ("mup", "simple-mup")
        for role in ("input", "hidden")
    },
    **{(p, "last"): (1 / FAN_IN, math.sqrt(1 / FAN_IN)) for p in ("mup", "simple-mup")},
}


@pytest.mark.parametrize(("parameterization", "role"), SCALES)
def test_weights_and_multiplier_are_the_paper_s(parameterization, role):
    layer = ScaledLinear(FAN_IN, FAN_OUT, role=role, parameterization=parameterization)
    variance, multiplier = SCALES[parameterization, role]
    weight = layer.weight.detach()
    n = weight.numel()
    # The sample variance of n draws deviates by √((κ − 1)/n), κ = 2.37 of the truncated normal; five of them.
    assert float(weight.var()) == pytest.approx(variance, rel=5 * math.sqrt(1.37 / n))
    assert abs(float(weight.mean())) < 5 * math.sqrt(variance / n)
    assert not layer.bias.any()
    x = torch.randn(3, FAN_IN)
    nn.init.normal_(layer.bias)
    expected = multiplier * (x @ layer.weight.T + layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    assert layer.scales.multiplier == pytest.approx(multiplier, rel=1e-15)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("parameterization", "role"), [s for s in SCALES if s[1] != "last"])
def test_a_convolution_sums_over_channels_and_kernel(parameterization, role, kernel, stride):
    layer = ScaledConv(30, 50, kernel, stride=stride, role=role, parameterization=parameterization)
    area = kernel**2
    variance = {"sp": 2 / (30 * area), "ntp": 2.0}.get(parameterization, 2 / (50 * area))
    multiplier = {"sp": 1.0, "ntp": (30 * area) ** -0.5}.get(parameterization, math.sqrt(50 / 30))
    weight = layer.weight.detach()
    assert float(weight.var()) == pytest.approx(variance, rel=5 * math.sqrt(1.37 / weight.numel()))
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 30, 8, 8)
    expected = multiplier * nn.functional.conv2d(x, weight, layer.bias, stride=stride, padding=kernel // 2)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [32, 512])
def test_an_embedding_s_variance_is_two_at_any_width(width):
    layer = ScaledEmbedding(1000, width)
    weight = layer.weight.detach()
    n = weight.numel()
    assert float(weight.var()) == pytest.approx(2.0, rel=5 * math.sqrt(1.37 / n))
    assert abs(float(weight.mean())) < 5 * math.sqrt(2 / n)
    assert float(weight.abs().max()) <= 2.00001 * math.sqrt(2) / TRUNCATED_DEVIATION
    tokens = torch.tensor([3, 999])
    assert torch.equal(layer(tokens), weight[tokens])  # no multiplier


def test_normals_are_cut_at_two_deviations_and_keep_their_variance():
    weights = torch.empty(1_000_000)
    truncated_normal_(weights, 3.0)
    # of the normal before the cut, whose deviation is 3/0.8796: Var = 1 − 2·2φ(2)/(2Φ(2) − 1)
    phi, mass = math.exp(-2) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2))
    parent = 3.0 / math.sqrt(1 - 4 * phi / mass)
    assert float(weights.std()) == pytest.approx(3.0, rel=5 * math.sqrt(1.37 / 4 / len(weights)))
    assert 1.999 * parent < float(weights.abs().max()) <= 2.00001 * parent
    inside = float((weights.abs() < parent).float().mean())  # P(|z| < 1)/P(|z| < 2); five binomial deviations
    assert inside == pytest.approx(math.erf(math.sqrt(0.5)) / mass, abs=5 * math.sqrt(0.21 / len(weights)))


@functools.cache
def scales_at(width, parameterization, *, depth=4, seeds=8):
    """Mean squares of each hidden layer's activations and of the outputs, over inputs of unit entries."""
    hidden, output = np.zeros(depth), 0.0
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = FCN(
            num_features=64, num_classes=100, depth=depth, width=width, parameterization=parameterization
        )
        x = torch.randn(16, 64)
        x *= 8 / x.norm(dim=1, keepdim=True)
        with torch.no_grad():
            squares = []
            for layer in model:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    squares.append(float(x.square().mean()))
            hidden += np.array(squares) / seeds
            output += float(x.square().mean()) / seeds
    return hidden, output


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_activations_neither_grow_nor_shrink_and_only_mup_outputs_shrink(parameterization, width):
    """E[h²] = 1 in each hidden layer; outputs have E[f²] = 1 in SP and NTP, 1/width in μP.

    A layer multiplies |h|²/width by a number of mean 1 and variance 5/width (relu(z)², z normal); d layers and 8
    seeds give a deviation of √(5d/(8·width)); the 16 inputs are no independent draws. Four of them.
    """
    hidden, output = scales_at(width, parameterization)
    for d, square in enumerate(hidden, start=1):
        assert square == pytest.approx(1.0, abs=4 * math.sqrt(5 * d / (8 * width)))
    expected = 1 / width if "mup" in parameterization else 1.0
    deviation = math.sqrt(5 * 4 / (8 * width) + 2 / (8 * 100))  # and 100 outputs a seed
    assert output == pytest.approx(expected, rel=4 * deviation)


@pytest.mark.parametrize(
    ("parameterization", "ratio"), [("mup", 4.0), ("simple-mup", 4.0), ("sp", 1.0), ("ntp", 1.0)]
)
def test_mup_outputs_fall_as_one_over_the_root_of_the_width(parameterization, ratio):
    """Half the deviation above, of which the narrow net's 0.2 is nearly all: 0.1; four of them."""
    narrow, wide = (math.sqrt(scales_at(width, parameterization)[1]) for width in (64, 1024))
    assert narrow / wide == pytest.approx(ratio, rel=0.4)


# (parameterization, optimizer) → exponents of the width in the change of their own output that one update of the
# weights of the input, the hidden and the last layers makes, at rate 1.
#
# An update of gradient descent is multiplier·∂/∂(output)·(input)ᵀ, one of Adam's first is ±1 an entry (times the
# factor of the rate), aligned with the input; both then pass the multiplier. Hidden activations are of order 1, and
# ∂/∂(output) of a hidden layer of order multiplier × deviation of the last layer's weights.
UPDATES = {
    ("sp", "sgd"): (-0.5, 0.5, 1.0),
    ("ntp", "sgd"): (-0.5, -0.5, 0.0),
    ("mup", "sgd"): (0.0, 0.0, 0.0),
    ("simple-mup", "sgd"): (0.0, 0.0, 0.0),
    ("sp", "adam"): (0.0, 1.0, 1.0),
    ("ntp", "adam"): (0.0, 0.5, 0.5),
    ("mup", "adam"): (0.0, 0.0, 0.0),
    ("simple-mup", "adam"): (0.5, 1.0, 0.5),
}


def update_sizes(width, parameterization, optimizer, *, seeds=16):
    """Root mean square of the change of each layer's own output by its own first update, on the sample it saw."""
    return np.sqrt(
        sum(squared_updates(width, parameterization, optimizer, seed) for seed in range(seeds)) / seeds
    )


def squared_updates(width, parameterization, optimizer, seed):
    torch.manual_seed(seed)
    model = FCN(num_features=64, num_classes=10, depth=3, width=width, parameterization=parameterization)
    layers = [layer for layer in model if isinstance(layer, ScaledLinear)]
    inputs = {}
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, _: inputs.update({layer: args[0].detach()}))
    x, direction = (nn.functional.normalize(torch.randn(n), dim=0) for n in (64, 10))
    (model(8 * x) @ direction).backward()  # entries of order 1, and a gradient of norm 1
    with torch.no_grad():
        seen = list(inputs.items())
        before = [layer(x) for layer, x in seen]
        make_optimizer(OptimizerConfig(name=optimizer, lr=1.0, eps=1e-30), model, 1.0).step()
        changes = [layer(x) - old for (layer, x), old in zip(seen, before, strict=True)]
    return np.array([float(change.square().mean()) for change in changes])


@pytest.mark.parametrize(("parameterization", "optimizer"), UPDATES)
def test_updates_scale_with_the_width_as_theory_says(parameterization, optimizer):
    """Sizes over 16 seeds deviate by up to 12 % in the narrow net, exponents by 0.12/log 16 = 0.04; three of them."""
    narrow, wide = (update_sizes(width, parameterization, optimizer) for width in (64, 1024))
    first, hidden, _, last = np.log(wide / narrow) / math.log(16)
    np.testing.assert_allclose((first, hidden, last), UPDATES[parameterization, optimizer], atol=0.12)


def test_with_the_factors_as_the_paper_lists_them_hidden_updates_grow_with_the_width():
    """1/√fan_in for hidden layers and 1/fan_in for the last: why `scales` has them the other way round."""
    narrow, wide = (
        update_sizes(width, "mup", "adam")[[1, -1]] * (width**0.5, width**-0.5) for width in (64, 1024)
    )
    np.testing.assert_allclose(np.log(wide / narrow) / math.log(16), (0.5, -0.5), atol=0.12)


def group_of(groups, parameter):
    return next(group for group in groups if any(p is parameter for p in group["params"]))


def test_mup_scales_adam_s_rates_by_layer():
    model = FCN(num_features=64, num_classes=10, depth=3, width=100, parameterization="mup")
    groups = parameter_groups(model, lr=0.5, adaptive=True)
    first, hidden, _, last = [layer for layer in model if isinstance(layer, ScaledLinear)]
    for layer, factor in ((first, 1 / 10), (hidden, 1 / 100), (last, 1 / 10)):
        assert group_of(groups, layer.weight)["lr"] == pytest.approx(0.5 * factor)
        assert group_of(groups, layer.bias)["lr"] == pytest.approx(0.5 * factor)


@pytest.mark.parametrize(("role", "factor"), [("input", 1 / 7), ("hidden", 1 / 35), ("last", 1 / 5)])
def test_the_factor_of_a_layer_that_is_not_square(role, factor):
    layer = ScaledLinear(25, 49, role=role, parameterization="mup")
    assert layer.scales.adam_rate_factor == pytest.approx(factor, rel=1e-15)


def test_mup_leaves_the_embedding_and_the_norms_of_a_language_model_unscaled():
    model = LM(vocabulary=256, context=4, depth=1, width=64, parameterization="mup")
    groups = parameter_groups(model, lr=1.0, adaptive=True)
    assert group_of(groups, model.embedding.weight)["lr"] == 1.0
    assert group_of(groups, model.norm.weight)["lr"] == 1.0
    assert group_of(groups, model.blocks[0].mlp_out.weight)["lr"] == pytest.approx(1 / 128)
    assert group_of(groups, model.head.weight)["lr"] == pytest.approx(1 / 8)
    assert groups[0]["lr"] == 1.0  # the first group's rate is the one that a run's `lr` column shows


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_is_trained_once_and_only_mup_with_adam_has_groups(parameterization, optimizer):
    model = LM(vocabulary=256, context=4, depth=2, width=32, parameterization=parameterization)
    made = make_optimizer(OptimizerConfig(name=optimizer, lr=0.5), model, 0.25)
    trained = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    if parameterization == "mup" and optimizer != "sgd":
        assert len(made.param_groups) > 1
    else:
        assert [group["lr"] for group in made.param_groups] == [0.25]


@pytest.mark.parametrize("width", [32, 33])
def test_positions_are_those_of_vaswani_et_al(width):
    expected = np.zeros((50, width))
    for position in range(50):
        for i in range(width):
            angle = position / 10_000 ** ((i - i % 2) / width)
            expected[position, i] = math.cos(angle) if i % 2 else math.sin(angle)
    # float32 angles below 50 are exact to 50·2⁻²⁴ and a few roundings of the frequency
    np.testing.assert_allclose(sinusoidal_positions(50, width).numpy(), expected, atol=50 * 4 * 2.0**-23)
