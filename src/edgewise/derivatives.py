"""The second derivative of a loss by torch's two routes, and where there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import SecondDerivativeError
from edgewise.losses import LossFunction


def differentiate(
    graph: list[Tensor | None], parts: list[Tensor], parameters: list[Tensor], *, keep: bool
) -> list[Tensor | None]:
    """Return Σⱼ ∂graphⱼ/∂θ · partsⱼ; gradients that do not depend on θ (linear entries) contribute zero."""
    pairs = [(g, v) for g, v in zip(graph, parts, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return [None] * len(parameters)
    outputs, vectors = zip(*pairs, strict=True)
    _check_twice_differentiable(outputs)
    with as_second_derivative_error("reverse-over-reverse"):
        return list(torch.autograd.grad(outputs, parameters, vectors, retain_graph=keep, allow_unused=True))


def _check_twice_differentiable(gradients: tuple[Tensor, ...]) -> None:
    """Raise where a custom function is marked once_differentiable.

    torch raises on such a node only when the path behind it is asked for; here it ends at a detached tensor, and
    torch.autograd.grad would leave its terms out in silence.
    """
    pending = [gradient.grad_fn for gradient in gradients]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise SecondDerivativeError(
                "reverse-over-reverse is not possible for this loss (a custom autograd.Function is marked "
                'once_differentiable): use hvp="difference", or a function that can be differentiated twice.'
            )
        pending.extend(following for following, _ in node.next_functions)


def evaluated_at(
    parameters: dict[Tensor, Tensor], model: nn.Module, loss_fn: LossFunction, batch: Any
) -> Tensor:
    """Return the loss with other tensors in the place of parameters, and buffers that it may write to.

    Tied parameters are named once for each module that holds them. torch's own tie_weights would also name a
    module twice that is registered under two names, and not put its parameters back.
    """
    whole = _LossModule(model, loss_fn)
    replaced: dict[str, Tensor] = {}
    for prefix, module in whole.named_modules():
        path = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter in parameters:
                replaced[path + name] = parameters[parameter]
        for name, buffer in module.named_buffers(recurse=False):
            replaced[path + name] = buffer.clone()
    return torch.func.functional_call(whole, replaced, (batch,), tie_weights=False)


class _LossModule(nn.Module):
    """The loss as a module's forward, so that torch.func can replace the parameters inside."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


@contextmanager
def as_second_derivative_error(route: str) -> Iterator[None]:
    """Turn torch's refusal to differentiate into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        raise SecondDerivativeError(
            f"{route} is not possible for this loss ({str(error).strip().splitlines()[0]}): "
            'use hvp="difference", or kernels that can be differentiated twice.'
        ) from error
