"""Whether a piece of code leaves training as it was: all that training depends on, as digests, before and after."""

import random
import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewise.arguments import a_function, a_module, an_optimizer
from edgewise.errors import SideEffectError
from edgewise.isolation.compiled import compiled_modules
from edgewise.isolation.digests import digest, properties_of
from edgewise.isolation.hooks import noticing_modules
from edgewise.isolation.snapshot import gradient_outside
from edgewise.ranks import reshard
from edgewise.torch_internals import GLOBAL_HOOKS, own_buffers, own_parameters, tensor_hooks

_T = TypeVar("_T")

_MOST_LISTED = 10
_PLAIN = (int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device)


def assert_no_side_effects(model: nn.Module, optimizer: Optimizer | None, fn: Callable[[], _T]) -> _T:
    """Call `fn()`, and raise if training would not go on as if it had not been called.

    For checking edgewise on a model, an optimizer and a loss of your own:

        ew.assert_no_side_effects(model, optimizer, lambda: ew.sharpness(model, loss_fn, [batch]))

    Compared before and after, tensors by object, shape, dtype and bits (NaN equals itself, -0.0 is not 0.0):

    - parameters, buffers, and each parameter's `.grad` with its graph;
    - the optimizer's state, parameter groups and attributes, containers and optimizers inside it included;
    - the random states of Python, NumPy and torch, on the CPU and, if in use, on CUDA devices;
    - modes of all modules, and `requires_grad`;
    - hooks of modules, parameters and the optimizer, and those on all modules or optimizers;
    - attributes of a module or the optimizer that replace a method;
    - torch's grad mode, autocast and default dtype.

    Any other object counts as changed only if it is another object.
    Other modules that `fn` uses, such as a second network that only the loss knows, are compared with what they were
    before `fn` first called one, asked for its tensors or switched its mode. Those that it makes are its own.
    Not seen: plain attributes of modules, hooks on nodes of a graph, generators and loaders of your own.

    Every tensor is read twice and hashed on the CPU, at about a gigabyte a second; beyond what `fn` takes, memory is
    needed for one tensor at a time, the largest. What `fn` replaces is freed only afterwards. Of a sharded parameter
    (FSDP2), this rank's shard is compared.

    Args:
        model: the model that is trained; any module.
        optimizer: its optimizer, or `None`. Its parameters are compared also where they are not the model's.
        fn: called once, without arguments.

    Returns:
        What `fn()` returns.

    Raises:
        TypeError: an argument has the wrong type; `fn` has not been called.
        SideEffectError: something differs; the message names the first ten differences and counts the rest. If `fn`
            itself raises, that exception comes through, with a note that says the same.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.Dropout())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> assert_no_side_effects(model, optimizer, lambda: model[0].weight.numel())
        2
        >>> assert_no_side_effects(model, optimizer, lambda: model[1].eval()(torch.rand(2)))
        Traceback (most recent call last):
        edgewise.errors.SideEffectError: fn had 2 side effects:
          - torch's CPU random state moved
          - module '1' (Dropout): training False, was True
    """
    a_module("model", model, ("model", "optimizer"))
    if optimizer is not None:
        optimizer = an_optimizer("optimizer", optimizer, ("model", "optimizer"))
    a_function(
        "fn",
        fn,
        "no arguments: write lambda: ... before what is to be checked, so that it is not yet called",
        count=0,
    )
    cuda = torch.cuda.is_initialized()  # a device first used by fn has no state to compare with
    before = _Picture(model, optimizer, cuda=cuda)
    others = _Others(before)
    try:
        for module in compiled_modules(fn):
            others.use(module)
        with noticing_modules(others.use, made=others.leave_out):
            result = fn()
    except Exception as error:
        if found := _differences(before, _Picture(model, optimizer, others.used, cuda=cuda)):
            error.add_note(_message(found))
        raise
    if found := _differences(before, _Picture(model, optimizer, others.used, cuda=cuda)):
        raise SideEffectError(_message(found))
    return result


class _Others:
    """The modules outside the model that are used, and come into the picture as they are before."""

    def __init__(self, before: "_Picture") -> None:
        self.used: list[nn.Module] = []
        self._before = before
        self._made: set[int] = set()  # addresses: nothing from before can have one of them

    def use(self, root: nn.Module) -> None:
        for module in root.modules():
            if id(module) not in self._made and module not in self._before.modules:
                self.used.append(module)
                self._before.add_other(module)

    def leave_out(self, module: nn.Module) -> None:
        self._made.add(id(module))


