"""The most memory that this process held."""

import contextlib
import resource
import sys
from pathlib import Path

_OWN = Path("/proc/self")  # Linux; elsewhere the peak is that of the process since it began


def reset_peak_memory() -> None:
    """Forget earlier peaks, where the system can: a process trains one run after the other."""
    with contextlib.suppress(OSError):
        (_OWN / "clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the bytes of memory that the process held at most since then."""
    with contextlib.suppress(OSError, StopIteration):
        lines = (_OWN / "status").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(kilobytes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
