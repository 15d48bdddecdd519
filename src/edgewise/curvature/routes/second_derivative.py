"""The second derivative of a loss by torch's two routes, and where there is none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from edgewise.curvature.routes.attention import plain_attention
from edgewise.errors import EdgewiseError, SecondDerivativeError
from edgewise.loss.graph import nodes
from edgewise.parameters import dense


class WrongDerivativeError(SecondDerivativeError):
    """There is a second derivative by this route, and it is not that of the loss: other formulas may be wrong too."""


def gradient_with_graph(loss: Tensor, parameters: list[Tensor]) -> tuple[list[Tensor | None], bool]:
    """Return ∇L with a graph, to be differentiated again, and whether custom functions have a part in it."""
    is_custom = any(isinstance(node, BackwardCFunction) for node in nodes([loss.grad_fn]))
    with as_second_derivative_error("reverse-over-reverse"):
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        return [gradient if gradient is None else dense(gradient) for gradient in gradients], is_custom


class GradientGraph:
    """The graph of ∇L, to be differentiated again; ∇L itself, a copy of the parameters, is not held.

    Args:
        gradient: ∇L, with its graph.
        parameters: θ.
    """

    def __init__(self, gradient: list[Tensor | None], parameters: list[Tensor]) -> None:
        self._parameters = parameters
        # Of the entries that depend on θ: those of linear terms contribute nothing.
        self._edges = {
            i: get_gradient_edge(g) for i, g in enumerate(gradient) if g is not None and g.requires_grad
        }
        self._is_checked = False

    def differentiate(self, vectors: list[Tensor], *, keep: bool) -> list[Tensor | None]:
        """Return Σⱼ ∂(∇L)ⱼ/∂θ · vectorsⱼ."""
        if not self._edges:
            return [None] * len(self._parameters)
        edges = list(self._edges.values())
        if not self._is_checked:
            _check_twice_differentiable([edge.node for edge in edges])
            self._is_checked = True
        parts = [vectors[i] for i in self._edges]
        with as_second_derivative_error("reverse-over-reverse"):
            found = torch.autograd.grad(edges, self._parameters, parts, retain_graph=keep, allow_unused=True)
        return list(found)


def forward_over_reverse(
    evaluate: Callable[[dict[str, Tensor]], Tensor],
    primals: dict[str, Tensor],
    tangents: dict[str, Tensor],
    expected: float | None,
    rtol: float,
) -> list[Tensor | None]:
    """Return the derivative of ∇L along the tangents; `expected` is L without torch.func, if it is to be compared.

    torch.func may draw other dropout masks from the same random state than plain evaluations do.
    """
    gradient_and_value = torch.func.grad_and_value(evaluate)
    with plain_attention(), as_second_derivative_error("forward-over-reverse"):
        primal, (product, _) = torch.func.jvp(gradient_and_value, (primals,), (tangents,))[:2]
    loss = float(primal[1].detach())
    if expected is not None and not abs(loss - expected) <= rtol * abs(expected):
        raise SecondDerivativeError(
            f"forward-over-reverse is not possible for this loss (it is {loss:.6g} under torch.func and "
            f"{expected:.6g} without, from the same random state, as if dropout drew another mask): use "
            'hvp="reverse" or hvp="difference", or call model.eval().'
        )
    return list(product.values())


def _check_twice_differentiable(gradients: list[Any]) -> None:
    """Raise where a custom function is marked once_differentiable.

    torch raises on such a node only when the path behind it is asked for; here it ends at a detached tensor, and
    torch.autograd.grad would leave its terms out in silence.
    """
    for node in nodes(gradients):
        if node.name() == "torch::autograd::Error":
            raise SecondDerivativeError(
                "reverse-over-reverse is not possible for this loss (a custom autograd.Function is marked "
                'once_differentiable): use hvp="difference", or a function that can be differentiated twice.'
            )


@contextmanager
def as_second_derivative_error(route: str) -> Iterator[None]:
    """Turn a failure to differentiate, torch's or a custom function's, into one that says what to do."""
    try:
        yield
    except (EdgewiseError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise SecondDerivativeError(
            f"{route} is not possible for this loss ({reason}): "
            'use hvp="difference", or kernels that can be differentiated twice.'
        ) from error
