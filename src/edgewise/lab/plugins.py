"""Networks and data sets of one's own, from a recipe file, known to configs by name. No torch."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgewise.lab.errors import RecipeError

MakeData = Callable[..., Any]  # DataConfig → edgewise.lab.data.Dataset
MakeModel = Callable[..., Any]  # ModelConfig, Dataset → torch.nn.Module

DATA: dict[str, MakeData] = {}
MODELS: dict[str, MakeModel] = {}


def register_data(name: str) -> Callable[[MakeData], MakeData]:
    """Return a decorator: `DataConfig(name=...)` then means what the function returns for that config.

    The function returns an `edgewise.lab.data.Dataset`. The name stands for it in run ids: give another name to what
    gives other samples.
    """

    def register(make: MakeData) -> MakeData:
        DATA[name] = make
        return make

    return register


def register_model(name: str) -> Callable[[MakeModel], MakeModel]:
    """Return a decorator: `ModelConfig(name=...)` then means the module that the function makes for config and data.

    Any data go with it. torch's generator is seeded when it is called. The name stands for the network in run ids:
    give another name to another network.
    """

    def register(make: MakeModel) -> MakeModel:
        MODELS[name] = make
        return make

    return register


def execute(path: Path) -> ModuleType:
    """Run the file, which may register data and networks, and return it as a module.

    Raises:
        RecipeError: there is no such file, or it raises.
    """
    spec = importlib.util.spec_from_file_location(f"edgewise_recipe_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        what = "is no Python file" if path.exists() else "does not exist"
        raise RecipeError(f"{path} {what}: give the path of a recipe, such as recipe.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for dataclasses and pickles of what it defines
    called(path, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    return module


def called(path: Path, function: Callable[[], Any]) -> Any:
    """Return what the function of the file returns.

    Raises:
        RecipeError: it raises; says where in the file.
    """
    try:
        return function()
    except Exception as error:
        line = _line_in(path, error)
        raise RecipeError(f"{path}, line {line}, raised {type(error).__name__}: {error}") from error


def _line_in(path: Path, error: BaseException) -> int:
    """Return the last line of the file that the error passed."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    line, trace = 0, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
