"""The shares of micro-batches in the loss of their update, told by what `backward()` was given for each."""

import math
from collections.abc import Iterator, Sequence

from edgewise.errors import LossError

_MOST_LISTED = 8
_MOST_OFF = math.log(1.25)  # of a ratio from the rule that explains it; dropout makes ratios vary

Sizes = tuple[int | None, ...]


class Shares:
    """Which factor a training loop gives each micro-batch's loss, found once for each tuple of batch sizes.

    For fewer micro-batches than there were at most it is found each time: they may be divided by either number.

    Candidates are 1, one over the number of micro-batches, and each one's share of the samples; further, what all
    micro-batches of an earlier update had, as a short last update is often divided by the number of a full one.

    >>> shares = Shares()
    >>> shares.find((8, 8), given=[0.5, 0.25], evaluated=[1.0, 0.5])
    [0.5, 0.5]
    >>> shares.find((8,), given=[0.3], evaluated=[0.6])
    [0.5]
    """

    def __init__(self) -> None:
        self._found: dict[Sizes, list[float]] = {}
        self._latest = ""  # the rule of the latest find

    def known(self, sizes: Sizes) -> list[float] | None:
        """Return what was found for micro-batches of these sizes, or `None`.

        Nothing is known of fewer than there were at most: a short last update of an epoch, or the full one of a loop
        that now accumulates fewer, which divides by another number.
        """
        most = max(map(len, self._found), default=0)
        return self._found.get(sizes) if len(sizes) == most else None

    def find(self, sizes: Sizes, *, given: Sequence[float], evaluated: Sequence[float]) -> list[float]:
        """Return the shares.

        Losses that are zero or not finite tell nothing: where all are, the rule is that of the latest find, and
        nothing is remembered.

        Args:
            sizes: of the micro-batches; `None` where it cannot be told.
            given: the losses that `backward()` was called on.
            evaluated: those that `loss_fn` returns.

        Raises:
            LossError: no rule explains the ratios.
        """
        ratios = [_ratio(*pair) for pair in zip(given, evaluated, strict=True)]
        rules = dict(self._rules(sizes))
        if not any(map(math.isfinite, ratios)):
            return rules.get(self._latest, rules["one over the number"])
        rule = min(rules, key=lambda name: _off(ratios, rules[name]))
        shares = rules[rule]
        if _off(ratios, shares) > _MOST_OFF:
            raise LossError(_unexplained(ratios, rules))
        self._latest, self._found[sizes] = rule, shares
        return shares

    def _rules(self, sizes: Sizes) -> Iterator[tuple[str, list[float]]]:
        num = len(sizes)
        yield "no factor", [1.0] * num
        yield "one over the number", [1 / num] * num
        known = [size for size in sizes if size is not None]
        if len(known) == num and all(known):
            yield "the share of the samples", [size / sum(known) for size in known]
        for earlier in self._found.values():
            if len(set(earlier)) == 1:
                yield f"{earlier[0]:.4g} as before", earlier[:1] * num


def _ratio(given: float, evaluated: float) -> float:
    """Return given over evaluated; NaN where that tells nothing."""
    finite = math.isfinite(given) and math.isfinite(evaluated)
    return given / evaluated if finite and given != 0 and evaluated != 0 else math.nan


def _off(ratios: Sequence[float], shares: Sequence[float]) -> float:
    """Return how far the farthest ratio is from its share, on the log scale; those that tell nothing are left out."""
    told = [(ratio, share) for ratio, share in zip(ratios, shares, strict=True) if not math.isnan(ratio)]
    return max(abs(math.log(ratio / share)) if ratio > 0 else math.inf for ratio, share in told)


def _unexplained(ratios: Sequence[float], rules: dict[str, list[float]]) -> str:
    tried = "; ".join(f"{name}, {_listed(shares)}" for name, shares in rules.items())
    return (
        f"the losses added are {_listed(ratios)} times what loss_fn returns for their batches, which is none of the "
        f"shares that are looked for: {tried}. Pass share= to add, the factor on loss_fn(model, batch) that gives the "
        "loss that backward() was called on, before a GradScaler scales it; also where dropout varies the loss by so "
        "much."
    )


def _listed(numbers: Sequence[float]) -> str:
    listed = [f"{number:.4g}" for number in numbers[:_MOST_LISTED]]
    return " ".join([*listed, "..."] if len(numbers) > _MOST_LISTED else listed)
