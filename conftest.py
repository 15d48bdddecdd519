"""Integrations need their frameworks: where one is missing, the examples in the docstrings of its file do not run.

`make integrations` runs them all, in an environment that has every framework.
"""

from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent / "src" / "edgewise" / "integrations"
# A file or folder is named after its framework; what belongs to that one beside it begins with the same word.
collect_ignore = [
    str(path) for path in FOLDER.glob("[!_]*") if find_spec(path.stem.partition("_")[0]) is None
]
