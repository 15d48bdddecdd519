"""The scripts of examples/: they run, and few lines of them are edgewise's. Oracle: the scripts themselves, parsed.

Cannot see: whether a script without the marked lines would be somebody's own.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MARK = "  # edgewise"
MOST = 5  # lines beyond the user's own
ON_TWO_RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCHED = {  # not by Python alone: arguments and settings
    "ddp.py": [(ON_TWO_RANKS, {})],
    "accelerate_loop.py": [([], {}), (ON_TWO_RANKS, {"ACCELERATE_USE_CPU": "true"})],
}
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRACKIO_DIR": "trackio",
    "WANDB_MODE": "offline",
}
LAUNCHES = [
    pytest.param(path, *launch, id=path.stem + " in two processes" * bool(launch[0]))
    for path in EXAMPLES
    for launch in LAUNCHED.get(path.name, [([], {})])
]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.asname or alias.name) for alias in node.names)


@pytest.mark.parametrize(("path", "launcher", "settings"), LAUNCHES)
def test_an_example_runs(path, launcher, settings, tmp_path):
    for module, _ in imports(ast.parse(path.read_text(encoding="utf-8"))):
        pytest.importorskip(module)
    ran = subprocess.run(
        [sys.executable, *launcher, str(path)],
        env=os.environ | QUIET | settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\d", ran.stdout), ran.stderr  # it says what came out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_few_lines_of_edgewise_and_marks_them(path):
    text = path.read_text(encoding="utf-8")
    marked = {number for number, line in enumerate(text.splitlines(), start=1) if line.endswith(MARK)}
    assert 1 <= len(marked) <= MOST
    assert lines_of_edgewise(text) <= marked


def lines_of_edgewise(text):
    """The lines that import edgewise, name what is imported of it, or are within a call of that or of `observe`."""
    tree = ast.parse(text)
    names = {name for module, name in imports(tree) if module.split(".")[0] == "edgewise"}
    lines = set()
    for node in ast.walk(tree):
        own = isinstance(node, ast.Name) and node.id in names
        if isinstance(node, ast.Import | ast.ImportFrom):
            own = any(module.split(".")[0] == "edgewise" for module, _ in imports(node))
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            first = next(part for part in ast.walk(node.func) if not isinstance(part, ast.Attribute))
            own = called in ("observe", "metrics") or (isinstance(first, ast.Name) and first.id in names)
        if own:
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


def test_a_line_that_is_not_marked_is_seen():
    text = "import edgewise as ew\n\nw = ew.EdgeWarmup(\n    optimizer\n)\nfor x in y:\n    w.observe(x)\n    z()\n"
    assert lines_of_edgewise(text) == {1, 3, 4, 5, 7}
    assert lines_of_edgewise("from edgewise import GIAdam\na(\n    b,\n    c=GIAdam(d),\n)\n") == {1, 4}
