"""Whether a loss is the same again where nothing has changed; if not, what is to blame, and how much it varies."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from edgewise.errors import LossError
from edgewise.isolation.hooks import CALLS
from edgewise.loss.checks import forward_only
from edgewise.loss.evaluation import Evaluation
from edgewise.torch_internals import tree_leaves

_MORE = 2  # evaluations, where there is more than rounding, to tell how much
MARGIN = 4  # times the range of such evaluations: a change of the loss that shows above it


def repeated(first: float, evaluate: Callable[[], float]) -> tuple[float, float]:
    """Return the loss again, and by how much it varies at one point.

    One more evaluation where it is the same, two further ones where it is not: a single difference is by chance now and
    then much smaller than others.

    Args:
        first: the loss.
        evaluate: returns it again.

    >>> repeated(1.0, lambda: 1.0)
    (1.0, 0.0)
    """
    again = evaluate()
    values = [first, again]
    if again != first:
        values += [evaluate() for _ in range(_MORE)]
    finite = all(map(math.isfinite, values))
    return again, max(values) - min(values) if finite else math.inf


def check_repeats(evaluation: Evaluation) -> None:
    """Raise `LossError` if the loss of the first batch is another when it is evaluated again."""
    with evaluation.together(), forward_only():
        first, again = (evaluation.loss(0, evaluation.first_batch()).item() for _ in range(2))
    repeats = abs(again - first) <= evaluation.noise * abs(first)
    if not all(evaluation.ranks.gather(repeats)):
        refuse_to_repeat(evaluation, "batch 0", first, again, is_known=not repeats)


def refuse_to_repeat(
    evaluation: Evaluation, of: str, first: float, again: float, *, is_known: bool = True
) -> None:
    """Raise `LossError` that names what makes the loss `again` another; where it is not known here, return."""
    with evaluation.together(), forward_only():
        batch = evaluation.first_batch()
        culprit = first_unrepeatable(evaluation.model, lambda: evaluation.loss(0, batch))
        if is_known:
            raise LossError(told(of, first, again, culprit, others="loss_fn or batches do"))


def told(of: str, first: float, again: float, culprit: str, *, others: str) -> str:
    """Return the words for a loss that is another one again; the `culprit` may be '', for one of the `others`."""
    return (
        f"the loss of {of} is {first:.6g} and, evaluated again from the same random state, {again:.6g}: "
        f"{f'the first to differ is {culprit}' if culprit else f'no module differs, {others}'}"
        ". Call model.eval(), or draw from the generators of torch, numpy or random, which are rewound."
    )


def first_unrepeatable(
    model: nn.Module | None, evaluate: Callable[[], object], *, others: Iterable[nn.Module] = ()
) -> str:
    """Return the name and class of the first module whose output differs between two evaluations, '' for none.

    Only modules whose input agreed count: the others merely pass a difference on.

    Args:
        model: that gives its modules their names.
        evaluate: calls them.
        others: that give names to their modules, those before those that are found again later.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> first_unrepeatable(model, lambda: model(torch.ones(9, 2)))
    '1 (Dropout)'
    """
    names: dict[nn.Module, str] = {}
    for root in [*([] if model is None else [model]), *others]:
        for name, module in root.named_modules() if root not in names else ():
            kind = type(module).__name__
            label = name or ("the model" if root is model else "")
            names.setdefault(module, f"{label} ({kind})" if label else kind)
    first, second = (_calls_of(names, evaluate) for _ in range(2))
    for (name, inputs, output), (other, other_inputs, other_output) in zip(first, second, strict=False):
        if name == other and inputs == other_inputs and output != other_output:
            return name
    return ""


def _calls_of(names: dict[nn.Module, str], evaluate: Callable[[], object]) -> list[tuple[str, str, str]]:
    """Return module, fingerprint of its inputs and fingerprint of its output for each call, in order of their end."""
    calls = []

    def call(original: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inputs = _fingerprint((args, kwargs))
        output = original(module, *args, **kwargs)
        calls.append((names.get(module, type(module).__name__), inputs, _fingerprint(output)))
        return output

    with CALLS.by(call):
        evaluate()
    return calls


def _fingerprint(values: Any) -> str:
    """Two sums over each tensor: small, and the same for equal tensors, NaN included."""
    tensors = [leaf.detach().double() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return repr([(float(t.sum()), float(t.square().sum())) for t in tensors])
