"""Monitors whose clocks run apart."""

import edgewise as ew
from cases import mse
from distributed.setups import adamw, build_ddp, build_fsdp


def ddp(rank: int) -> list[tuple[int, float, int, dict[str, float]]]:
    return followed(*build_ddp(rank)[1:], rank)


def fsdp(rank: int) -> list[tuple[int, float, int, dict[str, float]]]:
    return followed(*build_fsdp(rank)[1:], rank)


def followed(model, mine, rank: int) -> list[tuple[int, float, int, dict[str, float]]]:
    """Steps, values, products and largest shares of a monitor whose clocks run apart."""
    rows = []
    options = {"max_overhead": 0.2, "measure": ("sharpness",), "top_parameters": 2}
    monitor = ew.Monitor(model, adamw(model), mse, log=rows.append, **options)
    monitor._clock = Clock(1.0 + 5 * rank)
    for step in range(30):
        monitor.observe(mine[0])
        monitor._clock.now += 1.0 + 0.37 * step if rank else 3.0
    return [(row.step, row.sharpness, row.num_hvps, row.top_parameters) for row in rows]


class Clock:
    """Runs at a speed of its own."""

    def __init__(self, speed: float) -> None:
        self.now, self.speed = 0.0, speed

    def __call__(self) -> float:
        self.now += 0.1 * self.speed
        return self.now
