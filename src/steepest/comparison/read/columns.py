"""Columns: same names, and which ones say nothing."""

from __future__ import annotations

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from .raw import Column, RawTable, Text, missing_cells, true
from .wording import count, show

pc = late("pyarrow.compute")

# The square of a feature must stay finite, or its standard deviation does not.
LARGEST = 1e150
_LOOK = 1000


def check_finite(name: str, column: Column) -> None:
    """Refuse inf, and numbers whose square overflows, in a column of numbers."""
    if isinstance(column, Text) or column.dtype.kind != "f" or not len(column):
        return
    if max(abs(float(np.fmin.reduce(column))), abs(float(np.fmax.reduce(column)))) <= LARGEST:
        return
    wrong = np.flatnonzero(np.abs(column) > LARGEST)
    if wrong.size:
        where = f"column {show(name)} has {column[wrong[0]]:g} in row {wrong[0] + 1}"
        raise InputError(f"{where}: expected finite numbers of at most {LARGEST:g}")


def merge_same_names(raw: RawTable) -> None:
    """Keep one of several columns with one name and equal cells.

    Raises:
        InputError: two columns have one name and differ.
    """
    if len(set(raw.names)) == len(raw.names):
        return
    first: dict[str, int] = {}
    keep: list[int] = []
    for i, name in enumerate(raw.names):
        if name not in first:
            first[name] = i
            keep.append(i)
            continue
        if not _equal(raw.columns[first[name]], raw.columns[i]):
            raise InputError(
                f"columns {first[name] + 1} and {i + 1} are both named {show(name)} and differ: rename one"
            )
        raw.warnings.append(f"columns {first[name] + 1} and {i + 1} are both named {show(name)} and equal: one kept")
    raw.names = [raw.names[i] for i in keep]
    raw.columns = [raw.columns[i] for i in keep]


def drop_empty_rows(raw: RawTable) -> np.ndarray:
    """Leave out the rows of a file in which every cell is empty, as spreadsheets write below a table.

    Returns:
        The positions of those that remain.
    """
    if raw.arrays:
        return np.arange(raw.rows)
    empty = missing_cells(raw.columns[0])
    for column in raw.columns[1:]:
        if not empty.any():
            break
        empty = empty & missing_cells(column)
    if empty.all():
        empty = np.zeros_like(empty)
    if empty.any():
        raw.columns = [column[~empty] for column in raw.columns]
        raw.decisions.append(f"left out: {count(int(empty.sum()), 'row')} of empty cells")
    return np.flatnonzero(~empty)


def _equal(first: Column, second: Column) -> bool:
    if isinstance(first, Text) and isinstance(second, Text):
        same = pc.or_kleene(
            pc.equal(first.cells, second.cells), pc.and_(pc.is_null(first.cells), pc.is_null(second.cells))
        )
        return bool(true(same).all())
    if isinstance(first, Text) or isinstance(second, Text):
        return False
    return bool(((first == second) | (missing_cells(first) & missing_cells(second))).all())


def counts_rows(column: Column) -> bool:
    """Whether a column of numbers counts the rows: n, n+1, n+2 ... in order, or 0 or 1 upwards in any order."""
    if isinstance(column, Text) or column.dtype.kind != "f" or len(column) < 3:
        return False
    if column[0] != np.floor(column[0]) or column[1] != np.floor(column[1]):
        return False
    low, high = float(column.min()), float(column.max())  # NaN where any is
    if not np.isfinite([low, high]).all() or low != np.floor(low) or high - low != len(column) - 1:
        return False
    if (np.diff(column) == 1).all():
        return True
    return bool(low in (0, 1) and (np.sort(column) == low + np.arange(len(column))).all())


def uninformative(column: Column) -> str | None:
    """Why a feature says nothing: all missing, constant, or words that name the row; None where it may."""
    if not isinstance(column, Text) and (column[:_LOOK] != column[:1]).any() and not missing_cells(column[:1])[0]:
        return None  # a long column need not be looked at whole
    missing = missing_cells(column)
    if missing.all():
        return "every cell is missing"
    if isinstance(column, Text):
        if not column.many and len(column.words) == 1 and not missing.any():
            return f"constant ({show(column.words[0].as_py())})"
        filled = len(column) - int(missing.sum())
        if filled > 1 and len(column.words) == filled and not _has_blanks(column):
            return f"another word in each of {count(filled, 'row')}: it names the row"
        return None
    if not missing.any() and (column == column[0]).all():
        value = f"{column[0]:g}" if column.dtype.kind == "f" else str(column[0])[:10]
        return f"constant ({show(value)})"
    return None


def _has_blanks(text: Text) -> bool:
    """Whether most words are several, as names and sentences are."""
    return bool(2 * true(pc.match_substring_regex(text.words, r"\s")).sum() > len(text.words))
