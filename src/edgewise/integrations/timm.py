"""A warmup for timm's training loops, which call their scheduler after every update and after every epoch.

Only timm's calls are followed: nothing of it is imported.
"""

from typing import Any

from edgewise.arguments import described
from edgewise.warmup.then import WarmupSequence
from edgewise.warmup.updates import UpdateSchedule


class TimmScheduler:
    """What timm's training loops call `lr_scheduler`, for a warmup and what follows it.

    `step_update` writes the rates of the coming update; `step`, at the end of an epoch, does nothing. Leave out timm's
    own `create_scheduler_v2`: it writes its `warmup_lr` to the optimizer, which a warmup would take for its target.

    Args:
        scheduler: what `warmup.then(...)` or `warmup.then_until(...)` returns, or a warmup alone.

    Attributes:
        t_in_epochs: `False`: timm logs that rates change with each update.

    Raises:
        TypeError: `scheduler` is none of these, such as one of timm's own.
        ValueError: the groups have an `lr_scale` (`layer_decay`), which is timm's own schedulers' to apply.

    Examples:
        >>> import torch
        >>> from edgewise import LinearWarmup
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(4, 1).parameters(), lr=0.8)
        >>> scheduler = TimmScheduler(LinearWarmup(optimizer, warmup_steps=2).then_until(4, "linear"))
        >>> num_updates, rates = 0, []
        >>> for epoch in range(2):
        ...     for _ in range(2):
        ...         rates.append(optimizer.param_groups[0]["lr"])
        ...         optimizer.step()
        ...         num_updates += 1
        ...         scheduler.step_update(num_updates)
        ...     scheduler.step(epoch + 1)
        >>> rates
        [0.4, 0.8, 0.8, 0.4]
    """

    t_in_epochs = False

    def __init__(self, scheduler: WarmupSequence[Any] | UpdateSchedule) -> None:
        if not isinstance(scheduler, WarmupSequence | UpdateSchedule):
            raise TypeError(
                "scheduler must be a warmup, or what its then() or then_until() returns, got "
                f'{described(scheduler)}: pass EdgeWarmup(optimizer).then_until(num_updates, "cosine"), e.g.'
            )
        for group in scheduler.optimizer.param_groups:
            if group.get("lr_scale", 1.0) != 1.0:
                raise ValueError(
                    f"the optimizer's groups have an lr_scale (layer_decay), got {group['lr_scale']!r}: a warmup "
                    "scales rates as they are. Before it is made, write group['lr'] *= group.pop('lr_scale') for each "
                    "group."
                )
        self.scheduler = scheduler
        self._num_updates = scheduler.last_epoch

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Do nothing: the rates follow the updates.

        Args:
            epoch: the number of the coming epoch.
            metric: not used.
        """

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Write the rates of the coming update.

        Args:
            num_updates: how many updates the run has had; those that a `GradScaler` skips may count.
            metric: not used.

        Raises:
            ValueError: more than one update was made since the last call, such as where a run is resumed without the
                state of this scheduler.
        """
        if num_updates > self._num_updates + 1:
            raise ValueError(
                f"num_updates must be {self._num_updates + 1} at most, got {num_updates!r}: a warmup cannot jump to an "
                "update. To resume a run, load_state_dict() of this scheduler first; else call step_update after every "
                "update."
            )
        self._num_updates = num_updates
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, and the state of the warmup with what follows."""
        return {"num_updates": self._num_updates, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the saved scheduler stood, with the rates it had.

        Raises:
            ValueError: the state is none of this class, or of another warmup or follower. Then nothing has changed.
        """
        if not isinstance(state_dict, dict) or state_dict.keys() != {"num_updates", "scheduler"}:
            raise ValueError(
                f"state_dict must be what state_dict() of a TimmScheduler returns, got {described(state_dict)}: save "
                "it beside the model and the optimizer, as timm's own savers leave schedulers out."
            )
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self._num_updates = state_dict["num_updates"]
