"""The names of torch that may change with any release: what each is relied on for, and that they are in one file.

Ladder: closed form, each name alone; the source itself, parsed. Cannot see: a private name behind `self`, where a class
of ours extends one of torch's, but for those listed here; names that are put together at run time.
"""

import ast
import inspect
import sys
import warnings
import weakref
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Adagrad, Adam, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, LRScheduler, SequentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import edgewise
from edgewise import torch_internals as internals

SOURCE = Path(edgewise.__file__).parent
# What our subclasses of torch's classes override or set, as torch calls or reads it: each has a test below.
EXTENDED = {"_init_group", "_initial_step", "_update_lr", "_step_count", "_last_lr"}


def one_parameter():
    return nn.Parameter(torch.ones(2))


# Containers and tensors


def test_the_leaves_of_nested_containers_keep_their_order():
    nested = {"b": [1, (2, 3)], "a": None, "c": OrderedDict(d=4)}
    leaves, spec = internals.tree_flatten(nested)
    assert leaves == internals.tree_leaves(nested) == [1, 2, 3, None, 4]
    assert spec.unflatten([10, 20, 30, 0, 40]) == {"b": [10, (20, 30)], "a": 0, "c": OrderedDict(d=40)}


def test_a_map_over_nested_containers_makes_new_ones():
    nested = {"lr": 0.1, "betas": (0.9, 0.99)}
    mapped = internals.tree_map(lambda x: x + 1, nested)
    assert mapped == {"lr": 1.1, "betas": (1.9, 1.99)}
    assert mapped is not nested


def test_what_torch_func_passes_is_told_from_a_tensor():
    seen = []
    torch.func.grad(lambda x: seen.append(internals.is_functorch_wrapped_tensor(x)) or x.sum())(torch.ones(2))
    assert seen == [True]
    assert not internals.is_functorch_wrapped_tensor(torch.ones(2))


def test_a_tensor_made_of_others_names_them():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert internals.is_traceable_wrapper_subclass(nested)
    names, _ = nested.__tensor_flatten__()
    assert all(isinstance(getattr(nested, name), torch.Tensor) for name in names)
    assert not internals.is_traceable_wrapper_subclass(one_parameter())


def test_writes_to_a_tensor_are_counted_but_for_those_through_data():
    tensor = torch.ones(2)
    before = internals.num_writes(tensor)
    tensor.data.mul_(2)
    assert internals.num_writes(tensor) == before
    tensor.mul_(2)
    assert internals.num_writes(tensor) > before


def test_the_parts_of_a_sparse_tensor_are_not_coalesced():
    embedding = nn.Embedding(4, 1, sparse=True)
    (embedding(torch.tensor([1, 1])) * torch.tensor([[2.0], [3.0]])).sum().backward()
    tensor = embedding.weight.grad
    indices, values = internals.sparse_parts(tensor)
    assert indices.tolist() == [[1, 1]]
    assert values.tolist() == [[2.0], [3.0]]


def test_hooks_on_a_gradient_do_not_run_while_they_are_out_of_their_registry():
    parameter, calls = one_parameter(), []
    assert internals.accumulation_hooks(parameter) == {}
    parameter.register_post_accumulate_grad_hook(lambda p: calls.append("complete"))
    hooks = internals.accumulation_hooks(parameter)
    saved = dict(hooks)
    hooks.clear()
    parameter.sum().backward()
    assert calls == []
    hooks.update(saved)
    parameter.sum().backward()
    assert calls == ["complete"]


def test_the_hooks_on_a_tensor_are_in_their_registries():
    parameter = one_parameter()
    assert not any(internals.tensor_hooks(parameter).values())
    parameter.register_hook(lambda gradient: None)
    parameter.register_post_accumulate_grad_hook(lambda p: None)
    assert {name: len(hooks) for name, hooks in internals.tensor_hooks(parameter).items()} == {
        "_backward_hooks": 1,
        "_post_accumulate_grad_hooks": 1,
    }


def test_kernels_for_many_tensors_compute_what_those_for_one_do():
    a, b = [torch.tensor([-2.0, 3.0])], [torch.tensor([5.0, 7.0])]
    assert torch.equal(internals.foreach_add(a, b, alpha=2)[0], a[0] + 2 * b[0])
    assert internals.foreach_sign(a)[0].tolist() == [-1.0, 1.0]
    for kernel, arguments, expected in (
        (internals.foreach_sub_, (1,), a[0] - 1),
        (internals.foreach_mul_, (b,), a[0] * b[0]),
    ):
        written = [a[0].clone()]
        kernel(written, *arguments)
        assert torch.equal(written[0], expected)
    written = [a[0].clone()]
    internals.foreach_addcmul_(written, b, b, value=0.5)
    assert torch.equal(written[0], a[0] + 0.5 * b[0] * b[0])


