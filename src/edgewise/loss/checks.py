"""What a loss must be to be measured, and whose fault it is where one cannot be computed."""

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from edgewise.errors import LossError
from edgewise.isolation.threads import Override
from edgewise.loss.batches import tensors_of, unlike_a_batch
from edgewise.torch_internals import BACKWARD

LossFunction = Callable[[nn.Module, Any], Tensor]

# In what torch says of tensors without a graph, and Python of gradients that are not there.
_LACKS_GRAPH = re.compile(r"requires?[ _]grad|grad_fn|used in the graph|NoneType")
_CHECKPOINT_WARNS = Override(checkpoint, "check_backward_validity")


def checked_loss(loss: object, of: str, *, finite: bool = True) -> Tensor:
    """Return `loss` if it is a scalar tensor, and finite if it must be, or raise `LossError`; it is that `of` what."""
    if not isinstance(loss, Tensor):
        raise LossError(
            f"the loss of {of} must be a scalar tensor, got {type(loss).__name__}: {_mend(loss)}."
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise LossError(
            f"the loss of {of} must be one floating-point number, got shape {tuple(loss.shape)} and "
            f"{loss.dtype}: {_reduction(loss)}."
        )
    if loss.is_meta or loss.layout is not torch.strided:
        raise LossError(
            f"the loss of {of} must be a number that can be read, got one on {loss.device} in {loss.layout}: "
            "load the data, or convert it with .to_dense()."
        )
    if finite and not torch.isfinite(loss.detach()):
        raise LossError(
            f"the loss of {of} is {loss.item()}: measure at finite parameters and check the inputs for NaN."
        )
    return loss.reshape(())


def differentiable_loss(loss: Tensor, of: str) -> Tensor:
    """Return `loss` if it has a graph, or raise `LossError`; `of` names where it came from."""
    if not loss.requires_grad:
        raise LossError(
            f"the loss of {of} has no graph to the parameters: do not call .item(), .detach() "
            "or torch.no_grad() inside loss_fn, and use the model it is given."
        )
    return loss


@contextmanager
def calling(what: str, batch: Any = None) -> Iterator[None]:
    """Say of an error in user code where it was raised; name an argument that user code cannot take as what it is.

    The error comes through as it is, with a note. A TypeError stays one where the batch explains it.
    """
    try:
        yield
    except Exception as error:
        if type(error) is TypeError and (why := unlike_a_batch(batch)):
            raise TypeError(f"{what} cannot take its batch, {why} ({error}).") from error
        error.add_note(f"raised by {what}")
        if isinstance(error, RuntimeError) and (tensors := list(tensors_of(batch))):
            error.add_note(f"the batch holds {', '.join(f'{t.dtype} {tuple(t.shape)}' for t in tensors[:8])}")
        raise


def _mend(loss: object) -> str:
    """Say what to return instead of what is no tensor."""
    if loss is None:
        return "a return is missing"
    if isinstance(loss, Mapping) or is_dataclass(loss):
        return "return the loss in it alone, such as outputs.loss or outputs['loss']"
    if isinstance(loss, tuple | list):
        return "return the loss alone, without what else was computed"
    return "return the mean loss as computed by torch, without .item() or .numpy()"


def _reduction(loss: Tensor) -> str:
    if loss.numel() != 1:
        return "reduce it with .mean()"
    return "take a real part or a norm" if loss.is_complex() else "compute it in floating point"


@contextmanager
def forward_only() -> Iterator[None]:
    """No graph, and no warning of torch's that a reentrant checkpoint has none, in this thread."""
    with torch.no_grad(), _CHECKPOINT_WARNS.by(lambda original, inputs: None):
        yield


class GraphOnDemand:
    """Evaluates a loss in the grad mode of the caller, but with a graph where the loss itself differentiates.

    Under no_grad, `torch.autograd.grad` inside a loss (physics-informed networks, gradient penalties) finds nothing to
    differentiate. The evaluation then is made again, with a graph, and so are all later ones.

    Args:
        parameters: whose gradients the loss must leave alone.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._needed = False

    def __call__(self, evaluate: Callable[[], Any]) -> Any:
        """Return `evaluate()`, which starts from the same state each time, also after it has raised."""
        if torch.is_grad_enabled():
            return self._with_graph(evaluate)
        if not self._needed:
            try:
                return evaluate()
            except LossError:
                raise
            except Exception as error:
                if not _LACKS_GRAPH.search(str(error)):
                    raise
                _check_no_backward(error)
            self._needed = True
        with torch.enable_grad():
            value = self._with_graph(evaluate)
        return value.detach() if isinstance(value, Tensor) else value

    def _with_graph(self, evaluate: Callable[[], Any]) -> Any:
        had = any(parameter.grad is not None for parameter in self._parameters)
        value = evaluate()
        if not had and any(parameter.grad is not None for parameter in self._parameters):
            raise _own_backward()
        return value


def _check_no_backward(error: Exception) -> None:
    """Raise where it was backward() that found no graph: with one, it would add to the gradients of training."""
    if any(frame.f_code is BACKWARD for frame, _ in traceback.walk_tb(error.__traceback__)):
        raise _own_backward() from error


def _own_backward() -> LossError:
    return LossError(
        "the loss calls backward() itself, which adds to the gradients that training uses: differentiate by "
        "torch.autograd.grad(..., create_graph=True) inside loss_fn, which returns what it finds."
    )
