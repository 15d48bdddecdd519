"""The floors of the house (docs/design.md, whose table this reads): what may import what.

Ladder: the source itself, parsed; a fresh interpreter for what `import edgewise` loads. Cannot see: imports
by name at run time (importlib), which the house does not use.
"""

import ast
import functools
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import edgewise

SOURCE = Path(edgewise.__file__).parent
DESIGN = (Path(__file__).resolve().parents[1] / "docs" / "design.md").read_text(encoding="utf-8")

FLOORS = {room: int(floor) for floor, room in re.findall(r"^\| (\d) \| `(\w+)` \|", DESIGN, re.MULTILINE)}
ALONE = {3, 4, 5}  # floors on which nobody imports a neighbour
LIBRARY = 6  # the highest floor below the laboratory
FORBIDDEN = {"warmup": {"curvature"}}  # beyond the floors

# Inside lab, two staircases that meet in `sweep`. The light one, which reads results, needs no torch.
LIGHT = {
    "catalogue": 0,
    "errors": 0,
    "plugins": 1,
    "results.files": 1,
    "results.provenance": 1,
    "configs": 2,
    "results.lock": 2,
    "results.run_folder": 3,
    "results.failures": 4,
    "results.progress": 4,
    "results.index": 4,
    "results.runs": 4,
    "results.mending": 5,
    "results.phase_diagram": 5,
    "results.gains": 6,
    "results.store": 6,
    "results.documents": 7,
    "ladders": 8,
    "recipes": 9,
    "report.layouts": 10,
    "report.ticks": 0,
    "report.colors": 3,
    "report.panels": 11,
    "report.figures": 12,
    "report.alternatives": 13,
    "report.presentation": 13,
    "report.plots": 13,
    "report.interactive": 13,
    "report.inspection_plots": 14,
    "report.interactive_gains": 14,
    "report.self_contained": 13,
    "report.downloads": 14,
    "report.cells": 14,
    "report.tables": 14,
    "report.inspection": 15,
    "report.page": 15,
}
HEAVY = {
    "data": 1,
    "models": 2,
    "training": 3,
    "engines": 4,
}
WITHOUT_TORCH = ["warmup.schedules", *(f"lab.{room}" for room in LIGHT)]


def module_name(path):
    """`curvature/__init__.py` is `curvature`; the package itself is the empty name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def belongs(module, room):
    return module == room or module.startswith(room + ".")


@functools.cache
def imported(module):
    """Full names of all that a module imports, wherever in it the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{MODULES[module]}: write the import in full, not relative"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("edgewise.") in MODULES
                names.add(full if is_module else str(node.module))
    return names


def own_imports(module):
    """The edgewise modules that a module imports; the empty name is the package itself."""
    names = {n for n in imported(module) if belongs(n, "edgewise")}
    return {n.removeprefix("edgewise").removeprefix(".") for n in names}


def room_of(module):
    """The folder or file at the root of the package that a module stands in."""
    room = module.partition(".")[0]
    if room not in FLOORS:
        pytest.fail(f"{module or 'edgewise'} stands on no floor: give its room a line in docs/design.md.")
    return room


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_a_module_imports_from_lower_floors(module):
    room = room_of(module)
    for other in own_imports(module):
        if not other:
            assert FLOORS[room] > LIBRARY, f"{module} imports the package that re-exports it"
            continue
        if room_of(other) == room:
            continue
        floor, below = FLOORS[room], FLOORS[room_of(other)]
        assert below <= floor, f"{module} (floor {floor}) imports {other} (floor {below})"
        if below == floor:
            assert floor not in ALONE, f"{module} imports its neighbour {other} on floor {floor}"
        assert room_of(other) not in FORBIDDEN.get(room, ()), f"{room} never uses {other}"


def test_no_module_imports_itself_through_others():
    graph = {module: own_imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_the_plan_has_a_line_for_each_room_and_no_other():
    assert set(FLOORS) == {module.partition(".")[0] for module in MODULES if module}
    rooms = {module.split(".")[1] for module in MODULES if module.startswith("lab.")}
    assert set(re.findall(r"`lab\.(\w+)`", DESIGN)) == rooms
    entries = [e for e in SOURCE.iterdir() if e.name not in ("__pycache__", "__init__.py", "py.typed")]
    assert len(entries) <= 19


def test_the_library_never_imports_the_lab():
    library = [m for m in MODULES if m == "" or FLOORS[room_of(m)] <= LIBRARY]
    assert "critical" in library
    for module in library:
        assert not any(belongs(other, "lab") for other in own_imports(module)), module


def test_the_library_never_imports_an_integration():
    for module in MODULES:
        if not belongs(module, "integrations"):
            assert not any(belongs(other, "integrations") for other in own_imports(module)), module


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("integrations.")])
def test_an_integration_imports_its_framework_alone(module):
    framework = module.split(".")[1].partition("_")[0]
    known = {framework, "edgewise", "torch", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(module)} <= known


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_files_and_classes_have_one_subject(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            assert len(methods) <= 20, node.name


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_light_module_does_without_torch(module):
    for name in [m for m in MODULES if belongs(m, module)]:
        assert not any(belongs(other, "torch") for other in imported(name)), name


@pytest.mark.parametrize("room", LIGHT)
def test_reading_results_needs_no_training(room):
    for module in [m for m in MODULES if belongs(m, f"lab.{room}")]:
        for other in own_imports(module):
            assert not any(belongs(other, f"lab.{heavy}") for heavy in HEAVY), f"{module} imports {other}"


@pytest.mark.parametrize("stairs", [LIGHT, HEAVY], ids=["light", "heavy"])
def test_the_stairs_of_the_lab_go_down(stairs):
    """Report → results → configs; engines → training → models, data."""
    for room, floor in stairs.items():
        for module in [m for m in MODULES if belongs(m, f"lab.{room}")]:
            for other, below in stairs.items():
                if other != room and any(belongs(name, f"lab.{other}") for name in own_imports(module)):
                    assert below < floor, f"{module} imports lab.{other}"


@pytest.mark.parametrize("room", ["lab.results", "lab.report"])
def test_every_module_that_reads_results_has_a_stair(room):
    for module in [m for m in MODULES if belongs(m, room) and m != room]:
        assert module.removeprefix("lab.") in LIGHT, module


def test_importing_the_library_loads_neither_lab_nor_plots():
    code = (
        "import sys, edgewise; "
        "print([m for m in sys.modules if m.startswith('edgewise.lab') "
        "or m.split('.')[0] in ('matplotlib', 'plotly', 'rich', 'tyro', 'sklearn', 'datasets', 'pyarrow', "
        "'accelerate', 'lightning', 'timm', 'transformers', 'trl') "
        "or m == 'torch._dynamo'])"  # which takes seconds
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_public_names_are_few_and_documented():
    assert len(edgewise.__all__) == len(set(edgewise.__all__)) <= 28
    for name in edgewise.__all__:
        value = getattr(edgewise, name)
        assert value.__doc__, name
        assert value.__module__.startswith("edgewise."), name
    assert dir(edgewise) == sorted(edgewise.__all__)


def test_every_module_says_what_it_is_for():
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module
