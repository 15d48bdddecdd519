"""A piece of code that changes training is caught, and what it changed is named.

Ladder: closed form (a table of changes, each with the words for it, and nothing else said); bits set by hand;
edgewise's own measurements, which may change nothing. Cannot see: what no row of the table changes; random states of
CUDA devices, which these tests do not have.
"""

import math
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import edgewise as ew
from cases import cross_entropy, train_step
from edgewise.curvature.hessian import ROUTES
from edgewise.errors import EdgewiseError, SecondDerivativeError, SideEffectError
from edgewise.lab.models.fcn import FCN
from edgewise.lab.models.lm import LM
from edgewise.torch_internals import GLOBAL_HOOKS


@pytest.fixture(autouse=True)
def _undone():
    """What is changed for all modules and optimizers is changed back."""
    registries = [hooks for hooks in GLOBAL_HOOKS.values() if hooks is not None]
    before = [hooks.copy() for hooks in registries]  # that of UpdateLoss stays, once there was one
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_autocast_enabled("cpu", False)
    for hooks, own in zip(registries, before, strict=True):
        hooks.clear()
        hooks.update(own)


def hook(*args):
    return None


def watched(make_optimizer=torch.optim.Adam, lr=0.1):
    """A model with buffers, modes, hooks and gradients, and an optimizer of two groups that has stepped."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
    model[3].bias.requires_grad_(False)
    model[0].register_forward_hook(hook)
    model[0].weight.register_hook(hook)
    optimizer = make_optimizer(
        [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": lr}], lr=1e-3
    )
    optimizer.register_step_pre_hook(hook)
    loss_fn = lambda model, x: model(x).square().mean()
    train_step(model, optimizer, loss_fn, torch.randn(6, 3))
    loss_fn(model, torch.randn(6, 3)).backward()
    return model, optimizer


def effects_of(model, optimizer, fn):
    """Return the lines of the message, none for a clean fn."""
    try:
        ew.assert_no_side_effects(model, optimizer, fn)
    except SideEffectError as error:
        first, *lines = str(error).split("\n  - ")
        assert first == f"fn had {len(lines)} side effect{'s' if len(lines) > 1 else ''}:"
        return lines
    return []


EFFECTS = {
    # parameters
    "parameter": (
        lambda m, o: m[0].weight.data[0, 0].add_(1),
        ["parameter '0.weight' changed"],
    ),
    "another parameter": (
        lambda m, o: setattr(m[0], "bias", nn.Parameter(m[0].bias.detach().clone())),
        [
            "parameter '0.bias' replaced by another object",
            "gradient of parameter '0.bias' removed",
            *(
                f"optimizer state {key!r} of parameter '0.bias' removed"
                for key in ("step", "exp_avg", "exp_avg_sq")
            ),
            # the optimizer still has the one before
            "gradient of parameter 1 of group 0 added",
            *(
                f"optimizer state {key!r} of parameter 1 of group 0 added"
                for key in ("step", "exp_avg", "exp_avg_sq")
            ),
        ],
    ),
    "shape": (
        lambda m, o: setattr(m[3].bias, "data", torch.zeros(3)),
        ["parameter '3.bias': shape (3,), was (2,)", "parameter '3.bias' changed"],
    ),
    "dtype": (
        lambda m, o: setattr(m[3].bias, "data", m[3].bias.data.double()),
        ["parameter '3.bias': dtype torch.float64, was torch.float32", "parameter '3.bias' changed"],
    ),
    "strides": (
        lambda m, o: setattr(m[3].weight, "data", m[3].weight.data.T.contiguous().T),
        ["parameter '3.weight': strides (1, 2), was (4, 1)"],
    ),
    "requires_grad": (
        lambda m, o: m[3].bias.requires_grad_(True),
        ["parameter '3.bias': requires_grad True, was False"],
    ),
    "new parameter": (
        lambda m, o: m.register_parameter("extra", nn.Parameter(torch.ones(1))),
        ["parameter 'extra' added"],
    ),
    # buffers
    "buffer": (
        lambda m, o: m[1].running_var.mul_(2),
        ["buffer '1.running_var' changed"],
    ),
    "scalar buffer": (
        lambda m, o: m[1].num_batches_tracked.add_(1),
        ["buffer '1.num_batches_tracked': tensor(2) -> tensor(3)"],
    ),
    "another buffer": (
        lambda m, o: setattr(m[1], "running_mean", m[1].running_mean.clone()),
        ["buffer '1.running_mean' replaced by another object"],
    ),
    "new buffer": (
        lambda m, o: m[0].register_buffer("extra", torch.ones(1)),
        ["buffer '0.extra' added"],
    ),
    "removed buffer": (
        lambda m, o: delattr(m[1], "running_mean"),
        ["buffer '1.running_mean' removed"],
    ),
    # gradients
    "gradient": (
        lambda m, o: m[0].bias.grad.add_(1),
        ["gradient of parameter '0.bias' changed"],
    ),
    "no gradient": (
        lambda m, o: setattr(m[0].bias, "grad", None),
        ["gradient of parameter '0.bias' removed"],
    ),
    "new gradient": (
        lambda m, o: setattr(m[3].bias, "grad", torch.ones(2)),
        ["gradient of parameter '3.bias' added"],
    ),
    "another gradient": (
        lambda m, o: setattr(m[0].bias, "grad", m[0].bias.grad.clone()),
        ["gradient of parameter '0.bias' replaced by another object"],
    ),
    "gradient that requires one": (
        lambda m, o: m[0].bias.grad.requires_grad_(True),
        ["gradient of parameter '0.bias': requires_grad True, was False"],
    ),
    "gradient with a graph": (
        lambda m, o: setattr(m[0].bias, "grad", m[0].bias * 2),
        [
            "gradient of parameter '0.bias' replaced by another object",
            "gradient of parameter '0.bias': requires_grad True, was False",
            "gradient of parameter '0.bias': graph MulBackward0, was None",
        ],
    ),
    # the optimizer
    "state": (
        lambda m, o: o.state[m[0].weight]["exp_avg"].add_(1),
        ["optimizer state 'exp_avg' of parameter '0.weight' changed"],
    ),
    "step": (
        lambda m, o: o.state[m[0].weight]["step"].add_(1),
        ["optimizer state 'step' of parameter '0.weight': tensor(1) -> tensor(2)"],
    ),
    "another state tensor": (
        lambda m, o: o.state[m[0].weight].update(exp_avg=o.state[m[0].weight]["exp_avg"].clone()),
        ["optimizer state 'exp_avg' of parameter '0.weight' replaced by another object"],
    ),
    "new state": (
        lambda m, o: o.state[m[1].bias].update(ema=0.5),
        ["optimizer state 'ema' of parameter '1.bias' added"],
    ),
    "nested state": (
        lambda m, o: o.state[m[0].weight].update(factors={"left": [1]}),
        ["optimizer state 'factors' of parameter '0.weight'['left'][0] added"],
    ),
    "learning rate": (
        lambda m, o: o.param_groups[1].update(lr=0.2),
        ["learning rate of group 1: 0.1 -> 0.2"],
    ),
    "option": (
        lambda m, o: o.param_groups[0].update(betas=(0.5, 0.999)),
        ["option 'betas' of group 0: (0.9, 0.999) -> (0.5, 0.999)"],
    ),
    "new option": (
        lambda m, o: o.param_groups[0].update(surprise=1),
        ["option 'surprise' of group 0 added"],
    ),
    "members": (
        lambda m, o: o.param_groups[1]["params"].reverse(),
        [
            "parameter 0 of group 1 replaced by another object",
            "parameter 1 of group 1 replaced by another object",
        ],
    ),
    "member removed": (
        lambda m, o: o.param_groups[1]["params"].pop(),
        ["parameter 1 of group 1 removed"],
    ),
    "attribute": (
        lambda m, o: setattr(o, "surprise", 1),
        ["optimizer.surprise added"],
    ),
    "defaults": (
        lambda m, o: o.defaults.update(lr=5.0),
        ["optimizer.defaults['lr']: 0.001 -> 5.0"],
    ),
    "step() replaced": (
        lambda m, o: setattr(o, "step", hook),
        ["optimizer.step added"],
    ),
    # random states
    "torch": (lambda m, o: torch.rand(1), ["torch's CPU random state moved"]),
    "Python": (lambda m, o: random.random(), ["Python's random state moved"]),
    "NumPy": (lambda m, o: np.random.rand(), ["NumPy's random state moved"]),  # noqa: NPY002
    # modules
    "mode": (lambda m, o: m[2].eval(), ["module '2' (Dropout): training False, was True"]),
    "mode of the model": (
        lambda m, o: setattr(m, "training", False),
        ["the model (Sequential): training False, was True"],
    ),
    "another module": (
        lambda m, o: setattr(m, "2", nn.Dropout(0.3)),
        ["module '2' (Dropout) replaced by another object"],
    ),
    "forward() replaced": (
        lambda m, o: setattr(m[2], "forward", hook),
        ["module '2' (Dropout): attribute 'forward' added"],
    ),
    # hooks
    "forward hook": (
        lambda m, o: m[2].register_forward_hook(hook),
        ["module '2' (Dropout): forward hook added"],
    ),
    "forward pre hook": (
        lambda m, o: m[2].register_forward_pre_hook(hook),
        ["module '2' (Dropout): forward pre hook added"],
    ),
    "backward hook": (
        lambda m, o: m[2].register_full_backward_hook(hook),
        ["module '2' (Dropout): backward hook added"],
    ),
    "backward pre hook": (
        lambda m, o: m[2].register_full_backward_pre_hook(hook),
        ["module '2' (Dropout): backward pre hook added"],
    ),
    "state dict hook": (
        lambda m, o: m.register_state_dict_post_hook(hook),
        ["the model (Sequential): state dict hook added"],
    ),
    "load state dict hook": (
        lambda m, o: m.register_load_state_dict_pre_hook(hook),
        ["the model (Sequential): load state dict pre hook added"],
    ),
    "forward hook removed": (
        lambda m, o: m[0]._forward_hooks.clear(),
        ["module '0' (Linear): forward hook removed"],
    ),
    "forward hook replaced": (
        lambda m, o: m[0]._forward_hooks.update(dict.fromkeys(m[0]._forward_hooks, print)),
        ["module '0' (Linear): forward hook replaced by another object"],
    ),
    "tensor hook": (
        lambda m, o: m[0].bias.register_hook(hook),
        ["parameter '0.bias': backward hook added"],
    ),
    "tensor hook removed": (
        lambda m, o: m[0].weight._backward_hooks.clear(),
        ["parameter '0.weight': backward hook removed"],
    ),
    "post-accumulate-grad hook": (
        lambda m, o: m[0].bias.register_post_accumulate_grad_hook(hook),
        ["parameter '0.bias': post accumulate grad hook added"],
    ),
    "step hook": (
        lambda m, o: o.register_step_post_hook(hook),
        ["optimizer: step post hook added"],
    ),
    "step hook removed": (
        lambda m, o: o._optimizer_step_pre_hooks.clear(),
        ["optimizer: step pre hook removed"],
    ),
    "state dict hook of the optimizer": (
        lambda m, o: o.register_state_dict_post_hook(hook),
        ["optimizer: state dict post hook added"],
    ),
    "hook of all modules": (
        lambda m, o: nn.modules.module.register_module_forward_hook(hook),
        ["global forward hook added"],
    ),
    "hook of all optimizers": (
        lambda m, o: register_optimizer_step_post_hook(hook),
        ["global optimizer step post hook added"],
    ),
    # settings
    "grad mode": (lambda m, o: torch.set_grad_enabled(False), ["torch's grad mode: True -> False"]),
    "autocast": (
        lambda m, o: torch.set_autocast_enabled("cpu", True),
        ["torch's autocast on cpu: False -> True"],
    ),
    "default dtype": (
        lambda m, o: torch.set_default_dtype(torch.float64),
        ["torch's default dtype: torch.float32 -> torch.float64"],
    ),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_is_named_and_nothing_else(name):
    effect, words = EFFECTS[name]
    model, optimizer = watched()
    assert effects_of(model, optimizer, lambda: None) == []
    assert effects_of(model, optimizer, lambda: effect(model, optimizer)) == words


class Around(torch.optim.SGD):
    """As third-party optimizers are: around others, with records, and a way back to itself."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        params = [p for group in self.param_groups for p in group["params"]]
        self.inner = torch.optim.SGD(params, lr=lr, momentum=0.9)
        self.others = [torch.optim.Adam(params, lr=lr), self]
        self.history, self.seen, self.counts = [1.0], {1, 2}, {"steps": 0}
        self.estimate = torch.ones(2)
        self.rule = hook

    def step(self, closure=None):
        self.inner.step()
        self.others[0].step()


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (
            lambda o, p: o.inner.state[p]["momentum_buffer"].add_(1),
            "optimizer.inner state 'momentum_buffer' of parameter '0.weight' changed",
        ),
        (
            lambda o, p: o.inner.param_groups[0].update(lr=0.5),
            "learning rate of group 0 of optimizer.inner: 0.001 -> 0.5",
        ),
        (
            lambda o, p: o.inner.register_step_post_hook(hook),
            "optimizer.inner: step post hook added",
        ),
        (
            lambda o, p: o.others[0].state[p]["exp_avg"].zero_(),
            "optimizer.others[0] state 'exp_avg' of parameter '0.weight' changed",
        ),
        (lambda o, p: o.history.append(2.0), "optimizer.history[1] added"),
        (lambda o, p: o.history.clear(), "optimizer.history[0] removed"),
        (lambda o, p: o.seen.add(3), "optimizer.seen: ['1', '2'] -> ['1', '2', '3']"),
        (lambda o, p: o.counts.update(steps=1), "optimizer.counts['steps']: 0 -> 1"),
        (lambda o, p: o.estimate.add_(1), "optimizer.estimate changed"),
        (lambda o, p: setattr(o, "rule", print), "optimizer.rule replaced by another object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_an_optimizer_holds_is_compared_as_well(effect, words):
    model, optimizer = watched(Around)
    assert effects_of(model, optimizer, lambda: effect(optimizer, model[0].weight)) == [words]


def test_a_tensor_learning_rate_is_shown():
    model, optimizer = watched(
        lambda groups, lr: torch.optim.Adam(groups, lr=lr, foreach=False), torch.tensor(0.1)
    )
    rate = optimizer.param_groups[1]["lr"]
    assert effects_of(model, optimizer, lambda: rate.fill_(0.2)) == [
        "learning rate of group 1: tensor(0.1) -> tensor(0.2)"
    ]
    replaced = lambda: optimizer.param_groups[1].update(lr=0.3)
    assert effects_of(model, optimizer, replaced) == ["learning rate of group 1: tensor(0.2) -> 0.3"]


def test_a_change_too_small_for_its_words_is_still_a_change():
    model = nn.Module()
    model.register_buffer("x", torch.tensor(0.1, dtype=torch.float64))
    nudged = lambda: model.x.copy_(torch.nextafter(model.x, torch.ones_like(model.x)))
    assert effects_of(model, None, nudged) == ["buffer 'x' changed"]


def test_parameters_of_the_optimizer_alone_are_compared():
    model, other = nn.Linear(2, 1), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([other], lr=0.1)
    assert effects_of(model, optimizer, lambda: other.data.add_(1)) == ["parameter 0 of group 0 changed"]
    added = lambda: setattr(other, "grad", torch.ones(2))
    assert effects_of(model, optimizer, added) == ["gradient of parameter 0 of group 0 added"]


def test_each_name_of_a_tied_parameter_is_compared():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    untie = lambda: setattr(model[1], "weight", nn.Parameter(model[0].weight.detach().clone()))
    assert effects_of(model, None, untie) == ["parameter '1.weight' replaced by another object"]


# Bits


TENSORS = {
    "float16": torch.ones(3, dtype=torch.float16),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
    "float64": torch.ones(3, dtype=torch.float64),
    "complex64": torch.ones(3, dtype=torch.complex64),
    "int64": torch.ones(3, dtype=torch.int64),
    "bool": torch.ones(3, dtype=torch.bool),
    "scalar": torch.tensor(1.0),
    "transposed": torch.ones(2, 3, dtype=torch.bfloat16).T,
    "strided": torch.ones(7)[::2],
    "expanded": torch.ones(1).expand(3),
    "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_one_bit_of_any_dtype_and_layout_is_seen(name):
    model = nn.Module()
    tensor = TENSORS[name].clone() if name == "bool" else TENSORS[name]
    model.register_buffer("x", tensor)
    assert effects_of(model, None, lambda: None) == []
    base = tensor._base if tensor._base is not None else tensor

    def flip():
        base.reshape(-1)[:1].view(torch.uint8)[:1].bitwise_xor_(1)

    (line,) = effects_of(model, None, flip)
    assert line.startswith("buffer 'x'")
    flip()
    assert effects_of(model, None, lambda: None) == []


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(0), torch.empty(3, 0, dtype=torch.bfloat16), torch.empty(2, device="meta")],
    ids=["empty", "no columns", "meta"],
)
def test_a_tensor_without_entries_has_a_shape_still(tensor):
    model = nn.Module()
    model.register_buffer("x", tensor)
    assert effects_of(model, None, lambda: None) == []
    shape = tuple(tensor.shape)
    grown = lambda: setattr(tensor, "data", torch.empty(5, device=tensor.device, dtype=tensor.dtype))
    assert effects_of(model, None, grown)[0] == f"buffer 'x': shape (5,), was {shape}"


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_entries_of_a_sparse_tensor_are_seen(layout):
    model = nn.Module()
    model.register_buffer("x", torch.eye(3).to_sparse(layout=layout))
    assert effects_of(model, None, lambda: None) == []
    values = model.x._values() if layout is torch.sparse_coo else model.x.values()
    assert effects_of(model, None, lambda: values.add_(1)) == ["buffer 'x' changed"]


