"""The processes that train one model together: one loss, one sum, one decision.

`DistributedDataParallel` gives every rank whole parameters and batches of its own; FSDP2's `fully_shard` gives it a
shard of each parameter instead. Any other model is this process's alone, also where torch.distributed runs.

What is imported inside functions takes half a second to load, and is needed only where there is a process group.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgewise.errors import EdgewiseError, SecondDerivativeError
from edgewise.torch_internals import default_store

_T = TypeVar("_T")
_PATIENCE = 5.0  # seconds that other processes are waited for, where they need not take part

_WHOLE = (Tensor, nn.Parameter)  # types of tensors of which nothing else need be asked

_FINE, _NO_DERIVATIVE, _FAILED = range(3)  # how a rank ended, in order of severity


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The group that trains a model; all of its ranks must call the collective methods, in the same order.

    >>> alone = Ranks()
    >>> alone.num, alone.index, alone.gather(7), alone.sum(torch.ones(2))
    (1, 0, [7], tensor([1., 1.]))
    """

    group: Any = None  # torch.distributed.ProcessGroup; None: this process alone
    device: torch.device | str = "cpu"  # where the group communicates
    sharded: bool = False  # whether parameters, and vectors of their entries, are split over the ranks

    @property
    def num(self) -> int:
        """How many there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def index(self) -> int:
        """This rank's place among them, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the ranks, the same bits on each; collective."""
        if self.group is None:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def gather(self, number: int) -> list[int]:
        """Return every rank's number, in order; collective."""
        numbers = torch.zeros(self.num, dtype=torch.int64, device="cpu")
        numbers[self.index] = number
        return self.sum(numbers).tolist()

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the body raises on one rank, raise on all, so that none waits for another; collective at its end.

        The body makes no collective call that a rank which raises would miss. Where all that failed lack a derivative,
        the others raise `SecondDerivativeError` too: the next route is tried by all ranks or by none.

        Raises:
            EdgewiseError: on the ranks where the body did not raise itself.
        """
        if self.group is None:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        ends = self.gather(_severity(error))
        worst = max(ends)
        if worst == _FINE:
            return
        texts: list[Any] = [None] * self.num
        dist.all_gather_object(texts, f"{type(error).__name__}: {error}", group=self.group)
        if error is not None and _severity(error) == worst:
            raise error
        culprit = ends.index(worst)
        raise (SecondDerivativeError if worst == _NO_DERIVATIVE else EdgewiseError)(
            f"rank {culprit} of {self.num} failed, so that rank {self.index} stops as well; it raised {texts[culprit]}"
        ) from error

    def in_lockstep(self) -> AbstractContextManager[None]:
        """Return `together()` where the ranks need each other for a gradient, so that they never wait for one."""
        return self.together() if self.sharded else nullcontext()

    def check_whole(self, route: str) -> None:
        """Raise `SecondDerivativeError` where parameters are sharded: then there is no such route."""
        if self.sharded:
            raise SecondDerivativeError(
                f"{route} is not possible for this model (its parameters are sharded by FSDP2, whose gradients exist "
                'only after loss.backward()): use hvp="difference".'
            )

    def each_in_lockstep(self, items: Iterator[_T]) -> Iterator[_T]:
        """Yield the items, as many on each rank; one that cannot be fetched on some rank is an error on all."""
        while True:
            with self.in_lockstep():
                item = next(items, None)
            if item is None:
                return
            yield item


def _severity(error: Exception | None) -> int:
    if error is None:
        return _FINE
    return _NO_DERIVATIVE if isinstance(error, SecondDerivativeError) else _FAILED


def said_by_all(subject: str, text: str) -> list[str] | None:
    """Return what each process of the default group says to a subject, in order; `None` if some do not in time.

    No collective, but notes in the group's store: a process that never says anything is not waited for for long.
    """
    if not _in_group() or dist.get_world_size() == 1:
        return None
    store = dist.distributed_c10d.PrefixStore(f"edgewise {subject}", default_store())
    ranks = [str(rank) for rank in range(dist.get_world_size())]
    store.set(ranks[dist.get_rank()], text)
    try:
        store.wait(ranks, timedelta(seconds=_PATIENCE))
    except RuntimeError:  # DistStoreError: no time is left
        return None
    return [store.get(rank).decode() for rank in ranks]


def ranks_of(model: nn.Module) -> Ranks:
    """Return the ranks that train the model.

    Raises:
        ValueError: the model is distributed in a way that is not known here.

    Examples:
        >>> ranks_of(nn.Linear(2, 1)).num
        1
    """
    if not _in_group():
        return Ranks()
    inner = unwrapped(model)
    for name, module in inner.named_modules():
        if isinstance(module, DistributedDataParallel) or type(module).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                f"the model holds {type(module).__name__} as its module {name!r}: pass the "
                "DistributedDataParallel module itself, or shard with torch.distributed.fsdp.fully_shard."
            )
    reshard(inner)
    parameters = list(inner.parameters())
    sharded: list[Any] = [p for p in parameters if is_sharded(p)]
    if not sharded:
        whole = isinstance(model, DistributedDataParallel)
        return Ranks(group=model.process_group, device=parameters[0].device) if whole else Ranks()
    meshes = {p.device_mesh for p in sharded}
    mesh = next(iter(meshes))
    if len(meshes) > 1 or mesh.ndim > 1 or len(sharded) < len(parameters):
        raise ValueError(
            "the model's parameters must all be sharded by fully_shard over one mesh of one dimension, got "
            f"{len(sharded)} of {len(parameters)} sharded, over {len(meshes)} meshes, one of {mesh.ndim} dimensions: "
            "measure a copy without tensor parallelism, hybrid shards or ignored parameters."
        )
    return Ranks(group=mesh.get_group(), device=mesh.device_type, sharded=True)


def check_sharded_options(cast_to: torch.dtype | None, max_graph_bytes: int | None) -> None:
    """Raise what `Objective` documents for sharded models."""
    if cast_to is not None:
        raise ValueError(
            f"a model that is sharded (FSDP2) is measured in the precision of its parameters, not as a copy in "
            f"{cast_to}: leave dtype=None and keep parameters in float32 or float64, computing in less with "
            "fully_shard's mp_policy."
        )
    if max_graph_bytes is not None:
        raise ValueError(
            f"max_graph_bytes must be None for a model that is sharded (FSDP2), got {max_graph_bytes:,}: no graph is "
            "kept for it; pass smaller batches to need less memory."
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `DistributedDataParallel`: the same parameters, but its forward needs no other rank."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def reshard(model: nn.Module) -> None:
    """Let the modules of FSDP2 hold their shards again; after a forward they may hold whole parameters."""
    if not _in_group():
        return
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a `DTensor`, sharing its memory; any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    shard: Any = tensor.detach()
    return shard.to_local()


def sharded_like(parameter: Any, shard: Tensor) -> Tensor:
    """Return the `DTensor` of which this is this rank's shard, split as the parameter is; for a whole one, `shard`."""
    if not is_sharded(parameter):
        return shard
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    made: Tensor = DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return made


def is_sharded(tensor: Any) -> bool:
    """Whether this is a `DTensor`, of which each rank holds a shard."""
    if type(tensor) in _WHOLE or not _in_group():
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    return isinstance(tensor, DTensor)


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()
