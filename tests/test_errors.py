"""The exceptions and the words they use.

Ladder: closed form (a table of what is allowed). Cannot see: whether a message fits where it is raised; the tables
of those who raise it do.
"""

import pytest

from edgewise import errors
from edgewise.arguments import UnknownNameError
from edgewise.errors import EdgewiseError, LossError, PreconditionerError
from edgewise.lab import errors as lab_errors
from edgewise.lab.errors import DamagedError, MissingLibraryError, StoreError
from edgewise.status import Status


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (LossError, ValueError),
        (UnknownNameError, ValueError),
        (PreconditionerError, TypeError),
        (StoreError, RuntimeError),
        (DamagedError, StoreError),
        (MissingLibraryError, ModuleNotFoundError),
    ],
)
def test_an_own_error_is_caught_by_either_name(error, builtin):
    assert issubclass(error, EdgewiseError)
    assert issubclass(error, builtin)


def test_each_status_explains_itself_in_its_own_words():
    words = [status.value for status in Status]
    assert len(set(words)) == len(Status.__members__)  # equal words would make one an alias of another
    assert all(len(text.split()) >= 4 for text in words)


@pytest.mark.parametrize("module", [errors, lab_errors])
def test_every_exception_is_documented(module):
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert value.__doc__, name
