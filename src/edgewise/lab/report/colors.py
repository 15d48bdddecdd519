"""The colours of lines: a warmup, or an optimizer, has one and the same in every figure, whichever library draws it.

All are apart for every eye, and at least three times as bright or as dark as both pages, light and dark.
"""

from collections.abc import Mapping, Sequence

from edgewise.lab.configs import OptimizerConfig, RunConfig, WarmupConfig

GRAY, BLUE, VERMILLION, GREEN, PINK = "#808080", "#2560cf", "#d55e00", "#13925e", "#d857c0"
SKY, VIOLET = "#0d9fcf", "#7650f4"
OTHERS = (BLUE, VERMILLION, GREEN, PINK, SKY, GRAY, VIOLET)
"""Of lines that differ in something else, in turn."""

_NONE = GRAY
_LENGTHS = (SKY, BLUE, VIOLET)  # of linear warmup, shortest to longest
_FROM_CRITICAL = ("#13a56a", GREEN, "#0b7a4c")  # the same, from the critical rate
# Steps from which a length has the second colour and the third: the paper's are 64, 256, 1024.
_MIDDLE, _LONG = 96, 512
_WITHOUT_LENGTH = {"catapult": VERMILLION, "edge": PINK}
_OPTIMIZERS = {
    "sgd": BLUE,
    "adam": VERMILLION,
    "gi-adam": GREEN,
    "ri-adam": PINK,
    "adamw": "#a37d00",
    "gi-adamw": "#5b8c00",
    "radam": SKY,
    "nadam": "#9a6a4f",
    "lion": GRAY,
}
_MOMENTUM = VIOLET


def of_warmup(warmup: WarmupConfig, lengths: Sequence[int] = ()) -> str:
    """Return the colour of a warmup as #rrggbb; no warmup at all is gray.

    Args:
        warmup: whose decay is of no matter.
        lengths: all lengths of a figure, ascending, if it has some that are too close to have colours of their own.

    >>> of_warmup(WarmupConfig(steps=64)) == of_warmup(WarmupConfig(steps=64, decay="cosine"))
    True
    """
    if not warmup.traits.has_length:
        return _WITHOUT_LENGTH[warmup.kind]
    if warmup.steps == 1 and warmup.lr_init == 0:
        return _NONE
    ramp = _FROM_CRITICAL if warmup.lr_init == "critical" else _LENGTHS
    if len(lengths) > 1:
        return _between(ramp, lengths.index(warmup.steps) / (len(lengths) - 1))
    return ramp[(warmup.steps >= _MIDDLE) + (warmup.steps >= _LONG)]


def of_optimizer(optimizer: OptimizerConfig) -> str:
    """Return the colour of an optimizer as #rrggbb, whatever its rate.

    >>> of_optimizer(OptimizerConfig(name="adam", lr=0.1)) == of_optimizer(OptimizerConfig(name="adam", lr=0.2))
    True
    """
    has_momentum = "momentum" in optimizer.traits.options and optimizer.momentum
    return _MOMENTUM if has_momentum else _OPTIMIZERS[optimizer.name]


def of_lines(lines: Mapping[str, RunConfig]) -> dict[str, str]:
    """Return line → colour, by what the lines of a figure differ in: warmups, optimizers, or anything else.

    Args:
        lines: a line's label → one of its runs.
    """
    optimizers = {of_optimizer(config.optimizer) for config in lines.values()}
    warmups = {of_warmup(config.warmup) for config in lines.values()}
    by_optimizer = set() if len(optimizers) == 1 else warmups if len(warmups) == 1 else {_NONE}
    lengths = sorted({config.warmup.steps for config in lines.values() if config.warmup.steps > 1})
    for close in ([], lengths):
        found = {
            line: of_optimizer(config.optimizer)
            if of_warmup(config.warmup) in by_optimizer
            else of_warmup(config.warmup, close)
            for line, config in lines.items()
        }
        if len(set(found.values())) == len(found):
            return found
    return {line: OTHERS[i % len(OTHERS)] for i, line in enumerate(lines)}


def _between(ramp: tuple[str, str, str], share: float) -> str:
    """Return the colour at a share of the way along a ramp, 0 to 1."""
    at = min(int(share * 2), 1)
    low, high = (bytes.fromhex(color[1:]) for color in ramp[at : at + 2])
    part = share * 2 - at
    return "#" + bytes(round(a + part * (b - a)) for a, b in zip(low, high, strict=True)).hex()
