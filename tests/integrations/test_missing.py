"""A framework that is not installed. Oracle: the extra of that name in pyproject.toml."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

import edgewise

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    path.stem: (path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8")
    for path in sorted((Path(edgewise.__file__).parent / "integrations").glob("[!_]*"))
    if "_" not in path.stem
}
IMPORTING = [
    name for name, text in SOURCES.items() if re.search(rf"^ *(from|import) {name}\b", text, re.MULTILINE)
]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


@pytest.mark.parametrize("name", IMPORTING)
def test_a_framework_that_is_missing_is_an_error_that_names_the_extra(name, monkeypatch):
    for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"edgewise.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'edgewise\[{name}\]'"):
        importlib.import_module(f"edgewise.integrations.{name}")


def test_every_integration_has_an_extra():
    for name in SOURCES:
        assert any(line.startswith(name) for line in EXTRAS[name]), name


def test_make_integrations_installs_all_extras_at_their_pinned_versions():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name in {*SOURCES, "accelerate", "trackers", "trl"}:
        assert f",{name}" in makefile, name
        for line in EXTRAS[name]:
            assert f"\n{line.partition('>')[0]}==" in pinned, line
