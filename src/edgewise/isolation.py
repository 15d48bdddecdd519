"""The one place that promises: observing never changes training.

Every measurement runs inside `isolated`. On leaving it, also by an exception, parameters, buffers, optimizer
state, learning rates, `.grad`, random number generators, train/eval modes and `requires_grad` flags are bit for
bit what they were. A tensor is only written back where its bits differ, so that a measurement which changed
nothing leaves version counters alone and is legal between `forward` and `backward`.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils._pytree import tree_leaves

from edgewise.arguments import a_module, an_optimizer, check_restorable
from edgewise.ranks import local, reshard

_MOST_EXCHANGED = 2**18  # entries at a time: they stay in a cache


class Snapshot:
    """What `isolated` saved; `rewind` returns to it without leaving."""

    def __init__(self, model: nn.Module | None, optimizer: Optimizer | None) -> None:
        self._rng = RandomStates()
        self._roots: list[nn.Module] = []  # every module is one of these, or below
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._modules: dict[nn.Module, tuple[bool, dict[str, Tensor | None]]] = {}  # mode, buffers
        self._gradients: list[tuple[Tensor, Tensor | None, bool]] = []
        self.optimizer: _OptimizerContents | None = None
        if model is not None:
            reshard(model)
            self.add_module(model)
            self._add_parameters(list(model.parameters()))
        if optimizer is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._add_parameters(parameters)
            self.optimizer = _OptimizerContents(optimizer, known=parameters)

    def add_module(self, root: nn.Module) -> None:
        """Save the buffers and modes of `root` and of all modules below it, once."""
        if root not in self._modules:
            self._roots.append(root)
        for module in root.modules():
            if module not in self._modules:
                self._modules[module] = (module.training, dict(module._buffers))
                for buffer in module.buffers(recurse=False):
                    self._add_tensor(buffer)

    def saved(self, tensor: Tensor) -> Tensor:
        """Return the saved copy of a protected parameter or buffer; not to be written to."""
        return self._tensors[id(tensor)][1]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules under protection: the model's, or those that have run so far."""
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
        for module, (_, buffers) in self._modules.items():
            module._buffers.clear()  # a forward may have assigned a new tensor
            module._buffers.update(buffers)
        for tensor, saved in self._tensors.values():
            _write_back(tensor, saved)
        if self.optimizer is not None:
            self.optimizer.restore()

    def restore(self) -> None:
        """Rewind, and return gradients, flags and modes as well."""
        self.rewind()
        for parameter, gradient, requires_grad in self._gradients:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)
        for module, (training, _) in self._modules.items():
            module.training = training

    def _add_tensor(self, tensor: Tensor) -> None:
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = (tensor, tensor.detach().clone())

    def _add_parameters(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if id(parameter) not in self._tensors:
                self._add_tensor(parameter)
                self._gradients.append((parameter, parameter.grad, parameter.requires_grad))


@contextmanager
def isolated(model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Iterator[Snapshot]:
    """Leave no trace: whatever happens inside, training continues as if nothing had.

    Inside, every parameter's `.grad` is `None`; the saved gradients come back untouched at the end. Without a
    `model`, the modules to protect are found as their `forward` runs, before it can change a buffer; what is
    changed before, a `model.eval()` or a buffer written to outside `forward`, is then not seen.

    Args:
        model: the model whose parameters, buffers and modes to protect.
        optimizer: the optimizer whose parameters, state, groups and hooks to protect; its step hooks are
            silent inside.

    Yields:
        The snapshot; `snapshot.rewind()` returns to the start, for repeated evaluations with equal dropout
        masks and buffers.

    Example:
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
    snapshot = Snapshot(model, optimizer)
    with ExitStack() as stack:
        stack.callback(snapshot.restore)
        if model is None:
            handle = register_module_forward_pre_hook(lambda module, _: snapshot.add_module(module))
            stack.callback(handle.remove)
        if snapshot.optimizer is not None:
            stack.enter_context(_silent_hooks(snapshot.optimizer.optimizers))
        for parameter, _, _ in snapshot._gradients:
            parameter.grad = None
            stack.enter_context(_emptied([parameter._post_accumulate_grad_hooks or {}]))  # FSDP2 runs them
        yield snapshot


@contextmanager
def exchanged(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Let two lists of tensors hold each other's contents for the time being; both come back bit for bit.

    Through `.data`, as a graph that saved a parameter sees its bits again; a few rows at a time are held twice.

    >>> a, b = torch.zeros(2), torch.ones(2)
    >>> with exchanged([a], [b]):
    ...     a.tolist()
    [1.0, 1.0]
    >>> a.tolist()
    [0.0, 0.0]
    """
    pairs = [(local(one), local(other)) for one, other in zip(tensors, others, strict=True)]
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs[::-1])  # backwards, as tied tensors were exchanged twice


def _exchange(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    torch.clear_autocast_cache()  # it holds casts of the parameters
    for one, other in pairs:
        rows = max(1, _MOST_EXCHANGED // max(1, one[:1].numel() if one.dim() else 1))
        parts = (torch.atleast_1d(tensor.data).split(rows) for tensor in (one, other))
        for part, other_part in zip(*parts, strict=True):
            kept = part.clone()
            part.copy_(other_part)
            other_part.copy_(kept)


def first_unrepeatable(model: nn.Module, evaluate: Callable[[], object]) -> str:
    """Return the name and class of the first module whose output differs between two evaluations, '' for none.

    Only modules whose input agreed count: the others merely pass a difference on.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> first_unrepeatable(model, lambda: model(torch.ones(9, 2)))
    '1 (Dropout)'
    """
    first, second = (_calls_of(model, evaluate) for _ in range(2))
    for (name, inputs, output), (other, other_inputs, other_output) in zip(first, second, strict=False):
        if name == other and inputs == other_inputs and output != other_output:
            return name
    return ""


def _calls_of(model: nn.Module, evaluate: Callable[[], object]) -> list[tuple[str, str, str]]:
    """Return module, fingerprint of its inputs and fingerprint of its output for each call, in order of their end."""
    names = {
        module: f"{name or 'the model'} ({type(module).__name__})" for name, module in model.named_modules()
    }
    entered: list[str] = []
    calls = []

    def enter(module: nn.Module, inputs: Any) -> None:
        entered.append(_fingerprint(inputs))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append((names.get(module, type(module).__name__), entered.pop(), _fingerprint(output)))

    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(enter).remove)
        stack.callback(register_module_forward_hook(leave).remove)
        evaluate()
    return calls


def _fingerprint(values: Any) -> str:
    """Two sums over each tensor: small, and the same for equal tensors, NaN included."""
    tensors = [leaf.detach().double() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return repr([(float(t.sum()), float(t.square().sum())) for t in tensors])


class RandomStates:
    """The states of the generators of Python, NumPy and torch, on the CPU and on every CUDA device in use.

    Args:
        generators: further ones of torch's.
    """

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        self._generators = [(generator, generator.get_state()) for generator in generators]
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the global state is what user code draws from
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Return all of them to the states they had when this was made."""
        for generator, state in self._generators:
            generator.set_state(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class _OptimizerContents:
    """All that an optimizer holds: each object is brought back where it was, with the value it had.

    Followed are tensors, containers, optimizers inside it, and, in its state and groups, the attributes of any
    other object; of what else hangs on an optimizer, only which object it is.

    Args:
        known: objects that others bring back.
    """

    def __init__(self, optimizer: Optimizer, known: Iterable[object]) -> None:
        self.optimizers: list[Optimizer] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._seen = set(map(id, known))
        self._add(optimizer)

    def restore(self) -> None:
        for container, copied in self._containers:
            container.clear()
            container.update(copied) if isinstance(copied, (dict, set)) else container.extend(copied)
        for tensor, saved in self._tensors:
            _write_back(tensor, saved)

    def _add(self, value: Any, *, objects: bool = False) -> None:
        """Save a value and what is in it, once; with `objects`, the attributes of an object of any class too."""
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._tensors.append((value, value.detach().clone()))
        elif isinstance(value, Optimizer):  # third-party optimizers wrap others
            self.optimizers.append(value)
            self._containers.append((vars(value), vars(value).copy()))
            for name, attribute in vars(value).items():
                if not name.endswith("_hooks"):  # kept by _silent_hooks, also while they are silent
                    self._add(attribute, objects=name in ("state", "param_groups"))
        elif isinstance(value, (dict, list, set, deque, tuple)):
            if not isinstance(value, tuple):
                self._containers.append((value, value.copy()))
            for entry in value.values() if isinstance(value, dict) else value:
                self._add(entry, objects=objects)
        elif objects and hasattr(value, "__dict__") and not callable(value):
            self._add(vars(value), objects=True)


@contextmanager
def _silent_hooks(optimizers: list[Optimizer]) -> Iterator[None]:
    """Keep the user's step hooks, also those on all optimizers, from running on trial steps."""
    hooks: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    for optimizer in optimizers:
        hooks += [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    with _emptied(hooks):
        yield


@contextmanager
def _emptied(hooks: list[dict[int, Any]]) -> Iterator[None]:
    saved = [hook.copy() for hook in hooks]
    for hook in hooks:
        hook.clear()
    try:
        yield
    finally:
        for hook, entries in zip(hooks, saved, strict=True):
            hook.clear()
            hook.update(entries)


_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _write_back(tensor: Tensor, saved: Tensor) -> None:
    """Copy where the bits differ; through `.data`, as a graph that saved the tensor sees its bits again."""
    tensor, saved = local(tensor), local(saved)
    if _same_bits(tensor, saved):
        return
    if tensor.layout is torch.strided:
        tensor.data.copy_(saved)
    else:  # its `.data` would hold other entries than itself
        with torch.no_grad():
            tensor.copy_(saved)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree bit for bit: NaN equals itself, 0 differs from -0."""
    if a.is_complex() and b.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.layout is torch.sparse_coo and b.layout is torch.sparse_coo:  # momentum of a sparse gradient
        pairs = ((a._indices(), b._indices()), (a._values(), b._values()))
        return a.is_coalesced() == b.is_coalesced() and all(_same_bits(one, other) for one, other in pairs)
    integer = _INTEGER_OF_SIZE.get(a.element_size())
    if integer is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.detach().view(integer), b.view(integer))