def test_attention_by_products_is_the_fused_one_with_second_derivatives():
    query, key, value = torch.randn(3, 1, 2, 4, 8, dtype=torch.float64).requires_grad_()
    attended, weights = internals.attention_by_products(
        query, key, value, None, 0.0, True, scale=0.3, enable_gqa=False
    )
    fused = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(attended, fused)
    assert weights.shape == (1, 2, 4, 4)
    (gradient,) = torch.autograd.grad(attended.square().sum(), query, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), key)[0].any()


# Modules


def test_the_registries_of_a_module_are_its_tensors():
    model = nn.Sequential(nn.BatchNorm1d(2))
    layer = model[0]
    assert list(internals.own_parameters(layer)) == ["weight", "bias"]
    assert list(internals.own_buffers(layer)) == ["running_mean", "running_var", "num_batches_tracked"]
    assert not internals.own_parameters(model)
    assert not internals.own_buffers(model)
    internals.own_parameters(layer)["weight"] = weight = one_parameter()
    internals.own_buffers(layer)["running_mean"] = mean = torch.ones(2)
    assert layer.weight is weight
    assert layer.running_mean is mean


@pytest.mark.parametrize("cls", [nn.BatchNorm2d, nn.LazyBatchNorm1d, nn.SyncBatchNorm])
def test_a_layer_that_normalizes_over_the_batch_is_known(cls):
    assert issubclass(cls, internals.BatchNorm)
    assert not issubclass(nn.LayerNorm, internals.BatchNorm)


def test_what_was_compiled_is_found():
    def double(x):
        return 2 * x

    assert internals.original_of_compiled(torch.compile(double, backend="eager")) is double
    assert internals.original_of_compiled(double) is None


def test_what_compiling_runs_in_plain_python_is_told_of_it():
    seen = []

    class Watched(Adam):
        def _init_group(self, *arguments):
            seen.append(internals.is_compiling())
            return super()._init_group(*arguments)

    parameter = one_parameter()
    parameter.grad = torch.ones(2)
    optimizer = Watched([parameter], lr=torch.tensor(0.1))
    optimizer.step()
    assert seen == [False]
    with warnings.catch_warnings(action="ignore"):  # torch's own, of a compiled step
        torch.compile(optimizer.step, backend="eager")()
    assert seen == [False, True]
    assert not internals.is_compiling()


# Optimizers


def test_hooks_on_all_optimizers_are_looked_up_at_each_step():
    optimizer, calls = Adam([one_parameter()]), []
    before, after = internals.GLOBAL_STEP_HOOKS
    handle = register_optimizer_step_pre_hook(lambda *_: calls.append("before"))
    other = register_optimizer_step_post_hook(lambda *_: calls.append("after"))
    try:
        optimizer.step()
        assert calls == ["before", "after"]
        for hooks, each in ((before, handle), (after, other)):
            hooks[each.id] = lambda *_: calls.append("another")
        optimizer.step()
        assert calls == ["before", "after", "another", "another"]
    finally:
        handle.remove()
        other.remove()


def test_the_hooks_on_all_modules_and_optimizers_are_in_their_registries():
    def number():
        return sum(len(hooks) for hooks in internals.GLOBAL_HOOKS.values() if isinstance(hooks, dict))

    before = number()
    register = nn.modules.module
    handles = [
        register.register_module_forward_pre_hook(lambda *_: None),
        register.register_module_forward_hook(lambda *_: None),
        register.register_module_full_backward_hook(lambda *_: None),
        register_optimizer_step_pre_hook(lambda *_: None),
        register_optimizer_step_post_hook(lambda *_: None),
    ]
    try:
        assert number() == before + len(handles)
    finally:
        for handle in handles:
            handle.remove()


