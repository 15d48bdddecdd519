"""Rows of measurements in a csv file, appended as they are made, so that an interrupted measurement goes on."""

import csv
import fcntl
from dataclasses import asdict, fields
from pathlib import Path
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Stored(Generic[Row]):
    """The rows in a file, each a dataclass of strings and numbers; several processes may append to it."""

    def __init__(self, kind: type[Row], path: Path) -> None:
        self._kind, self._path = kind, path
        self._types = {field.name: field.type for field in fields(kind)}

    def read(self) -> list[Row]:
        """Return all rows, none if there is no file."""
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return [
                self._kind(**{name: parse(row[name]) for name, parse in self._types.items()})
                for row in csv.DictReader(file)
            ]

    def append(self, row: Row) -> None:
        """Write one more row."""
        with self._path.open("a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed: only one process writes the header
            writer = csv.DictWriter(file, list(self._types), lineterminator="\n")
            if self._path.stat().st_size == 0:
                writer.writeheader()
            writer.writerow(asdict(row))
