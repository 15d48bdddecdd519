"""The argument checks and the words they use.

Ladder: closed form (a table of what is allowed). Cannot see: whether callers use the checks; their own
tables do.
"""

import math

import numpy as np
import pytest

from edgewise import errors
from edgewise.arguments import (
    UnknownNameError,
    known_name,
    nonnegative_count,
    nonnegative_number,
    positive_count,
    positive_number,
)
from edgewise.errors import (
    DamagedError,
    EdgewiseError,
    LossError,
    MissingLibraryError,
    PreconditionerError,
    Status,
    StoreError,
)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3)])
def test_a_positive_number_comes_back_as_a_float(value):
    number = positive_number("lr", value)
    assert type(number) is float
    assert number == value


def test_zero_is_nonnegative_and_not_positive():
    assert nonnegative_number("lr", 0) == 0.0
    with pytest.raises(ValueError, match=r"lr must be a finite number greater than 0, got 0\."):
        positive_number("lr", 0)


def test_a_count_comes_back_as_an_int():
    count = positive_count("steps", np.int32(7))
    assert type(count) is int
    assert count == 7
    assert nonnegative_count("seed", 0) == 0


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (positive_number, -1.0, ValueError, r"x must be a finite number greater than 0, got -1\.0"),
        (positive_number, math.nan, ValueError, "finite"),
        (positive_number, math.inf, ValueError, "finite"),
        (positive_number, True, TypeError, "x must be a number, got True of type bool"),
        (positive_number, "1", TypeError, "got '1' of type str"),
        (positive_number, None, TypeError, "got None of type NoneType"),
        (nonnegative_number, -1e-9, ValueError, "0 or greater, got -1e-09"),
        (nonnegative_number, math.nan, ValueError, "finite"),
        (nonnegative_number, False, TypeError, "of type bool"),
        (positive_count, 0, ValueError, "x must be 1 or greater, got 0"),
        (positive_count, -3, ValueError, "got -3"),
        (positive_count, 2.0, TypeError, r"whole number, got 2\.0 of type float"),
        (positive_count, True, TypeError, "got True of type bool"),
        (nonnegative_count, -1, ValueError, "x must be 0 or greater, got -1"),
        (nonnegative_count, False, TypeError, "got False of type bool"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(check, value, error, message):
    with pytest.raises(error, match=message):
        check("x", value)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"unknown figure 'fig11'; known: fig1, fig2\. Did you mean 'fig1'\?"
    ):
        known_name("figure", "fig11", ["fig2", "fig1"])
    with pytest.raises(UnknownNameError, match=r"known: fig1\.$"):
        known_name("figure", "zzz", ["fig1"])
    assert known_name("figure", "fig1", iter(["fig1"])) == "fig1"


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


def test_every_exception_is_documented():
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception):
            assert value.__doc__, name
