"""The snapshot that a measurement runs in: taken before, brought back after.

Every measurement runs inside `isolated`. On leaving it, also by an exception, parameters, buffers, optimizer
state, learning rates, `.grad`, random number generators, train/eval modes and `requires_grad` flags are bit for
bit what they were. A tensor is only written back where its bits differ, so that a measurement which changed
nothing leaves version counters alone and is legal between `forward` and `backward`.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from edgewise.arguments import a_module, an_optimizer, check_restorable
from edgewise.isolation.bits import write_back
from edgewise.isolation.compiled import compiled_modules
from edgewise.isolation.hooks import noticing_modules, silent_hooks
from edgewise.isolation.optimizer_contents import OptimizerContents
from edgewise.isolation.random_states import RandomStates
from edgewise.isolation.threads import Here
from edgewise.ranks import reshard
from edgewise.torch_internals import (
    accumulation_hooks,
    is_functorch_wrapped_tensor,
    own_buffers,
    own_parameters,
)

_SNAPSHOTS = Here()


class Snapshot:
    """What `isolated` saved; `rewind` returns to it without leaving. Modules that are made inside are no part of it."""

    def __init__(self) -> None:
        self._rng = RandomStates()
        self._roots: list[nn.Module] = []  # every module is one of these, or below
        self._modules: dict[nn.Module, _ModuleContents] = {}
        self._made: set[int] = set()  # addresses: nothing from before the start can have one of them
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._gradients: dict[int, _Gradient] = {}
        self.optimizer: OptimizerContents | None = None

    def add_module(self, root: nn.Module) -> None:
        """Save the tensors and modes of `root` and of all modules below it, once."""
        if root in self._modules:
            return
        if id(root) not in self._made:
            self._roots.append(root)
            reshard(root)
        for module in root.modules():
            if module not in self._modules and id(module) not in self._made:
                self._modules[module] = contents = _ModuleContents(module)
                for buffer in contents.buffers:
                    self._add_tensor(buffer)
                self.add_parameters(contents.parameters)

    def add_compiled(self, function: object) -> None:
        """Save what functions that torch.compile has compiled run, of those which this function calls."""
        for module in compiled_modules(function):
            self.add_module(module)

    def leave_out(self, module: nn.Module) -> None:
        """Do not protect a module, which has just been made."""
        self._made.add(id(module))

    def add_parameters(self, parameters: Iterable[Tensor]) -> None:
        """Save parameters, once, with their gradients, which they give up from here on."""
        for parameter in parameters:
            # What torch.func puts in the place of a parameter is no leaf, or a wrapper.
            if parameter.is_leaf and id(parameter) not in self._gradients and self._add_tensor(parameter):
                self._gradients[id(parameter)] = _Gradient(parameter)

    def add_optimizer(self, optimizer: Optimizer) -> None:
        """Save the optimizer's parameters, state, groups and hooks."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.add_parameters(parameters)
        self.optimizer = OptimizerContents(optimizer, known=parameters)

    def saved(self, tensor: Tensor) -> Tensor:
        """Return the saved copy of a protected parameter or buffer; not to be written to."""
        return self._tensors[id(tensor)][1]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules under protection: the model's, and those that have been used so far."""
        return list(self._modules)

    def release_optimizer(self) -> None:
        """Return the optimizer's state to what it was, and give up the copies: nothing may change it from here on."""
        if self.optimizer is not None:
            self.optimizer.restore()
            self.optimizer = None

    def rewind_randomness(self) -> None:
        """Return the random number generators to the start, so that dropout masks repeat."""
        self._rng.restore()

    def rewind(self) -> None:
        """Return random numbers, parameters, buffers and optimizer state to what they were at the start."""
        self.rewind_randomness()
        torch.clear_autocast_cache()  # it holds casts of the parameters that are about to change
        for root in self._roots:
            reshard(root)
        for module, contents in self._modules.items():
            contents.restore_buffers(module)
        for tensor, saved in self._tensors.values():
            write_back(tensor, saved)
        if self.optimizer is not None:
            self.optimizer.restore()

    def restore(self) -> None:
        """Rewind, and return gradients, flags and modes as well."""
        self.rewind()
        for gradient in self._gradients.values():
            gradient.restore()
        for module, contents in self._modules.items():
            module.training = contents.training

    def _add_tensor(self, tensor: Tensor) -> bool:
        """Save a tensor, once; return whether it is one that can be."""
        if is_lazy(tensor) or is_functorch_wrapped_tensor(tensor):
            return False
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = (tensor, tensor.detach().clone())
        return True


