"""How far the runs under way were a moment ago, for whoever looks into the folder from outside."""

import contextlib
import json
import math
import time

from edgewise.lab.errors import StoreError
from edgewise.lab.results.files import Folder
from edgewise.lab.results.run_folder import is_run_id

NAME = "progress.json"


def write(folder: Folder, steps: dict[str, int]) -> None:
    """Record how many steps the runs under way have behind them, if there is room for that."""
    with contextlib.suppress(OSError, StoreError):
        folder.write(json.dumps({"time": time.time(), "steps": steps}), NAME, lasting=False)


def read(folder: Folder) -> tuple[float, dict[str, int]]:
    """Return when progress was last recorded (seconds since 1970, −∞ if never), and what it was."""
    try:
        content = json.loads(folder.read(NAME))
        noted, steps = float(content["time"]), content["steps"].items()
    except (StoreError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return -math.inf, {}
    if not math.isfinite(noted):
        return -math.inf, {}
    return noted, {run_id: n for run_id, n in steps if is_run_id(run_id) and isinstance(n, int)}
