"""How numbers stand on axes: as people write them."""

import math


def number(value: float) -> str:
    """Return a rate as people write it, to four digits.

    >>> [number(x) for x in (0.001, 0.03, 2.0, 1e-05, 3e-6, 20000.0, 0.353553)]
    ['0.001', '0.03', '2', '1e-5', '3e-6', '20000', '0.3536']
    """
    mantissa, exponent, power = f"{float(f'{value:.4g}'):g}".partition("e")
    return f"{mantissa}e{int(power)}" if exponent else mantissa


def log_ticks(low: float, high: float) -> list[float]:
    """Return where a log axis from low to high has its ticks: at 1, 2 and 5, at 1 and 3, or at powers of ten alone.

    >>> log_ticks(0.004, 0.06), log_ticks(1e-3, 1.0)
    ([0.005, 0.01, 0.02, 0.05], [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
    """
    decades = math.log10(high / low)
    digits = (1, 2, 5) if decades < 1.5 else (1, 3) if decades <= 3 else (1,)
    stride = max(1, math.ceil(decades / 8))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers if power % stride == 0 for digit in digits]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