class _ModuleContents:
    """Mode and tensors of a module, without those below it."""

    def __init__(self, module: nn.Module) -> None:
        self.training = module.training
        self.buffers = [buffer for buffer in own_buffers(module).values() if buffer is not None]
        self.parameters = [p for p in own_parameters(module).values() if p is not None]
        # TorchScript's modules cannot be given other tensors.
        self._registry = None if isinstance(module, torch.jit.ScriptModule) else own_buffers(module).copy()

    def restore_buffers(self, module: nn.Module) -> None:
        """Return the buffers that a forward may have replaced by new tensors."""
        if self._registry is not None:
            own_buffers(module).clear()
            own_buffers(module).update(self._registry)


class _Gradient:
    """What hangs on a parameter; taken off it, until it is restored."""

    def __init__(self, parameter: Tensor) -> None:
        self._parameter = parameter
        self.gradient, self._requires_grad = parameter.grad, parameter.requires_grad
        parameter.grad = None
        self._hooks = accumulation_hooks(parameter)  # FSDP2 runs them
        self._saved_hooks = dict(self._hooks)
        self._hooks.clear()

    def restore(self) -> None:
        self._parameter.grad = self.gradient
        if self._parameter.requires_grad != self._requires_grad:
            self._parameter.requires_grad_(self._requires_grad)
        self._hooks.clear()
        self._hooks.update(self._saved_hooks)


@contextmanager
def isolated(model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Iterator[Snapshot]:
    """Leave no trace: whatever happens inside, training continues as if nothing had.

    Inside, every parameter's `.grad` is `None`; the saved gradients come back untouched at the end. Besides the
    `model`, all modules that are used inside are protected, such as a second network that only the loss knows. They are
    found as they are called, switched to another mode, or asked for their parameters or buffers, before that can
    change anything. Each costs a copy of its parameters and buffers. What is changed in another module in other ways
    before, such as by writing to an attribute of it, is not seen. Modules that are made inside are left alone.

    Other threads train on meanwhile, but the generators of Python, NumPy and torch's CPU are shared: what another
    thread draws from them during a measurement, it draws again afterwards.

    Args:
        model: the model whose parameters, buffers and modes to protect from the start.
        optimizer: the optimizer whose parameters, state, groups and hooks to protect; its step hooks are
            silent inside.

    Yields:
        The snapshot; `snapshot.rewind()` returns to the start, for repeated evaluations with equal dropout
        masks and buffers.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
        >>> before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        >>> with isolated(model):
        ...     _ = model(torch.randn(8, 2))
        >>> all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        True
    """
    if model is not None:
        check_restorable(a_module("model", model, ("model", "optimizer")))
    if optimizer is not None:
        optimizer = an_optimizer("optimizer", optimizer, ("model", "optimizer"), may_be_empty=True)
    snapshot = Snapshot()
    with ExitStack() as stack:
        stack.callback(snapshot.restore)
        stack.enter_context(_SNAPSHOTS.held(snapshot))
        if model is not None:
            snapshot.add_module(model)
        if optimizer is not None:
            snapshot.add_optimizer(optimizer)
        if snapshot.optimizer is not None:
            stack.enter_context(silent_hooks(snapshot.optimizer.optimizers))
        stack.enter_context(noticing_modules(snapshot.add_module, made=snapshot.leave_out))
        yield snapshot


def gradient_outside(parameter: Tensor) -> Tensor | None:
    """Return a parameter's `.grad` as it is outside all that this thread isolates."""
    for snapshot in _SNAPSHOTS.things():
        if id(parameter) in snapshot._gradients:
            kept: Tensor | None = snapshot._gradients[id(parameter)].gradient
            return kept
    return parameter.grad
