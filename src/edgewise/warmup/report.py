"""What a warmup has done, in one object that prints."""

from dataclasses import asdict, dataclass

from edgewise.status import Status, flat_metrics


@dataclass(frozen=True, kw_only=True)
class WarmupReport:
    """A warmup so far; rates are those of the first parameter group, updates are counted from 0."""

    warmup: str  # class
    updates: int  # steps of the optimizer so far
    finished: bool
    lr_start: float  # of the first update
    lr: float  # of the coming update, while the warmup lasts
    lr_target: float
    steps_to_target: int | None  # T_reach: number of the first update at the target; None: not known yet
    steps_saved: float | None  # T_save, of linear warmup of the same length; None: nothing to compare with
    num_catapults: int  # rises of the rate, each to the critical learning rate or less
    num_step_backs: int  # times that the rate was halved, as the loss rose
    num_spikes: int  # losses that stood out, after which updates took a share of the rate
    lr_held: float | None  # where the warmup ended below the target, or was halved since; None: at the target
    num_searches: int
    num_forwards: int  # evaluations of the loss by `observe`
    overhead: float  # num_forwards over the cost of the updates so far, three forwards each
    fallback: str | None  # why it went on as plain linear warmup

    @property
    def status(self) -> Status:
        """UNDER_WAY, AT_TARGET, HELD_BELOW_TARGET or FELL_BACK."""
        if self.fallback is not None:
            return Status.FELL_BACK
        if self.lr_held is not None:
            return Status.HELD_BELOW_TARGET
        return Status.AT_TARGET if self.finished else Status.UNDER_WAY

    @property
    def ok(self) -> bool:
        """Whether the rates are those that the warmup looked for: it has not fallen back to linear warmup."""
        return self.fallback is None

    def metrics(self, prefix: str = "edgewise/") -> dict[str, float | int]:
        """Return the numbers by flat names, such as "edgewise/warmup/lr", for a tracker of any kind.

        They are `prefix` + "warmup/" + the names of this report's fields; `status` is its code (`Status.code`),
        `finished` is 0 or 1, counts are ints. What is in words, or `None`, is left out.

        Args:
            prefix: of each name.

        Raises:
            TypeError: `prefix` is no str.

        Examples:
            >>> import torch
            >>> from edgewise import LinearWarmup
            >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=1.0)
            >>> metrics = LinearWarmup(optimizer, warmup_steps=4).metrics()
            >>> metrics["edgewise/warmup/lr"], metrics["edgewise/warmup/status"]
            (0.25, 40)
        """
        named = {
            f"warmup/{name}": value for name, value in (asdict(self) | {"status": self.status.code}).items()
        }
        return flat_metrics(named, prefix)

    def __str__(self) -> str:
        """Return the rate, its target, the status and the cost, in one line."""
        cost = f"{self.updates} updates, {self.num_forwards} forwards"
        return f"{self.warmup} at {self.lr:.4g} of {self.lr_target:.4g} ({self.status.name}, {cost})"

    def summary(self) -> str:
        """Return all of it in words, a line for each thing."""
        missed = "was not reached" if self.finished else "not yet"
        reach = missed if self.steps_to_target is None else f"from update {self.steps_to_target} on"
        come_to = f"{self.lr:.4g} at the end" if self.finished else f"now {self.lr:.4g}"
        forwards = f"{self.num_forwards} forward{'' if self.num_forwards == 1 else 's'}"
        searches = f"{self.num_searches} search{'' if self.num_searches == 1 else 'es'}"
        lines = [
            f"{self.warmup}: {'finished' if self.finished else 'under way'} after {self.updates} updates",
            f"  rate: {self.lr_start:.4g} at the start, {come_to}; target {self.lr_target:.4g} {reach}",
            f"  overhead: {forwards}, {searches}, {self.overhead:.1%} of training",
        ]
        if self.num_catapults:
            lines.insert(
                2, f"  catapults: {self.num_catapults}, of which {self.num_step_backs} were taken back"
            )
        elif self.num_step_backs:
            lines.insert(2, f"  halved {self.num_step_backs} times, as the loss rose")
        if self.num_spikes:
            lines.insert(2, f"  spikes: {self.num_spikes}, after which updates took a share of the rate")
        if self.steps_saved is not None:
            lines.insert(2, f"  saved: {self.steps_saved:.1f} updates of linear warmup")
        if self.lr_held is not None:
            lines.insert(
                2,
                f"  held below the target, at {self.lr_held:.4g}: the loss fell no better at higher rates, or half of "
                "the run was over",
            )
        if self.fallback is not None:
            lines.append(f"  fell back to linear warmup: {self.fallback}")
        return "\n".join(lines)
