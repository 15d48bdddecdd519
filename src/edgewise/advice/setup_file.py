"""A function of the user's own, in a file of their own, that returns what is to be inspected."""

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from edgewise.arguments import described
from edgewise.errors import EdgewiseError
from edgewise.loss.checks import LossFunction

DEFAULT = "setup"  # the function, where the file alone is named
_PARTS = ("model", "optimizer", "loss_fn", "batches")
_EXAMPLE = (
    "def setup():\n    ...\n    return model, optimizer, loss_fn, batches  "
    "# loss_fn(model, batch) -> the mean loss; batches: a data loader or a list"
)


class SetupError(EdgewiseError, ValueError):
    """The file or its function is not what `edgewise inspect` needs, or raised."""


class Setup(NamedTuple):
    """What the function returned."""

    model: nn.Module
    optimizer: Optimizer
    loss_fn: LossFunction
    batches: Iterable[Any]


def load(target: str, *, most: int) -> Setup:
    """Run the file and call its function.

    Args:
        target: path and name, such as "train.py:setup"; the function is `setup` where none is named.
        most: batches that are held where they can be read only once.

    Raises:
        SetupError: there is no such file or function, it raises, or returns something else.
    """
    path, name = _parsed(target)
    function = getattr(_module(path), name, None)
    if function is None:
        raise SetupError(f"{path} has no function {name}(): write one.\n\n{_EXAMPLE}")
    if not callable(function):
        raise SetupError(f"{name} of {path} must be a function, got {described(function)}.\n\n{_EXAMPLE}")
    try:
        returned = function()
    except Exception as error:
        raise SetupError(raised_by(error, f"{name}() of {path}")) from error
    except SystemExit as error:
        raise SetupError(
            f"{name}() of {path} ended the program ({error!r}): let it return, without arguments of a command line."
        ) from error
    return _checked(returned, f"{name}() of {path}", most)


def raised_by(error: BaseException, what: str) -> str:
    """Return the words for an error in the user's code: what raised, what it is, and what was noted of it."""
    kind = type(error).__name__
    head = f"{what} raised {kind}: {error}" if str(error) else f"{what} raised {kind}"
    return "\n".join([head, *(f"  {note}" for note in getattr(error, "__notes__", []))])


def _parsed(target: str) -> tuple[Path, str]:
    file, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():  # no colon, or that of a drive
        file, name = target, DEFAULT
    path = Path(file).expanduser().absolute()
    if path.suffix != ".py" or not path.is_file():
        what = "is no Python file" if path.exists() else "does not exist"
        raise SetupError(
            f"{file} {what}: give the path of a Python file and the function in it, such as setup.py:setup."
        )
    return path, name


def _module(path: Path) -> Any:
    # By its own name, under which processes that load data find it too, unless another module has that.
    free = path.stem.isidentifier() and path.stem not in sys.modules
    spec = importlib.util.spec_from_file_location(path.stem if free else f"edgewise_setup_{path.stem}", path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for dataclasses and pickles of what it defines
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as python FILE does: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SetupError(raised_by(error, str(path))) from error
    except SystemExit as error:
        raise SetupError(
            f"{path} ended the program as it was imported ({error!r}): put what it runs under "
            'if __name__ == "__main__":.'
        ) from error
    return module


def _checked(returned: Any, of: str, most: int) -> Setup:
    if not isinstance(returned, tuple | list) or len(returned) != len(_PARTS):
        count = f"{len(returned)} things" if isinstance(returned, tuple | list) else described(returned)
        raise SetupError(
            f"{of} must return model, optimizer, loss_fn and batches, got {count}.\n\n{_EXAMPLE}"
        )
    model, optimizer, loss_fn, batches = returned
    if isinstance(
        batches, Iterator
    ):  # nobody trains on after this, and a trial reads them from the start again
        try:
            batches = list(islice(batches, most))
        except Exception as error:
            raise SetupError(raised_by(error, f"batches that {of} returned")) from error
    return Setup(model, optimizer, loss_fn, batches)
