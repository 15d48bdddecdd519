"""Errors for the terminal: the last line of the user's own code, and where the full traceback is. No torch."""

import linecache
import re
import tempfile
import traceback
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FRAME = re.compile(r'^ *File "([^"\n]+)", line (\d+)(?:, in (.+))?$', re.MULTILINE)


def own_line(error: BaseException) -> str:
    """Return file, line and source of the last line of the user's that an error passed; empty if it passed none.

    Read from the printed traceback, which tells also of an error that another process sent.
    """
    for file, line, name in reversed(_FRAME.findall(full_traceback(error))):
        if _is_users(file):
            where = f"{file}:{line}, in {name}" if name else f"{file}:{line}"
            return f"  {where}\n    {linecache.getline(file, int(line)).strip()}".rstrip()
    return ""


def told(error: BaseException, message: str, kept: Path | None = None) -> str:
    """Return a message with the user's own line and the file of the full traceback.

    Args:
        error: what was raised.
        message: what to say of it.
        kept: where its traceback is already; written to a temporary file if there is none.
    """
    if kept is None or not kept.is_file():
        kept = _keep(full_traceback(error))
    where = f"full traceback: {kept}" if kept else "its full traceback cannot be written: no room"
    return "\n".join(part for part in (message, own_line(error), where) if part)


def in_short(error: BaseException) -> str:
    """Return kind and text of an error; of a text that itself holds a traceback, what is before and the last line."""
    kind = type(error).__name__
    lines = str(error).splitlines()
    at = next((i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line), None)
    if at is not None:  # of a process that loads data, say
        lines = [*lines[:at], lines[-1]]
    return f"{kind}: {chr(10).join(lines)}" if lines else kind


def full_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it, with those of the errors it came from."""
    return "".join(traceback.format_exception(error))


def _keep(text: str) -> Path | None:
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="edgewise-", suffix=".txt", delete=False
        ) as file:
            file.write(text)
    except OSError:
        return None
    return Path(file.name)


def _is_users(filename: str) -> bool:
    """Whether code is neither edgewise's, nor of an installed package, nor of Python itself."""
    path = Path(filename)
    outside = {_PACKAGE, Path(traceback.__file__).parent}
    is_installed = "site-packages" in path.parts or "dist-packages" in path.parts
    return not (filename.startswith("<") or is_installed or outside & set(path.parents))
