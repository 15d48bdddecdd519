"""Where a warmup stands, as its saved state says."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from edgewise.optimizers.groups import like_rates
from edgewise.warmup.state import Saved


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The entries of a state that all warmups have, checked."""

    base_lrs: list[float | Tensor]
    lr: Any  # the rates, where they are not the factor's, one a group; else None
    last_epoch: int
    step_count: int
    updates: int
    num_forwards: int
    num_searches: int
    fallback: str | None

    @classmethod
    def read(cls, saved: Saved, optimizer: Optimizer, *, least_epoch: int) -> "Standing":
        """Return what a state says, or raise `ValueError`."""
        num = len(optimizer.param_groups)
        bases = saved.numbers("base_lrs", num)
        if saved.get("lr") is not None:
            saved.check_rates("lr", num)
        return cls(
            base_lrs=like_rates(optimizer.param_groups, bases),
            lr=saved.get("lr"),
            last_epoch=saved.count("last_epoch", least=least_epoch),
            step_count=saved.count("_step_count"),
            updates=saved.count("_updates"),
            num_forwards=saved.count("num_forwards"),
            num_searches=saved.count("num_searches"),
            fallback=saved.text_or_none("fallback"),
        )


def check_settings(saved: Saved, own: dict[str, Any]) -> None:
    """Raise unless a state was saved with these settings."""
    for name, ours in own.items():
        theirs = saved.get(name)
        if theirs != ours:
            raise ValueError(
                f"the saved state has {name} = {theirs!r}, this warmup has {ours!r}: "
                "construct it with the saved values to resume."
            )