def test_a_sparse_gradient_is_compared():
    model = nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1, 2])).sum().backward()
    assert effects_of(model, None, lambda: None) == []
    assert effects_of(model, None, lambda: model.weight.grad._values().add_(1)) == [
        "gradient of parameter 'weight' changed"
    ]


def test_nan_equals_itself_and_zeros_differ_by_sign():
    model = nn.Module()
    model.register_buffer("x", torch.tensor([math.nan, 0.0]))
    assert effects_of(model, None, lambda: None) == []
    assert effects_of(model, None, model.x[1].neg_) == ["buffer 'x' changed"]
    payload = torch.tensor([0x7FC0BEEF], dtype=torch.int32).view(torch.float32)
    assert effects_of(model, None, lambda: model.x[:1].copy_(payload)) == ["buffer 'x' changed"]


def test_a_module_that_takes_its_shape_from_its_input():
    model = nn.LazyLinear(1, bias=False)
    assert effects_of(model, None, lambda: None) == []
    lines = effects_of(model, None, lambda: model(torch.randn(4, 2)))
    assert "parameter 'weight': type Parameter, was UninitializedParameter" in lines


def test_this_ranks_shard_is_compared():
    import torch.distributed as dist  # noqa: PLC0415
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        train_step(model, optimizer, lambda model, x: model(x).square().mean(), torch.randn(4, 2))
        assert effects_of(model, optimizer, lambda: model(torch.ones(4, 2))) == []
        shard = model[0].weight.to_local()
        assert effects_of(model, optimizer, lambda: shard.data.add_(1)) == ["parameter '0.weight' changed"]
    finally:
        dist.destroy_process_group()


