"""The loss of one update over its micro-batches: a training loop adds each one, and what observes it looks at all."""

import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from edgewise.arguments import (
    a_batch,
    a_function,
    a_loss_function,
    a_loss_value,
    a_model,
    positive_number,
)
from edgewise.isolation import isolated
from edgewise.loss.batches import batch_size
from edgewise.loss.checks import GraphOnDemand, LossFunction, calling, checked_loss, forward_only
from edgewise.loss.micro_batches import MicroBatches
from edgewise.loss.precision import without_autocast
from edgewise.loss.shares import Shares, Sizes
from edgewise.ranks import Ranks, ranks_of

_ORDER = ("model", "loss_fn")
_FOLLOWING: "weakref.WeakSet[UpdateLoss]" = weakref.WeakSet()
Evaluating = Callable[[], AbstractContextManager[Any]]


class UpdateLoss:
    """The loss of one update over its micro-batches, for `observe` of a warmup or a `Monitor`.

        L(θ) = Σᵢ shareᵢ·Lᵢ(θ),  Lᵢ(θ) = loss_fn(model, batchᵢ)

    Call `add` after each forward, then `warmup.observe(update_loss)` or `monitor.observe(update_loss)` once, before
    `optimizer.step()`. Under `DistributedDataParallel` or FSDP2, each rank adds its own micro-batches, and L is the
    mean over the ranks that train `model`, also where `loss_fn` uses the module inside.

    It is empty again after the step of any optimizer that moves parameters of the model. Where a `GradScaler` skips
    that step, the first `add` after an `observe` begins a new update. A loop that leaves out both, for a loss that is
    not finite, say, calls `clear`. Batches are held until then.

    Args:
        model: any module; what the optimizer trains, inside `DistributedDataParallel` where it is.
        loss_fn: `loss_fn(model, batch)` returns the mean loss over the batch as a scalar tensor.
        evaluating: returns a context manager that evaluations of `loss_fn` by edgewise run in, to keep a framework's
            own side effects, such as logging, from happening. Parameters, buffers, modes and random numbers come back
            without it.

    Attributes:
        batches: the micro-batches added.
        model: as given.
        loss_fn: as given.
        evaluating: as given.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model has no parameters, or some without values.

    Examples:
        >>> import edgewise as ew
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> loss_fn = lambda model, x: (model(x) - 1).square().mean()
        >>> update_loss, warmup = UpdateLoss(model, loss_fn), ew.EdgeWarmup(optimizer, num_steps=3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     for micro_batch in torch.randn(4, 8, 4):
        ...         loss = loss_fn(model, micro_batch) / 4
        ...         loss.backward()
        ...         update_loss.add(micro_batch, loss)
        ...     warmup.observe(update_loss)
        ...     optimizer.step()
        >>> warmup.found.ok, update_loss.batches
        (True, [])
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, *, evaluating: Evaluating | None = None
    ) -> None:
        self.model = a_model(model, _ORDER)
        self.loss_fn: LossFunction = a_loss_function(loss_fn, _ORDER)
        if evaluating is not None and not isinstance(evaluating, type):
            a_function("evaluating", evaluating, "no arguments that returns a context manager", count=0)
        self.evaluating = evaluating
        self._found = Shares()
        self._shares: list[float] | None = None  # once they are needed
        self.clear()
        _follow_steps(self)

    def add(self, batch: Any, loss: Tensor | float, *, share: float | None = None) -> None:
        """Add a micro-batch, after its forward; its graph is not held.

        Args:
            batch: what `loss_fn` takes.
            loss: what `backward()` is called on, before a `GradScaler` scales it: a scalar tensor, or its value.
            share: the factor > 0 on `loss_fn(model, batch)` that gives `loss`, 1 where that is what `loss_fn` returns.
                Without it, for micro-batches of new sizes or fewer than before, `loss_fn` is evaluated once more and
                compared with `loss`. Found are 1, one over the number of micro-batches, the share of their samples, and
                what all had before.

        Raises:
            TypeError: `batch` yields batches, `loss` is no number, or `share` is none.
            ValueError: `share` is not positive, or given for some micro-batches of an update only.
            LossError: `loss` is a tensor of another kind.
        """
        a_batch(batch)
        if a_loss_value("loss", loss) is None:
            raise TypeError(
                "loss must be the value given to backward(), a scalar tensor or a number, got None."
            )
        given = None if share is None else positive_number("share", share)
        if self._is_observed:
            self.clear()
        if self.batches and (given is None) == bool(self._given):
            raise ValueError(
                f"share must be given for all micro-batches of an update or for none, got {share!r} after "
                f"{len(self.batches)} {'with' if self._given else 'without'} one."
            )
        self.batches.append(batch)
        self._losses.append(_copied(loss) if isinstance(loss, Tensor) else _as_tensor(loss))
        self._given += [] if given is None else [given]
        self._shares = None

    def clear(self) -> None:
        """Forget what was added: where a loop leaves an update out without `observe`, and goes on with another."""
        self.batches: list[Any] = []
        self._losses: list[Tensor] = []  # what backward() was called on
        self._given: list[float] = []  # shares: all, or none
        self._shares = None
        self._is_observed = False

    def __call__(self) -> Tensor:
        """Return L(θ) at the parameters as they are: what a warmup takes for its closure.

        Raises:
            ValueError: nothing has been added.
            LossError: `loss_fn` does not return a scalar tensor, or no share explains the losses added.
        """
        shares = self.shares
        return functools.reduce(torch.add, map(torch.mul, self._evaluated(), shares))

    @property
    def value(self) -> Tensor:
        """The sum of the losses added, detached."""
        self._check_filled()
        return functools.reduce(torch.add, self._losses)

    @property
    def shares(self) -> list[float]:
        """The factor of each micro-batch's loss in L; where it is not known, it is found now."""
        if self._shares is None:
            self.find_shares()
        assert self._shares is not None
        return self._shares

    @property
    def ranks(self) -> Ranks:
        """The ranks that train the model, over which L is averaged."""
        wrapped = (module for module in self.model.modules() if isinstance(module, DistributedDataParallel))
        return ranks_of(next(wrapped, self.model))

    def observed(self) -> None:
        """Take it in that the update is being observed: the next `add` begins another."""
        self._check_filled()
        self._is_observed = True

    @property
    def lacks_shares(self) -> bool:
        """Whether `find_shares` has to evaluate losses, on this rank or another; collective."""
        self._check_filled()
        return any(self.ranks.gather(self._known_shares is None))

    def find_shares(self) -> int:
        """Find the shares where they are not known, at the parameters that the losses were computed at; collective.

        Returns:
            How many times the loss of the update was evaluated for that, 0 or 1: on all ranks, if on one.

        Raises:
            ValueError: nothing has been added.
            LossError: no share explains the losses added.
        """
        if not self.lacks_shares:
            self._shares = self._known_shares
            return 0
        with isolated(self.model) as snapshot, self.ranks.together(), without_autocast(), forward_only():
            snapshot.add_compiled(self.loss_fn)

            def evaluate() -> list[float]:
                snapshot.rewind()
                return [loss.item() for loss in self._evaluated()]

            evaluated = GraphOnDemand(list(self.model.parameters()))(evaluate)
            self._shares = self._known_shares or self._found.find(
                self._sizes, given=list(map(float, self._losses)), evaluated=evaluated
            )
        return 1

    def measured(self) -> tuple[LossFunction, MicroBatches]:
        """Return what measurements take apart: the loss function, evaluated as it has to be, and the micro-batches."""
        loss_fn = functools.partial(_evaluated_inside, self.evaluating or nullcontext, self.loss_fn)
        return loss_fn, MicroBatches(self.batches, self.shares)

    @property
    def _sizes(self) -> Sizes:
        return tuple(map(batch_size, self.batches))

    @property
    def _known_shares(self) -> list[float] | None:
        return self._given or self._shares or self._found.known(self._sizes)

    def _evaluated(self) -> list[Tensor]:
        """Return Lᵢ of each micro-batch."""
        num, losses = len(self.batches), []
        with (self.evaluating or nullcontext)():
            for i, batch in enumerate(self.batches):
                with calling(f"loss_fn on micro-batch {i} of {num}", batch):
                    loss = self.loss_fn(self.model, batch)
                losses.append(checked_loss(loss, f"micro-batch {i}", finite=False))
        return losses

    def _check_filled(self) -> None:
        if not self.batches:
            raise ValueError(
                "the UpdateLoss holds no micro-batch: call add(batch, loss) after each forward, and observe before "
                "optimizer.step(), after which it is empty again."
            )

    def after_step(self, optimizer: Optimizer) -> None:
        """Clear, if the optimizer moves parameters of the model."""
        if self.batches and self.is_moved_by(optimizer):
            self.clear()

    def is_moved_by(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer moves parameters of the model."""
        own = {id(parameter) for parameter in self.model.parameters()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("batches", "_losses", "_given", "_shares", "_is_observed")  # a copy is of no update yet
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.clear()
        _follow_steps(self)


def _follow_steps(update_loss: UpdateLoss) -> None:
    """Tell it of the steps of all optimizers, as long as it lives."""
    _listen()
    _FOLLOWING.add(update_loss)


@functools.cache
def _listen() -> None:
    """Hook into the steps of all optimizers, once.

    The hook stays: were it removed as garbage is collected, amid the hooks of a step, that step would raise.
    """
    register_optimizer_step_post_hook(torch.compiler.disable(_tell_all))


def _tell_all(optimizer: Optimizer, *arguments: Any) -> None:
    for update_loss in list(_FOLLOWING):
        update_loss.after_step(optimizer)


def _copied(loss: Tensor) -> Tensor:
    """Return the value as it stands: a log may sum it over ranks in place, a CUDA graph write the next one into it."""
    return loss.detach().clone().reshape(())


def _as_tensor(loss: float) -> Tensor:
    return torch.tensor(loss, dtype=torch.float64, device="cpu")


def _evaluated_inside(evaluating: Evaluating, loss_fn: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    with evaluating():
        return loss_fn(model, batch)
