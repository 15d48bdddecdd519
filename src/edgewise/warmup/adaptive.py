"""Warmups that find their rates along the run: a table of them, and linear warmup where nothing can be found."""

from abc import abstractmethod
from typing import Any

from torch.optim import Optimizer

from edgewise.arguments import an_optimizer
from edgewise.optimizers.groups import check_minimizes
from edgewise.optimizers.update import check_steps_alone
from edgewise.parameters import check_real_groups
from edgewise.warmup.rate_table import RateTable
from edgewise.warmup.scheduler import Warmup
from edgewise.warmup.state import Saved

_PATIENCE = 200  # updates of linear warmup, where there is no β₂


class AdaptiveWarmup(Warmup):
    """A warmup without a length: `observe` sets the factor of the coming update.

    Args:
        optimizer: any whose `step()` needs no closure; its groups' rates are the targets, and their ratios are kept.
        fallback_length: of the linear warmup that it goes on as, once, where nothing can be measured.
        max_overhead: share of the training's cost that `observe` may add, above 0 and at most 1; no limit if not given.

    Attributes:
        fallback: why it goes on as linear warmup, or `None`.
    """

    _since_format = ("_fallback_length",)

    def __init__(
        self, optimizer: Optimizer, *, fallback_length: int, max_overhead: float | None = None
    ) -> None:
        optimizer = an_optimizer("optimizer", optimizer)
        check_steps_alone(optimizer)
        check_real_groups(optimizer)
        check_minimizes(optimizer)
        self._table = RateTable(fallback_length)
        super().__init__(optimizer, max_overhead=max_overhead)

    @abstractmethod
    def _seen(self) -> dict[str, Any]:
        """Return what it has seen beside the rates, as `_progress` does."""

    @abstractmethod
    def _read_seen(self, saved: Saved) -> dict[str, Any]:
        """Return the attributes that `_seen` told of, as `_read` does."""

    def factor_at(self, update: int) -> float:
        """Return the factor on the target rates, in (0, 1], of an update, counted from 0."""
        return self._table.factor_at(update)

    @property
    def _factor(self) -> float:
        """The factor of the coming update."""
        return self._table.factor_at(self._updates.made)

    @property
    def lr_held(self) -> float | None:
        """The first group's rate that the warmup ended at below the target; `None` if it reached it."""
        ended_below = self._end is not None and self._table.linear is None and self._table.rates[-1][1] < 1.0
        return self._table.rates[-1][1] * float(self.base_lrs[0]) if ended_below else None

    def _end_early(self) -> None:
        if self._table.linear is None and self._table.lowest == 0:
            self._fall_back("no rate was found in the first half of the run")
        self._copies.give_up()

    def _finish(self) -> None:
        """Let the warmup end with the coming update."""
        self._end = self._updates.made + 1
        self._copies.give_up()

    def _go_linear(self, start: float | None) -> None:
        self._end = self._table.go_linear(self._updates.made, self._factor if start is None else start)

    def _progress(self) -> dict[str, Any]:
        return {
            **self._table.state_dict(),
            "_waits_until": self._waits_until,
            "_end": self._end,
            **self._seen(),
        }

    def _read(self, saved: Saved) -> dict[str, Any]:
        table = RateTable(self._table.fallback_length)
        table.load_state_dict(saved)
        return {
            "_table": table,
            "_waits_until": saved.count("_waits_until"),
            "_end": saved.count_or_none("_end"),
            **self._read_seen(saved),
        }


def latest_end(num_steps: int) -> int:
    """Return how many updates a warmup may have that ends by half of a run: update num_steps // 2 is its last."""
    return num_steps // 2 + 1


def fallback_length(optimizer: Optimizer, num_steps: int | None) -> int:
    """Return a tenth of the run; where that is not known, 2/(1 − β₂), or the patience where there is no β₂."""
    if num_steps is not None:
        return max(1, num_steps // 10)
    decays = [float(group["betas"][1]) for group in optimizer.param_groups if len(group.get("betas", ())) > 1]
    return round(2 / (1 - max(decays))) if decays and max(decays) < 1 else _PATIENCE
