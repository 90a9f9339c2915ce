"""Columns with a part other than a feature: groups, times, weights."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from ..errors import InputError
from .columns import is_number, number, parse
from .raw import show
from .task import check_present


def read_groups(column: np.ndarray, name: str, comma: bool = False) -> np.ndarray:
    """``[rows]`` int64 codes, equal where the cells (numbers or text) are."""
    column = parse(column, decimal_comma=comma, booleans=False)
    check_present(column, f"the group {show(name)}", "every row needs one")
    return np.asarray(pd.factorize(column)[0], dtype=np.int64)


def read_times(column: np.ndarray, name: str, comma: bool = False) -> np.ndarray:
    """``[rows]`` float64 ranks 0, 1, 2 ... of numbers or dates in time order, equal where the times are.

    Raises:
        InputError: for missing cells, and words that are no date.
    """
    column = parse(column, decimal_comma=comma, booleans=False)
    check_present(column, f"the time {show(name)}", "every row needs one")
    values: np.ndarray = column if is_number(column) else _dates(column, name)
    return np.asarray(pd.factorize(values, sort=True)[0], dtype=np.float64)


def _dates(column: np.ndarray, name: str) -> np.ndarray:
    first_wrong = 0
    for dayfirst in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # pandas warns of formats it must guess; what it can't read is refused below
            dates = pd.to_datetime(pd.Series(column, dtype=object), errors="coerce", utc=True, dayfirst=dayfirst)
        wrong = np.flatnonzero(dates.isna().to_numpy())
        if wrong.size == 0:
            return dates.rank(method="dense").to_numpy()
        first_wrong = max(first_wrong, int(wrong[0]))
    raise InputError(
        f"the time {show(name)} has {show(column[first_wrong])} in row {first_wrong + 1}: expected numbers or dates "
        "of one format, such as 2024-01-31"
    )


def read_weights(column: np.ndarray, name: str, comma: bool = False) -> np.ndarray:
    """``[rows]`` float64, finite, none negative, not all zero."""
    column = parse(column, decimal_comma=comma, booleans=False)
    what = f"the weight {show(name)}"
    check_present(column, what, "every row needs one")
    if not is_number(column):
        row, word = next((i + 1, c) for i, c in enumerate(column) if number(c) is None)
        raise InputError(f"{what} has {show(word)} in row {row}: expected numbers")
    wrong = np.flatnonzero(~(np.isfinite(column) & (column >= 0)))
    if wrong.size:
        raise InputError(f"{what} is {column[wrong[0]]:g} in row {wrong[0] + 1}: expected finite numbers >= 0")
    if not column.any():
        raise InputError(f"{what} is 0 in every row: expected some above 0")
    return column.astype(np.float64)