def test_hooks_on_an_optimizer_run_in_the_order_of_their_registry():
    optimizer, calls = Adam([one_parameter()]), []
    first = optimizer.register_step_pre_hook(lambda *_: calls.append("first"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("second"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    internals.step_pre_hooks(optimizer).move_to_end(first.id)
    optimizer.step()
    assert calls == ["second", "first", "after"]
    internals.step_pre_hooks(optimizer).clear()
    internals.step_post_hooks(optimizer).clear()
    optimizer.step()
    assert calls == ["second", "first", "after"]


class Bare(Optimizer):
    def __init__(self, params):  # without super().__init__
        self.param_groups = [{"params": params}]

    def step(self):
        return None


def test_an_optimizer_without_registries_is_told():
    assert not internals.has_step_hooks(Bare([one_parameter()]))
    assert internals.has_step_hooks(Adam([one_parameter()]))


def test_a_step_is_made_to_run_hooks_once():
    class Plain(Bare):
        pass

    optimizer, method = Plain([one_parameter()]), Bare.step
    internals.let_class_run_hooks(optimizer)
    hooked = Plain.step
    assert hooked is not method
    internals.let_class_run_hooks(optimizer)
    assert Plain.step is hooked


def test_small_tensors_on_the_cpu_are_taken_one_by_one():
    assert internals.takes_foreach([one_parameter()], False) is False
    assert internals.takes_foreach([one_parameter()], True) is False


def test_missing_state_is_made_by_a_method_of_adam():
    """GI-Adam and RI-Adam fill in v there: after the closure, before the kernels, once a step for each group."""
    calls = []

    class Watched(Adam):
        def _init_group(self, group, parameters, *lists):
            calls.append(len(self.state))
            has_complex = super()._init_group(group, parameters, *lists)
            calls.append(len(self.state))
            assert parameters == group["params"]
            return has_complex

    parameter = one_parameter()
    optimizer = Watched([parameter])

    def closure():
        calls.append("closure")
        parameter.grad = torch.ones(2)
        return 0.0

    optimizer.step(closure)
    assert calls == ["closure", 0, 1]
    assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_state_that_a_constructor_makes_lets_a_copy_step():
    parameter = one_parameter()
    optimizer = Adagrad([parameter], initial_accumulator_value=0.25)
    made = internals.state_of_constructor(optimizer, parameter)
    torch.testing.assert_close(made, dict(optimizer.state[parameter]), rtol=0, atol=0)
    assert internals.state_of_constructor(Adam([parameter]), parameter) == {}


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_leaves_gradients_scaled_to_an_optimizer_that_is_told_to_unscale(fused):
    parameter = one_parameter()
    optimizer, seen = Adam([parameter], fused=fused), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad.tolist()))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    assert internals.takes_scaled_gradients(optimizer) == fused
    assert seen == [[8.0, 8.0] if fused else [1.0, 1.0]]


# Schedulers


def test_the_first_rates_are_written_without_a_step():
    optimizer = Adam([one_parameter()], lr=0.1)
    scheduler = LinearLR(optimizer, start_factor=0.5)
    count = scheduler._step_count
    optimizer.param_groups[0]["lr"] = 0.1
    internals.write_first_rates(scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert scheduler.last_epoch == 0
    assert scheduler._step_count == count


def test_a_sequence_starts_its_parts_by_a_method_of_theirs():
    """A warmup learns so that its turn has come; `_initial_step` is where the constructor ends."""
    calls = []

    class Watched(LRScheduler):
        def _initial_step(self):
            calls.append("made")
            self._step_count, self.last_epoch, self._last_lr = 1, 0, self.base_lrs

        def _update_lr(self, epoch=None):
            calls.append(epoch)

        def get_lr(self):
            return self.base_lrs

    optimizer = Adam([one_parameter()], lr=0.1)
    sequence = SequentialLR(
        optimizer, [LinearLR(optimizer, total_iters=1), Watched(optimizer)], milestones=[1]
    )
    assert calls == ["made"]
    optimizer.step()
    sequence.step()
    assert calls == ["made", 0]


def test_the_latest_rates_of_a_scheduler_are_an_attribute():
    scheduler = LinearLR(Adam([one_parameter()], lr=0.1))
    scheduler._last_lr = [0.7]
    assert scheduler.get_last_lr() == [0.7]


# Code


def codes_on_the_stack():
    frame, codes = inspect.currentframe(), []
    while frame is not None:
        codes.append(frame)
        frame = frame.f_back
    return codes


def test_backward_runs_in_its_code():
    def of_the_traceback(error):
        trace, codes = error.__traceback__, []
        while trace is not None:
            codes.append(trace.tb_frame.f_code)
            trace = trace.tb_next
        return codes

    with pytest.raises(RuntimeError) as failed:
        torch.ones(()).backward()
    assert internals.BACKWARD in of_the_traceback(failed.value)
    with pytest.raises(RuntimeError) as failed:
        torch.autograd.grad(torch.ones(()), [torch.ones(())])
    assert internals.BACKWARD not in of_the_traceback(failed.value)


def test_a_step_with_hooks_runs_in_its_code():
    optimizer, found = Adam([one_parameter()]), []

    def hook(*_):
        frames = [f for f in codes_on_the_stack() if f.f_code is internals.HOOKED_STEP]
        found.extend(frame.f_locals["self"] for frame in frames)

    optimizer.register_step_pre_hook(hook)
    optimizer.step()
    assert found == [optimizer]


def test_a_chain_steps_its_schedulers_in_its_code():
    found = []

    class Watched(LinearLR):
        def step(self, epoch=None):
            found.append(codes_on_the_stack()[2].f_code)
            super().step()

    optimizer = Adam([one_parameter()])
    chain = ChainedScheduler([Watched(optimizer)], optimizer=optimizer)
    optimizer.step()
    found.clear()
    chain.step()
    assert found == [internals.CHAINED_STEP]


# Threads and processes


def test_what_a_thread_keeps_reaches_its_backward_passes():
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append(internals.stashed("a test of edgewise"))
            return gradient

    assert internals.stashed("a test of edgewise") is None
    internals.stash("a test of edgewise", ("kept",))
    try:
        Watched.apply(one_parameter()).sum().backward()
        assert internals.stashed("a test of edgewise") == ("kept",)
    finally:
        internals.stash("a test of edgewise", None)
    assert seen == [("kept",)]


def test_what_a_thread_keeps_is_held_until_it_is_replaced():
    class Thing:
        pass

    thing = Thing()
    before, kept = sys.getrefcount(thing), weakref.ref(thing)
    internals.stash("a test of edgewise", thing)
    assert internals.stashed("a test of edgewise") is thing
    assert sys.getrefcount(thing) == before + 1
    internals.stash("a test of edgewise", None)
    assert sys.getrefcount(thing) == before
    del thing
    assert kept() is None


def test_the_store_of_the_default_group_holds_notes(tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        internals.default_store().set("a note", "its text")
        assert internals.default_store().get("a note") == b"its text"
    finally:
        dist.destroy_process_group()


# One file


def parsed():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(trees):
    """The private names that the house itself gives: to functions, classes, attributes and variables."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
    return {name for name in names if is_private(name)}


def torch_names():
    """The private names of the objects of torch that the house meets."""
    optimizer = Adam([one_parameter()])
    objects = [optimizer, LinearLR(optimizer), nn.Linear(1, 1), one_parameter()]
    return {name for each in objects for name in {*dir(each), *vars(each)} if is_private(name)}


def is_self(node):
    is_super = isinstance(node, ast.Call) and ast.unparse(node.func) == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in {"self", "cls"})


def foreign(tree, own, of_torch):
    """Yield what in a file is a private name of another library, as far as its text tells."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [f"{getattr(node, 'module', '')}.{alias.name}" for alias in node.names]
            yield from (
                n for n in names if n.strip(".").startswith("torch") and any(map(is_private, n.split(".")))
            )
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            if not is_self(node.value) and (node.attr not in own or node.attr in of_torch):
                yield ast.unparse(node)
        elif (
            isinstance(node, ast.Attribute)
            and node.attr == "__code__"
            and not isinstance(node.value, ast.Name)
        ):
            yield ast.unparse(node)  # of a function that belongs to another
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr"}:
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value) and name.value not in own - of_torch:
                yield ast.unparse(node)


PYTHONS = ("sys._getframe", "os._exit", "'_make'")
OURS = ("warmup._apply",)  # nn.Module has one, too
TRAINERS = (
    "trainer._created_lr_scheduler",
    "trainer._prepare_inputs",
)  # transformers', held by tests/integrations


def test_no_other_file_names_what_is_private_to_torch():
    trees = parsed()
    home = SOURCE / "torch_internals.py"
    own = own_names(tree for path, tree in trees.items() if path != home)
    of_torch = torch_names()
    found = {
        (path.relative_to(SOURCE).as_posix(), name)
        for path, tree in trees.items()
        if path != home
        for name in foreign(tree, own, of_torch)
        if not any(known in name for known in PYTHONS + OURS + TRAINERS)
    }
    assert found == set()
    assert len(list(foreign(trees[home], set(), of_torch))) > 15  # else the search itself is blind


def test_what_our_classes_take_from_torch_by_inheritance_is_listed():
    own_and_torchs = own_names(parsed().values()) & torch_names()
    assert own_and_torchs >= EXTENDED