class LiveBytes(TorchDispatchMode):
    """The most bytes of new tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in before:
                size = tensor.untyped_storage().nbytes()
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self.free, size)
        return out

    def free(self, size):
        self.now -= size


def test_memory_is_needed_for_the_largest_tensor_and_not_for_the_model():
    model = nn.ParameterList([nn.Parameter(torch.randn(1000, 50).T) for _ in range(20)])  # hashed as copies
    with LiveBytes() as live:
        ew.assert_no_side_effects(model, None, lambda: None)
    one = model[0].numel() * 4
    assert one <= live.most < 2 * one


# What it returns and raises


def test_a_clean_function_returns_its_value():
    model, optimizer = watched()
    value = object()
    assert ew.assert_no_side_effects(model, optimizer, lambda: value) is value
    assert ew.assert_no_side_effects(model, None, lambda: value) is value


def test_what_is_put_back_was_no_effect():
    model, optimizer = watched()

    def careful():
        with ew.isolated(model, optimizer):
            model.eval()
            torch.rand(1)
            optimizer.step()

    assert effects_of(model, optimizer, careful) == []


def test_ten_are_named_and_the_rest_is_counted():
    model, optimizer = watched()

    def step():
        for group in optimizer.param_groups:
            group["lr"] = 0.7
        optimizer.step()

    with pytest.raises(SideEffectError) as caught:
        ew.assert_no_side_effects(model, optimizer, step)
    first, *lines = str(caught.value).split("\n  - ")
    assert lines[:2] == ["learning rate of group 0: 0.001 -> 0.7", "learning rate of group 1: 0.1 -> 0.7"]
    assert len(lines) == 11
    # two rates; three parameters with a gradient, each with step and two moments
    assert first == "fn had 14 side effects:"
    assert lines[-1] == "and 4 more"


def test_the_error_is_caught_by_either_name():
    for error in (EdgewiseError, AssertionError):
        with pytest.raises(error, match="random state moved"):
            ew.assert_no_side_effects(nn.Linear(1, 1), None, lambda: torch.rand(1))


def test_an_exception_comes_through_with_a_note():
    model, optimizer = watched()

    def failing():
        model[2].eval()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        ew.assert_no_side_effects(model, optimizer, failing)
    assert caught.value.__notes__ == [
        "fn had 1 side effect:\n  - module '2' (Dropout): training False, was True"
    ]
    with pytest.raises(KeyError) as caught:
        ew.assert_no_side_effects(model, optimizer, failing)  # by now nothing is left to change
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fn": 3}, "fn must be a function of no arguments: write lambda.*; got 3 of type int"),
        ({"fn": None}, "fn must be a function of .* got None"),
        ({"model": None}, "model must be a torch.nn.Module, got None"),
        ({"model": cross_entropy}, "model must be a torch.nn.Module, got the function cross_entropy"),
        ({"optimizer": "adam"}, "optimizer must be a torch.optim.Optimizer, got 'adam' of type str"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(given, message):
    model, optimizer = watched()
    called = []
    given = {"model": model, "optimizer": optimizer, "fn": lambda: called.append(1)} | given
    with pytest.raises(TypeError, match=message):
        ew.assert_no_side_effects(**given)
    assert not called


# edgewise's own measurements


class ConvNet(nn.Sequential):
    """Batch statistics and dropout."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(12, 3),
        )


