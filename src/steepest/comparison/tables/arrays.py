"""From arrays, lists, frames and series to named columns."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from ..errors import InputError
from .raw import MISSING, RawTable, count, show


def from_arrays(X: object, y: object, target_name: str | None) -> RawTable:
    """Features ``[rows, columns]`` and a target ``[rows]`` as a raw table whose last column is the target.

    Raises:
        InputError: for features that are not 2-D, complex or object arrays, or lengths that differ.
    """
    if isinstance(X, pd.DataFrame):
        names = [str(c) for c in X.columns]
        columns = [column_of(X.iloc[:, i], f"X column {show(names[i])}") for i in range(X.shape[1])]
        rows, given = len(X), True
    else:
        array = _array(X, "X")
        if array.ndim != 2:
            raise InputError(f"X: expected 2 dimensions [rows, columns], got {array.ndim} of shape {array.shape}")
        names = [f"c{i + 1}" for i in range(array.shape[1])]
        columns = [column_of(array[:, i], f"X column {i + 1}") for i in range(array.shape[1])]
        rows, given = len(array), False
    if not columns:
        raise InputError("X: expected at least one column, got none")
    if rows == 0:
        raise InputError("X: expected at least one row, got none")
    target = y if isinstance(y, pd.Series) else _array(y, "y", objects=True)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        raise InputError(f"y: expected 1 dimension [rows], got {target.ndim} of shape {target.shape}")
    if len(target) != rows:
        raise InputError(f"X has {count(rows, 'row')} and y has {len(target)}: expected one length")
    series_name = getattr(y, "name", None)
    target_name = target_name or (str(series_name) if series_name is not None else "target")
    while target_name in names:
        target_name += "_"
    names, columns = [*names, target_name], [*columns, column_of(target, "y", booleans=False)]
    decisions = [f"read: {count(rows, 'row')}, {count(len(names) - 1, 'feature')} and a target from arrays"]
    return RawTable(names, columns, given, _hash(names, columns), arrays=True, decisions=decisions)


def from_frame(frame: pd.DataFrame, name: str) -> RawTable:
    """A frame whose last column is the target, as a raw table."""
    raw = from_arrays(frame.iloc[:, :-1], frame.iloc[:, -1], None)
    raw.decisions = [f"read: {count(raw.rows, 'row')}, {count(len(raw.names), 'column')} of the built-in {name}"]
    raw.arrays = False
    return raw


def column_of(values: object, what: str, booleans: bool = True) -> np.ndarray:
    """One column as float64, or as objects (text, None for missing).

    Args:
        values: ``[rows]`` array or series.
        what: how an error names it.
        booleans: keep True and False as 1 and 0; else as text.
    """
    series = pd.Series(values)
    kind = series.dtype
    if pd.api.types.is_complex_dtype(kind):
        raise InputError(f"{what}: expected real numbers or text, got complex numbers")
    if pd.api.types.is_bool_dtype(kind) and booleans:
        return series.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind):
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    items = series.astype(object).tolist()
    out = np.empty(len(items), dtype=object)
    out[:] = [_text(item, what, i) for i, item in enumerate(items)]
    return out


def _text(item: object, what: str, row: int) -> str | None:
    if isinstance(item, str):
        text = item.strip()
        return None if text in MISSING else text
    if item is None or item is pd.NA or item is pd.NaT or (isinstance(item, float) and np.isnan(item)):
        return None
    if isinstance(item, (complex, np.complexfloating)) or not (np.isscalar(item) or hasattr(item, "isoformat")):
        raise InputError(f"{what}: expected numbers or text, got {type(item).__name__} in row {row + 1}")
    return str(item)


def _array(values: object, what: str, objects: bool = False) -> np.ndarray:
    if hasattr(values, "toarray"):
        raise InputError(f"{what}: expected a dense array, got a sparse one: pass {what}.toarray()")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{what}: expected an array of numbers or text: {str(error).splitlines()[0]}") from None
    if array.dtype == object and not objects:
        raise InputError(
            f"{what}: expected an array of numbers or text, got objects; pass a DataFrame for mixed columns"
        )
    if array.dtype.kind not in "biufcUOMm":
        raise InputError(f"{what}: expected an array of numbers or text, got {array.dtype}")
    return array


def _hash(names: list[str], columns: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, column in zip(names, columns):
        digest.update(repr(name).encode())
        digest.update(repr(column.tolist()).encode() if column.dtype == object else column.tobytes())
    return digest.hexdigest()
