"""The graph of a loss, as autograd has recorded it."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

_REENTRANT = "CheckpointFunctionBackward"  # torch.utils.checkpoint's node, by its reentrant kind


def nodes(last: Iterable[Any]) -> Iterator[Any]:
    """Yield the nodes of the graph that ends in the last ones, each once."""
    pending = list(last)
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending.extend(following for following, _ in node.next_functions)


def has_reentrant_checkpoint(loss: Tensor) -> bool:
    """Whether parts of the graph are recorded in its backward pass only.

    The parameters inside are not in the graph: torch.autograd.grad refuses where the checkpoint lies on its way, and
    leaves them out in silence where it does not, as where the input is a leaf, which PEFT makes it.
    """
    return any(node.name() == _REENTRANT for node in nodes([loss.grad_fn]))
