"""Columns: numbers or text, same names, and which ones say nothing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from ..errors import InputError
from .raw import RawTable, count, show

# The square of a feature must stay finite, or its standard deviation does not.
LARGEST = 1e150


def number(cell: str) -> float | None:
    """The number a cell holds, or None for a word.

    >>> number("1e3"), number("1_000"), number("ten")
    (1000.0, None, None)
    """
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def is_number(column: np.ndarray) -> bool:
    """Whether a column holds numbers (float64) and not text."""
    return column.dtype != object


def parse(column: np.ndarray, *, decimal_comma: bool = False, booleans: bool = True) -> np.ndarray:
    """A column of text as float64 (NaN: missing) where every cell is a number; else as it is.

    Args:
        column: ``[rows]`` objects, text or None; float64 is returned as it is.
        decimal_comma: also take ``1,5`` for a number.
        booleans: take a column of ``true`` and ``false`` (any case) for 1 and 0.

    >>> import numpy as np
    >>> parse(np.array(["1", None, "2.5"], dtype=object))
    array([1. , nan, 2.5])
    >>> parse(np.array(["1", "x"], dtype=object))
    array(['1', 'x'], dtype=object)
    """
    if is_number(column):
        return column
    cells = column.tolist()
    found = _floats(cells)
    if found is None and decimal_comma and not any(c is not None and "." in c for c in cells):
        found = _floats([None if c is None else c.replace(",", ".") for c in cells])
    if found is None and booleans:
        words = {c.lower() for c in set(cells) if c is not None}
        if words <= {"true", "false"}:
            return np.array([math.nan if c is None else float(c.lower() == "true") for c in cells])
    return column if found is None else found


def _floats(cells: list[str | None]) -> np.ndarray | None:
    try:
        values = [math.nan if c is None else float(c) for c in cells]
    except ValueError:
        return None
    if any(c is not None and "_" in c for c in cells):  # Python's 1_000 is no number in a table
        return None
    return np.array(values, dtype=np.float64)


def stray_words(column: np.ndarray) -> tuple[int, int, str] | None:
    """For a column of text that is nearly all numbers: how many words, the first one's row (1-based) and the word."""
    if is_number(column):
        return None
    words = [(i + 1, c) for i, c in enumerate(column) if c is not None and number(c) is None]
    filled = sum(c is not None for c in column)
    if not words or len(words) > 0.1 * filled:
        return None
    return len(words), words[0][0], words[0][1]


def check_finite(name: str, column: np.ndarray) -> None:
    """Refuse inf, and numbers whose square overflows, in a column of numbers."""
    if not is_number(column):
        return
    wrong = np.flatnonzero(np.abs(column) > LARGEST)
    if wrong.size:
        where = f"column {show(name)} has {column[wrong[0]]:g} in row {wrong[0] + 1}"
        raise InputError(f"{where}: expected finite numbers up to {LARGEST:g} (or an empty cell)")


def merge_same_names(raw: RawTable) -> None:
    """Keep one of several columns with one name and equal contents.

    Raises:
        InputError: where the contents differ.
    """
    first: dict[str, int] = {}
    keep = []
    for i, name in enumerate(raw.names):
        if name not in first:
            first[name] = i
            keep.append(i)
            continue
        one, other = (parse(raw.columns[k]) for k in (first[name], i))
        if not pd.Series(one).equals(pd.Series(other)):
            raise InputError(
                f"columns {first[name] + 1} and {i + 1} are both named {show(name)} and differ: rename one"
            )
        raw.warnings.append(f"columns {first[name] + 1} and {i + 1} are both named {show(name)} and equal: one kept")
    raw.names = [raw.names[i] for i in keep]
    raw.columns = [raw.columns[i] for i in keep]


def counts_rows(column: np.ndarray) -> bool:
    """Whether a column of numbers counts the rows: n, n+1, n+2 ... in order, or 0 or 1 upwards in any order."""
    if not is_number(column) or len(column) < 3 or not np.isfinite(column).all():
        return False
    low = column.min()
    if low != np.floor(low) or (np.diff(column) == 1).all():
        return bool(low == np.floor(low))
    return bool(low in (0, 1) and (np.sort(column) == low + np.arange(len(column))).all())


def uninformative(column: np.ndarray) -> str | None:
    """Why a feature says nothing: all missing, constant, or text that nearly names the row; None where it may."""
    missing = pd.isna(column)
    if missing.all():
        return "every cell is missing"
    values = column[~missing]
    distinct = len(set(values.tolist()))
    if distinct == 1 and not missing.any():
        return f"constant ({show(f'{values[0]:g}' if is_number(column) else values[0])})"
    if not is_number(column) and 2 * distinct > len(values) and distinct > 1:
        return f"text with {distinct} distinct values in {count(len(values), 'row')}"
    return None
