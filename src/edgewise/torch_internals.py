"""The names that torch does not promise to keep: each one here alone, with what is relied on.

A release of torch that breaks one shows in tests/test_torch_internals.py, which has a test for each. Not here: the
methods that our subclasses of torch's classes override (`_init_group`, `_update_lr`, …), which that test lists.
"""

import ctypes
import sys
from collections import OrderedDict
from types import CodeType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._guards import CompileContext
from torch.nn.modules import module as _module
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.optim import Adagrad, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler
from torch.optim.optimizer import (
    _default_to_fused_or_foreach,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

__all__ = [
    # Nested containers: the leaves, in an order that does not change, and what puts others in their places.
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    # Whether a tensor is one of torch.func's wrappers, which must not be written to.
    "is_functorch_wrapped_tensor",
    # Whether a tensor's entries are in other tensors, which __tensor_flatten__ names.
    "is_traceable_wrapper_subclass",
    # The class above all layers that normalize over the batch, SyncBatchNorm and the lazy ones included.
    "BatchNorm",
]


# Tensors


def num_writes(tensor: Tensor) -> int:
    """Return a count that grows with each write in place; writes through `.data` do not count."""
    return tensor._version


def sparse_parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices and values of a sparse COO tensor as they are, coalesced or not."""
    return tensor._indices(), tensor._values()


def accumulation_hooks(parameter: Tensor) -> dict[int, Any]:
    """Return the registry itself of the hooks that run when `.grad` is complete; a new one where there is none."""
    return parameter._post_accumulate_grad_hooks or {}


def tensor_hooks(tensor: Tensor) -> dict[str, dict[int, Any] | None]:
    """Return the registries of the hooks on a tensor, by name."""
    return {name: getattr(tensor, name) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}


# Products and roots of many tensors in one kernel; those with a final _ write to the first list.
foreach_add = torch._foreach_add
foreach_sign = torch._foreach_sign
foreach_sub_ = torch._foreach_sub_
foreach_mul_ = torch._foreach_mul_
foreach_addcmul_ = torch._foreach_addcmul_

# Attention by two products and a softmax, which has second derivatives: (output, weights) of the arguments of
# scaled_dot_product_attention, but for a boolean mask.
attention_by_products = torch.ops.aten._scaled_dot_product_attention_math


# Modules


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the registry itself of a module's parameters, without those below it."""
    return module._parameters


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the registry itself of a module's buffers, without those below it."""
    return module._buffers


def original_of_compiled(function: object) -> object | None:
    """Return what torch.compile was given to make this; `None` if it is not made by it."""
    return cast("object | None", getattr(function, "_torchdynamo_orig_callable", None))


def is_compiled_module(module: nn.Module) -> bool:
    """Whether torch.compile or `module.compile()` has made this, or its forward."""
    is_wrapper = isinstance(getattr(module, "_orig_mod", None), nn.Module)
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return is_wrapper or in_place or original_of_compiled(module.forward) is not None


def is_compiling() -> bool:
    """Whether torch.compile is at work, also where it runs a function in plain Python, as an optimizer's own."""
    return torch.compiler.is_compiling() or CompileContext.current_compile_id() is not None


# Optimizers

# The registries of the hooks before and after the steps of all optimizers: hooks are looked up there at each step.
GLOBAL_STEP_HOOKS: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]

# The registries of the hooks on all modules and all optimizers, by name.
GLOBAL_HOOKS: dict[str, Any] = {
    name: hooks for name, hooks in vars(_module).items() if name.startswith("_global")
} | dict(
    zip(
        ("_global_optimizer_step_pre_hooks", "_global_optimizer_step_post_hooks"),
        GLOBAL_STEP_HOOKS,
        strict=True,
    )
)


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether `Optimizer.__init__` has made the registries of hooks; some third-party optimizers do not call it.

    timm's Lookahead makes those of its steps by hand, but not those of its state.
    """
    return all(hasattr(optimizer, f"_optimizer_{of}_pre_hooks") for of in ("step", "state_dict"))


def step_pre_hooks(optimizer: Optimizer) -> OrderedDict[int, Any]:
    """Return the registry itself of the hooks before each step, which run in its order; by the id of their handle."""
    return cast("OrderedDict[int, Any]", optimizer._optimizer_step_pre_hooks)


def step_post_hooks(optimizer: Optimizer) -> OrderedDict[int, Any]:
    """Return the registry itself of the hooks after each step."""
    return cast("OrderedDict[int, Any]", optimizer._optimizer_step_post_hooks)


def let_class_run_hooks(optimizer: Optimizer) -> None:
    """Wrap the step of the optimizer's class, once, so that it runs hooks: `Optimizer.__init__` does no more."""
    optimizer._patch_step_function()


def takes_foreach(tensors: list[Tensor], differentiable: bool) -> bool:
    """Whether torch's optimizers, left to choose, take these tensors in kernels for many."""
    return _default_to_fused_or_foreach(tensors, differentiable)[1]


def state_of_constructor(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Return the state without which a step fails: older releases of Adagrad make it in their constructor alone."""
    if not isinstance(optimizer, Adagrad):
        return {}
    initial = optimizer.defaults["initial_accumulator_value"]
    return dict(Adagrad([parameter], initial_accumulator_value=initial).state[parameter])


def takes_scaled_gradients(optimizer: Optimizer) -> bool:
    """Whether a GradScaler leaves unscaling to the optimizer's own step, as fused ones do it."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


# Schedulers


def write_first_rates(scheduler: LRScheduler) -> None:
    """Let a scheduler write the rates of its update 0, as a SequentialLR does when its turn comes; no step counts."""
    scheduler._update_lr(0)


# The code of torch's functions that calls are told by, on the stack or in a traceback.
BACKWARD: CodeType = torch.autograd.backward.__code__  # what Tensor.backward calls
HOOKED_STEP: CodeType = Optimizer.profile_hook_step(
    lambda optimizer: None
).__code__  # its `self` is the optimizer
CHAINED_STEP: CodeType = ChainedScheduler.step.__code__


# Threads


def stash(key: str, value: object) -> None:
    """Keep an object under a key in this thread, for the autograd threads of its backward passes, too."""
    if _STASH_TAKES_NO_REFERENCE:
        _take_a_reference(value)
    torch._C._stash_obj_in_tls(key, value)


def stashed(key: str) -> Any:
    """Return what this thread keeps under a key; `None` if nothing."""
    return torch._C._get_obj_in_tls(key) if torch._C._is_key_in_tls(key) else None


def _take_a_reference(value: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _stash_takes_no_reference() -> bool:
    """Whether torch lets go, in the end, of a reference that it never took, as before 2.12."""
    probe = object()
    before = sys.getrefcount(probe)
    torch._C._stash_obj_in_tls("edgewise probe", probe)
    took_none = sys.getrefcount(probe) == before
    if took_none:
        _take_a_reference(probe)  # else the end of this thread would free it a second time
    return took_none


_STASH_TAKES_NO_REFERENCE = _stash_takes_no_reference()


# Processes


def default_store() -> Any:
    """Return the key-value store that the default group was made with."""
    return dist.distributed_c10d._get_default_store()
