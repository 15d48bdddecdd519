"""What the slopes of the loss at both ends of an update say of its rate."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from edgewise.parameters import dense, inner
from edgewise.ranks import Ranks, local
from edgewise.signals.signal import Signal, average

_SLOPES_KEPT = 0.8  # share that a moving average of the slopes keeps, from one update to the next
_MOST_ENTRIES = 2**18  # of all parameters, that the slopes of one update are taken over


class RateShare(Signal):
    """ζ, the share of the critical rate that the updates take, from gradients alone: no forward.

        ζ = ½(1 + Σ g_{t+1}·Δθ_t / Σ |g_t·Δθ_t|),  Δθ_t = θ_{t+1} − θ_t

    The slopes of the loss at both ends of each update, the one at its end by the next batch, as moving averages. On a
    quadratic ζ = η/η_c, η_c the rate at which the loss no longer falls: 0 for steps much too short, ½ where an update
    ends at the minimum along it. The noise of small batches counts: what the next batch does not share is no descent.

    Of a large model the products are over a block of each parameter, in proportion to its size, and another block at
    every update: passes over memory cost, too. Of parameters that are frozen nothing is kept.

    Between updates it keeps copies: `before_step`, the update, `after_step`, and `add` with the next gradients.
    """

    _passing: ClassVar = ("value",)

    def __init__(self) -> None:
        self.kept: list[Tensor] = []  # blocks of the parameters before an update; after it, of the update Δθ
        self.moved = False  # which of the two
        self.turn, self.share = 0, 1.0  # which blocks, and of which share of the entries
        self.slope_at_start = 0.0  # g_t·Δθ_t, of sharded parameters this rank's part
        self.at_end = self.at_start = 0.0  # moving averages
        self.num_updates = 0  # that are in them
        self.value: float | None = None  # ζ; None if the last gradients were not finite, or nothing has moved

    def before_step(self, parameters: Sequence[Tensor]) -> None:
        """Keep the next blocks of the parameters as they are."""
        self.turn += 1
        trained = [p for p in parameters if p.requires_grad]
        self.share = min(1.0, _MOST_ENTRIES / max(1, sum(local(p).numel() for p in trained)))
        self.kept = [
            self._block(p).clone() if p.requires_grad else local(p.detach()).new_empty(0) for p in parameters
        ]
        self.moved = False

    def after_step(self, parameters: Sequence[Tensor]) -> None:
        """Turn the copy into the update, and take the slope at its start from the gradients that made it."""
        if not self.kept or self.moved:
            return
        for kept, parameter in zip(self.kept, parameters, strict=True):
            if kept.numel() > 0:
                torch.sub(self._block(parameter), kept, out=kept)
        self.slope_at_start = self._slope(parameters)
        self.moved = True

    def add(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        """Take in the gradients of the next batch.

        Where the update itself says nothing, as it moved nothing that shows, its copy is given up.
        """
        self.value = None
        if not self.moved:
            return
        start, end = self.slope_at_start, self._slope(parameters)
        if ranks.sharded:
            start, end = ranks.sum(torch.tensor([start, end], dtype=torch.float64, device="cpu")).tolist()
        if start == 0 or not math.isfinite(start):
            self.give_up_copies()
        elif math.isfinite(end):
            self.at_start = average(self.at_start, abs(start), _SLOPES_KEPT)
            self.at_end = average(self.at_end, end, _SLOPES_KEPT)
            self.num_updates += 1
            self.value = 0.5 * (1 + self.at_end / self.at_start)

    def give_up_copies(self) -> None:
        """Keep nothing of the last update; the averages stay."""
        self.kept, self.moved = [], False

    def _slope(self, parameters: Sequence[Tensor]) -> float:
        pairs = [
            (self._block(p.grad), kept)
            for p, kept in zip(parameters, self.kept, strict=True)
            if p.grad is not None and kept.numel() > 0
        ]
        return inner([gradient for gradient, _ in pairs], [kept for _, kept in pairs])

    def _block(self, tensor: Tensor) -> Tensor:
        entries = local(dense(tensor).detach()).reshape(-1)
        length = math.ceil(self.share * entries.numel())
        start = self.turn * length % max(1, entries.numel())
        return entries.narrow(0, min(start, entries.numel() - length), length)
