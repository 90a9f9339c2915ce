"""What every source becomes first: named columns of numbers or text, and the helpers that speak of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError, nearest

MISSING = frozenset({"", "?", "NA", "NaN", "nan"})


@dataclass
class RawTable:
    """Columns as read, before any is dropped.

    Args:
        names: a name a column; ``c1 .. cN`` without a header.
        columns: ``[rows]`` each: float64 with NaN for missing, or objects (text, None for missing).
        header: whether the names were given.
        sha256: of the data read.
        decimal_comma: whether ``1,5`` may be a number (files separated by semicolons).
        arrays: whether it came from arrays in memory.
        decisions, warnings: a line each.
    """

    names: list[str]
    columns: list[np.ndarray]
    header: bool
    sha256: str
    decimal_comma: bool = False
    arrays: bool = False
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.columns[0])

    def find(self, name: object, option: str) -> int:
        """The position of a column by name, or by its number as text (1 is the first, -1 the last)."""
        text = str(name)
        if text in self.names:
            return self.names.index(text)
        try:
            number = int(text)
        except ValueError:
            number = 0
        if 1 <= number <= len(self.names):
            return number - 1
        if -len(self.names) <= number <= -1:
            return len(self.names) + number
        hint = nearest(text, self.names) or f"; the columns are {listing(self.names)}"
        raise InputError(f"{option}: no column {show(text)}{hint}")


def show(value: object, limit: int = 60) -> str:
    """A value as one short line.

    >>> show("two\\nlines")
    "'two\\\\nlines'"
    """
    text = repr(str(value))
    return text if len(text) <= limit else text[: limit - 4] + "...'"


def listing(values: list[str], limit: int = 8) -> str:
    """Some names as one line.

    >>> listing(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    text = ", ".join(show(v) for v in values[:limit])
    return text if len(values) <= limit else f"{text} and {len(values) - limit} more"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``2 rows``.

    >>> count(1, "row"), count(2, "class", "classes")
    ('1 row', '2 classes')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
