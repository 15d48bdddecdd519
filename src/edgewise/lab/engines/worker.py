"""What a process that trains does, whoever started it."""

import contextlib
import importlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgewise.lab import plugins
from edgewise.lab.configs import RunConfig
from edgewise.lab.errors import MissingLibraryError, RecipeError, WorkerError
from edgewise.lab.training import RunResult, train

RETRIES = 3  # of a run whose worker dies, on a cluster


def library(module: str, engine: str) -> Any:
    """Return the module that an engine needs, which is in the extra of the engine's name.

    Raises:
        MissingLibraryError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"engine {engine!r} needs {module} ({error}): pip install 'edgewise[{engine}]', or choose engine 'local'."
        ) from error


def prepare(recipe_file: Path | None) -> None:
    """Train with one thread from now on, and know the data and networks of the recipe.

    Raises:
        RecipeError: the recipe raises here, though it did not where the sweep began.
    """
    torch.set_num_threads(1)
    if recipe_file is not None:
        try:
            plugins.execute(recipe_file)
        except (Exception, SystemExit) as error:
            said = str(error) if isinstance(error, RecipeError) else f"{recipe_file} raised {_told(error)}."
            raise RecipeError(
                f"{said} It did so in a process that trains, not where the sweep began: a recipe must run in both."
            ) from error


def trained(config: RunConfig, on_step: Callable[[int], None] = lambda step: None) -> RunResult:
    """Train; what is raised can be sent to the process that waits for the result."""
    try:
        return train(config, on_step)
    except (Exception, SystemExit) as error:
        exception = as_exception(error)
        if exception is error and _can_be_sent(error):
            raise
        raise _told(error) from error


def as_exception(error: BaseException) -> Exception:
    """Return what a run raised, where it would end the process as one that does not."""
    if isinstance(error, Exception):
        return error
    told = _told(error)
    told.__cause__ = error
    return told


def _told(error: BaseException) -> WorkerError:
    return WorkerError(f"{type(error).__name__}: {error}")


def _can_be_sent(error: BaseException) -> bool:
    """Whether an error survives pickling; one with arguments of its own often does not."""
    with contextlib.suppress(Exception):
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    return False
