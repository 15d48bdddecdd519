"""The exceptions of the laboratory."""

from edgewise.errors import EdgewiseError


class DataError(EdgewiseError, RuntimeError):
    """A data set is not where it should be, or not what it should be."""


class RecipeError(EdgewiseError, ValueError):
    """A recipe file does not say what to run."""


class WorkerError(EdgewiseError, RuntimeError):
    """A process that trains is gone."""


class StoreError(EdgewiseError, RuntimeError):
    """A results folder cannot be used as asked."""


class DamagedError(StoreError):
    """A stored file is not what was written: it is missing, cut off or changed."""


class MissingLibraryError(EdgewiseError, ModuleNotFoundError):
    """What was asked for needs a library that is not installed."""