def fcn():
    return FCN(num_features=3, num_classes=3, depth=2, width=8, parameterization="sp")


def language_model():
    return LM(vocabulary=7, context=5, depth=1, width=32, parameterization="sp")


def token_loss(model, batch):
    return cross_entropy(lambda x: model(x)[:, -1], batch)


MODELS = {
    "fcn": (fcn, lambda: torch.randn(6, 3), cross_entropy),
    "conv": (ConvNet, lambda: torch.randn(6, 1, 4, 4), cross_entropy),
    "lm": (language_model, lambda: torch.randint(0, 7, (6, 5)), token_loss),
    "bfloat16": (
        lambda: fcn().to(torch.bfloat16),
        lambda: torch.randn(6, 3, dtype=torch.bfloat16),
        cross_entropy,
    ),
}


def in_training(name, make_optimizer=torch.optim.AdamW):
    """A model and optimizer between `backward` and `step`, with its loss and batch."""
    make_model, make_inputs, loss_fn = MODELS[name]
    model = make_model()
    optimizer = make_optimizer(model.parameters(), lr=0.01)
    batch = (make_inputs(), torch.randint(0, 3, (6,)))
    train_step(model, optimizer, loss_fn, batch)
    optimizer.zero_grad()
    loss_fn(model, batch).backward()
    return model, optimizer, loss_fn, batch


