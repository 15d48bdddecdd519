"""What a trainer shows of each update: its micro-batches and their loss, for all that observes it."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from edgewise.arguments import an_instance
from edgewise.errors import LossError
from edgewise.integrations.transformers_patches import replaced, unchanged
from edgewise.loss.batches import with_own_containers
from edgewise.loss.update_loss import UpdateLoss

_KEPT = "_edgewise_updates"  # where a trainer keeps its own


@dataclass(frozen=True)
class MicroBatch:
    """What `training_step` was called with, and what `_prepare_inputs` made of it."""

    inputs: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    prepared: list[Any]


class Updates:
    """The updates of one trainer, while it trains: the loss of each, and the callbacks that observe it.

    `training_step` is followed, so that the closure is the trainer's own step on the same inputs, with its own scaling,
    but for `backward`. What preparing inputs does besides, such as generating text, is not repeated.

    Args:
        trainer: any `Trainer`; its `train` is replaced, and other methods while that runs.

    Attributes:
        replacements: of the trainer's methods while it trains, by name; each is given the method in whose place it is.
        undo: closed when `train` ends, also by an exception.
        is_training: whether the methods are replaced.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.replacements: dict[str, Callable[..., Any]] = {"training_step": self._training_step}
        self.undo = ExitStack()
        self.is_training = False
        self._loss: UpdateLoss | None = None
        self._is_observed = True
        self._step = trainer.training_step
        trainer.train = functools.update_wrapper(
            functools.partial(self._training, trainer.train), trainer.train
        )

    @classmethod
    def of(cls, trainer: Trainer) -> "Updates":
        """Return those of a trainer, which are made once."""
        found = vars(trainer).get(_KEPT)
        if found is None:
            found = cls(trainer)
            setattr(trainer, _KEPT, found)
        return found

    @property
    def loss(self) -> UpdateLoss:
        """The loss of the update under way."""
        if self._loss is None:
            self._loss = UpdateLoss(self.trainer.model_wrapped, self._loss_of, evaluating=self._evaluating)
        return self._loss

    def begin(self) -> None:
        """Begin with no update: after a lack of memory, a trainer may begin again in the middle of one."""
        self._loss, self._is_observed = None, True

    def observe(self) -> None:
        """Let all callbacks observe the update, once: first the warmup, which sets the rate that others report."""
        if self._is_observed:
            return
        self._is_observed = True
        callbacks = [c for c in self.trainer.callback_handler.callbacks if isinstance(c, UpdateCallback)]
        for callback in sorted(callbacks, key=lambda callback: not callback.sets_rates):
            callback.observe(self.loss)

    def log(self, row: dict[str, float | int]) -> None:
        """Log a row of its own: by `Trainer.log`, as TRL's trainers empty their metrics where they log."""
        control = self.trainer.control
        was_due = control.should_log
        Trainer.log(self.trainer, row)
        control.should_log = was_due  # the trainer's own row is still to come

    def _training(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        trainer = self.trainer
        self._step = trainer.training_step
        with ExitStack() as self.undo:
            self.undo.enter_context(replaced(self, "is_training", True))
            for name, replacement in self.replacements.items():
                method = functools.partial(replacement, getattr(trainer, name))
                self.undo.enter_context(replaced(trainer, name, method))
            return train(*args, **kwargs)

    def _training_step(
        self, step: Callable[..., Tensor], model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Make the trainer's own step, and keep what it takes to evaluate its loss again."""
        trainer, kept = self.trainer, with_own_containers(inputs)
        prepare, backward = trainer._prepare_inputs, trainer.accelerator.backward
        prepared: list[Any] = []
        losses: list[Tensor] = []

        def preparing(*args: Any, **kwargs: Any) -> Any:
            made = prepare(*args, **kwargs)
            prepared.append(with_own_containers(made))
            return made

        def differentiating(loss: Tensor, **kwargs: Any) -> None:
            losses.append(loss.detach())
            backward(loss, **kwargs)

        with (
            replaced(trainer, "_prepare_inputs", preparing),
            replaced(trainer.accelerator, "backward", differentiating),
        ):
            loss = step(model, inputs, *args, **kwargs)
        self.loss.add(MicroBatch(kept, args, kwargs, prepared), self._sum(losses), share=1.0)
        self._is_observed = False
        return loss

    def _loss_of(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """Return what the trainer's step on a micro-batch calls `backward` on."""
        trainer = self.trainer
        prepare, prepared = trainer._prepare_inputs, list(batch.prepared)
        losses: list[Tensor] = []

        def preparing(*args: Any, **kwargs: Any) -> Any:
            return with_own_containers(prepared.pop(0)) if prepared else prepare(*args, **kwargs)

        with (
            replaced(trainer, "_prepare_inputs", preparing),
            replaced(trainer.accelerator, "backward", lambda loss, **kwargs: losses.append(loss)),
        ):
            self._step(model, with_own_containers(batch.inputs), *batch.arguments, **batch.options)
        return self._sum(losses)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Let the trainer's counts and metrics be as if nothing was evaluated, and nothing be logged."""
        with unchanged(self.trainer), replaced(self.trainer, "log", lambda *args, **kwargs: None):
            yield

    def _sum(self, losses: list[Tensor]) -> Tensor:
        if not losses:
            raise LossError(
                f"the training_step of {type(self.trainer).__name__} does not call self.accelerator.backward(loss), "
                "which is where edgewise takes the loss from: let it."
            )
        return functools.reduce(torch.add, losses)


class UpdateCallback(TrainerCallback, ABC):
    """A callback that observes each update of the trainer that it is given, after clipping.

    Args:
        trainer: the trainer that it is added to.
    """

    sets_rates = False

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = an_instance(
            "trainer",
            trainer,
            Trainer,
            "pass the trainer that it is added to, as in add_callback(Callback(trainer))",
        )
        self.updates = Updates.of(trainer)

    @abstractmethod
    def begin(self) -> None:
        """Begin with a training, before anything is computed."""

    @abstractmethod
    def observe(self, update_loss: UpdateLoss) -> None:
        """Look at an update."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that it is the trainer that was given, and begin."""
        if state is not self.trainer.state:
            raise ValueError(
                f"this {type(self).__name__} was made for another trainer: make one for each, as in "
                f"trainer.add_callback({type(self).__name__}(trainer))."
            )
        if not self.updates.is_training:
            raise ValueError(
                f"{type(self).__name__} follows the training that trainer.train() begins, and this one was begun in "
                "another way: call that."
            )
        self._check_optimizer()
        self.updates.begin()
        self.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Observe the update: gradients are unscaled and clipped."""
        self.updates.observe()

    def _check_optimizer(self) -> None:
        """Raise where the trainer's optimizer is another model's."""
        trainer = self.trainer
        own = {
            id(p)
            for model in (trainer.model, trainer.model_wrapped)
            for p in model.parameters()
            if p.requires_grad
        }
        groups = trainer.optimizer.param_groups
        if not any(id(parameter) in own for group in groups for parameter in group["params"]):
            raise ValueError(
                f"{type(self).__name__} found no parameter of {type(trainer.model).__name__} that requires a gradient "
                "in the trainer's optimizer, which is another model's: make it on the parameters of the model that the "
                "trainer is given."
            )