@dataclass(frozen=True, kw_only=True)
class _Fact:
    """What is known of one thing; what is not known of it on both sides is not compared."""

    thing: object = None  # must stay this very object; held, so that no other can take its address
    content: str = ""  # equal for equal bits
    text: str = ""  # the content in words, where they are few
    verb: str = "changed"
    properties: Mapping[str, object] = field(default_factory=dict)  # named in the message


class _Picture:
    """All that training depends on: what it is called, and a fact of it. Few things first: a message names ten."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        others: Iterable[nn.Module] = (),
        *,
        cuda: bool,
    ) -> None:
        # One subject may have several hooks: the second part of a key tells them apart.
        self.facts: dict[tuple[str, Hashable], _Fact] = {}
        reshard(model)  # as every measurement does; the parameters are then the same objects each time
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._names = {id(p): f"parameter {name!r}" for name, p in reversed(parameters.items())}
        self._of_model = set(self._names)
        self._digests: dict[int, str] = {}
        self._num_others: Counter[str] = Counter()
        self._add_random_states(cuda)
        self._add_settings()
        self._add_hooks("", GLOBAL_HOOKS)
        if optimizer is not None:
            self._add_groups("optimizer", optimizer)
        for name, module in model.named_modules():
            where = f"module {name!r}" if name else "the model"
            self._add_module(f"{where} ({type(module).__name__})", module)
        for name, parameter in parameters.items():
            self._add_parameter(f"parameter {name!r}", parameter)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            self._add_tensor(f"buffer {name!r}", buffer)
        if optimizer is not None:
            self._add_optimizer("optimizer", optimizer, ())
        self.modules = set(model.modules())
        for module in others:
            self.add_other(module)

    def add_other(self, module: nn.Module) -> None:
        """Add a module outside the model, without those below it; it may be one of several of its class."""
        self.modules.add(module)
        kind = type(module).__name__
        self._num_others[kind] += 1
        name = kind if self._num_others[kind] == 1 else f"{kind} {self._num_others[kind]}"
        self._add_module(f"{name} outside the model", module)
        # Read from the registries, as to ask the module for them is to use it.
        for own, parameter in own_parameters(module).items():
            if parameter is not None and id(parameter) not in self._names:
                self._add_parameter(f"parameter {own!r} of {name} outside the model", parameter)
        for own, buffer in own_buffers(module).items():
            if buffer is not None:
                self._add_tensor(f"buffer {own!r} of {name} outside the model", buffer)

    def _add(self, subject: str, fact: _Fact, key: Hashable = None) -> None:
        self.facts[subject, key] = fact

    def _add_random_states(self, cuda: bool) -> None:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the state that user code draws from
        states = {
            "Python's": repr(random.getstate()),
            "NumPy's": f"{kind} {np.asarray(keys).tobytes().hex()} {rest}",
            "torch's CPU": digest(torch.get_rng_state()),
        }
        if cuda:
            for i, state in enumerate(torch.cuda.get_rng_state_all()):
                states[f"torch's cuda:{i}"] = digest(state)
        for whose, content in states.items():
            self._add(f"{whose} random state", _Fact(content=content, verb="moved"))

    def _add_settings(self) -> None:
        self._add_plain("torch's grad mode", torch.is_grad_enabled())
        self._add_plain("torch's default dtype", torch.get_default_dtype())
        for device in ("cpu", "cuda"):
            self._add_plain(f"torch's autocast on {device}", torch.is_autocast_enabled(device))

    def _add_hooks(self, owner: str, attributes: Mapping[str, Any]) -> None:
        """Add the hooks in all registries among `attributes`, such as `_forward_pre_hooks`."""
        for name, hooks in attributes.items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                words = name.removeprefix("_optimizer").strip("_").removesuffix("s").replace("_", " ")
                for key, hook in hooks.items():
                    self._add(f"{owner}{words}", _Fact(thing=hook), key)

    def _add_module(self, name: str, module: nn.Module) -> None:
        self._add(name, _Fact(thing=module, properties={"training": module.training}))
        self._add_hooks(f"{name}: ", vars(module))
        for attribute, value in vars(module).items():
            if callable(getattr(type(module), attribute, None)):
                self._add(f"{name}: attribute {attribute!r}", _Fact(thing=value))

    def _add_parameter(self, name: str, parameter: Tensor) -> None:
        self._add_tensor(name, parameter)
        # One that fn uses first while it measures may have been given up for the while.
        if (gradient := gradient_outside(parameter)) is not None:
            self._add_tensor(f"gradient of {name}", gradient)
        self._add_hooks(f"{name}: ", tensor_hooks(parameter))

    def _add_tensor(self, subject: str, tensor: Tensor) -> None:
        if id(tensor) not in self._digests:
            self._digests[id(tensor)] = digest(tensor)
        content, properties = self._digests[id(tensor)], properties_of(tensor)
        text = f"tensor({tensor.item():.8g})" if properties.get("shape") == () and not tensor.is_meta else ""
        self._add(subject, _Fact(thing=tensor, content=content, text=text, properties=properties))

    def _add_plain(self, subject: str, value: object) -> None:
        self._add(subject, _Fact(content=repr(value), text=reprlib.repr(value)))

    def _add_value(self, subject: str, value: object, inside: tuple[int, ...]) -> None:
        """Add whatever an optimizer holds; `inside` are the containers on the way to it, as some hold themselves."""
        if id(value) in inside:
            return
        inside = (*inside, id(value))
        if isinstance(value, Tensor):
            self._add_tensor(subject, value)
        elif isinstance(value, Optimizer):
            self._add_groups(subject, value)
            self._add_optimizer(subject, value, inside)
        elif _is_plain(value):
            self._add_plain(subject, value)
        elif isinstance(value, (set, frozenset)):
            self._add_plain(subject, sorted(map(repr, value)))
        elif isinstance(value, Mapping):
            for i, (key, entry) in enumerate(value.items()):
                self._add_value(f"{subject}[{self._key(key, i)}]", entry, inside)
        elif isinstance(value, (list, tuple)):
            for i, entry in enumerate(value):
                self._add_value(f"{subject}[{i}]", entry, inside)
        else:
            self._add(subject, _Fact(thing=value))

    def _add_groups(self, owner: str, optimizer: Optimizer) -> None:
        for i, group in enumerate(optimizer.param_groups):
            where = f"of group {i}" if owner == "optimizer" else f"of group {i} of {owner}"
            for name, value in group.items():
                if name == "params":
                    self._add_members(where, value)
                else:
                    self._add_value(
                        f"learning rate {where}" if name == "lr" else f"option {name!r} {where}", value, ()
                    )

    def _add_members(self, where: str, members: list[Tensor]) -> None:
        for i, parameter in enumerate(members):
            name = f"parameter {i} {where}"
            self._add(name, _Fact(thing=parameter))
            self._names.setdefault(id(parameter), name)
            if id(parameter) not in self._of_model:
                self._add_parameter(name, parameter)

    def _add_optimizer(self, owner: str, optimizer: Optimizer, inside: tuple[int, ...]) -> None:
        """Add all but the groups: hooks, state and attributes."""
        inside = (*inside, id(optimizer))
        self._add_hooks(f"{owner}: ", vars(optimizer))
        for i, (key, entries) in enumerate(optimizer.state.items()):
            named = entries.items() if isinstance(entries, Mapping) else [("", entries)]
            for name, value in named:
                self._add_value(f"{owner} state {name!r} of {self._key(key, i)}", value, inside)
        for name, value in vars(optimizer).items():
            if name not in ("state", "param_groups") and not name.endswith("_hooks"):
                self._add_value(f"{owner}.{name}", value, inside)

    def _key(self, key: object, i: int) -> str:
        """Name a key of a mapping, the i-th."""
        return self._names.get(id(key), f"tensor {i}") if isinstance(key, Tensor) else repr(key)


def _is_plain(value: object) -> bool:
    """Whether the value is all there is to say; a pair of betas is, a list that grows is not."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _differences(before: _Picture, after: _Picture) -> list[str]:
    """Say in words what differs, in the order of the pictures."""
    found = []
    for key in before.facts | after.facts:
        if key not in after.facts:
            found.append(f"{key[0]} removed")
        elif key not in before.facts:
            found.append(f"{key[0]} added")
        else:
            found += _changes(key[0], before.facts[key], after.facts[key])
    return found


def _changes(subject: str, old: _Fact, new: _Fact) -> list[str]:
    changes = [
        f"{subject}: {name} {new.properties[name]}, was {value}"
        for name, value in old.properties.items()
        if name in new.properties and new.properties[name] != value
    ]
    differs = old.content != new.content and bool(old.content and new.content)
    if differs and old.text != new.text and old.text and new.text:
        changes.append(f"{subject}: {old.text} -> {new.text}")
    elif old.thing is not new.thing:
        changes.insert(0, f"{subject} replaced by another object")
    elif differs:
        changes.append(f"{subject} {new.verb}")
    return changes


def _message(found: list[str]) -> str:
    listed = found[:_MOST_LISTED]
    if len(found) > _MOST_LISTED:
        listed.append(f"and {len(found) - _MOST_LISTED} more")
    effects = "1 side effect" if len(found) == 1 else f"{len(found)} side effects"
    return f"fn had {effects}:" + "".join(f"\n  - {words}" for words in listed)