OPTIONS = {"rtol": 0.1, "max_hvps": 6}
MEASUREMENTS = {
    **{
        f"sharpness, {hvp}": lambda m, o, f, b, hvp=hvp: ew.sharpness(m, f, [b], hvp=hvp, **OPTIONS)
        for hvp in ROUTES
    },
    "preconditioned_sharpness": lambda m, o, f, b: ew.preconditioned_sharpness(m, f, [b], o, **OPTIONS),
    "hessian": lambda m, o, f, b: products(m, f, b),
    "critical_lr, compute": ew.critical_lr,
    "critical_lr, current": lambda m, o, f, b: ew.critical_lr(m, o, f, b, gradient="current"),
    "stability_limit": lambda m, o, f, b: ew.stability_limit(o),
    "Monitor": lambda m, o, f, b: ew.Monitor(m, o, f, every=1).observe(b),
}


def products(model, loss_fn, batch):
    with ew.hessian(model, loss_fn, [batch]) as operator:
        return operator.matvec(torch.ones(operator.size, dtype=operator.dtype))


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_measurement_has_no_side_effect(name, measurement):
    model, optimizer, loss_fn, batch = in_training(name)
    measure = lambda: MEASUREMENTS[measurement](model, optimizer, loss_fn, batch)
    try:
        measure()
    except SecondDerivativeError:  # not every route is there for every model
        with pytest.raises(SecondDerivativeError) as caught:
            ew.assert_no_side_effects(model, optimizer, measure)
        assert not hasattr(caught.value, "__notes__")
    else:
        assert ew.assert_no_side_effects(model, optimizer, measure) is not None


@pytest.mark.filterwarnings("ignore:GIAdamW keeps v")  # in bfloat16
@pytest.mark.parametrize("make_optimizer", [torch.optim.AdamW, torch.optim.SGD, ew.GIAdamW])
@pytest.mark.parametrize("name", MODELS)
def test_a_warmup_that_observes_changes_learning_rates_alone(name, make_optimizer):
    model, optimizer, loss_fn, batch = in_training(name, make_optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
        group.pop("initial_lr", None)
    warmup = ew.LinearWarmup(optimizer, warmup_steps=1000, lr_init="critical")
    lines = effects_of(model, optimizer, lambda: warmup.observe(lambda: loss_fn(model, batch)))
    assert [line.partition(":")[0] for line in lines] == ["learning rate of group 0"]
