"""A framework that is not installed. Oracle: the extra of that name in pyproject.toml."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

import edgewise

ROOT = Path(__file__).resolve().parents[2]
INTEGRATIONS = sorted(
    path.stem
    for path in (Path(edgewise.__file__).parent / "integrations").glob("[!_]*")
    if "_" not in path.stem
)


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_a_framework_that_is_missing_is_an_error_that_names_the_extra(name, monkeypatch):
    for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, f"edgewise.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'edgewise\[{name}\]'"):
        importlib.import_module(f"edgewise.integrations.{name}")


def test_every_integration_has_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in INTEGRATIONS:
        assert any(line.startswith(name) for line in extras[name]), name


def test_all_extras_of_integrations_are_installed_together():
    """What `make integrations` installs; each with its exact version."""
    makefile = (ROOT / "Makefile").read_text()
    pinned = (ROOT / "constraints.txt").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in {*INTEGRATIONS, "accelerate", "trackers", "trl"}:
        assert f",{name}" in makefile, name
        for line in extras[name]:
            assert f"\n{line.partition('>')[0]}==" in pinned, line
