"""Where and with what results are made."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path


def provenance() -> dict[str, str]:
    """Return the versions, the state of the source and the machine."""
    versions = {name: metadata.version(name) for name in ("edgewise", "torch", "numpy")}
    return versions | {
        "source": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_state() -> str:
    """Return the commit of the checkout that runs, and whether it was changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
