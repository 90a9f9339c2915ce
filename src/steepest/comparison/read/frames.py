"""From arrays, lists, frames and series to named columns."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from .raw import Column, RawTable, Text
from .wording import count, show

pd = late("pandas")
pa = late("pyarrow")

_EXACT = 2**53


def from_arrays(X: object, y: object, target_name: str | None) -> RawTable:
    """Features ``[rows, columns]`` and a target ``[rows]`` as a raw table whose last column is the target.

    Raises:
        InputError: for features that are not 2-D, complex or object arrays, lengths that differ, and rows whose labels
            are those of ``y`` in another order.
    """
    names, columns, given = feature_columns(X)
    if not columns:
        raise InputError("X: expected at least one column, got none")
    rows = len(columns[0])
    if rows == 0:
        raise InputError("X: expected at least one row, got none")
    if isinstance(y, pd.DataFrame) and y.shape[1] == 1:
        y = y.iloc[:, 0]
    target = y if isinstance(y, pd.Series) else _array(y, "y", objects=True)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim != 1:
        raise InputError(f"y: expected 1 dimension [rows], got {target.ndim} of shape {target.shape}")
    if len(target) != rows:
        raise InputError(f"X has {count(rows, 'row')} and y has {len(target)}: expected one length")
    warnings = check_labels(X, y, "X", "y")
    series_name = target.name if isinstance(target, pd.Series) else None
    target_name = target_name or (str(series_name) if series_name is not None else "target")
    while target_name in names:
        target_name += "_"
    names, columns = [*names, target_name], [*columns, column_of(target, "y")]
    decisions = [f"read: {count(rows, 'row')}, {count(len(names) - 1, 'feature')} and a target from arrays"]
    raw = RawTable(names, columns, given, _hash(names, columns), arrays=True, decisions=decisions, warnings=warnings)
    raw.dtypes[target_name] = dtype_name(target)
    return raw


def from_frame(frame: pd.DataFrame, name: str) -> RawTable:
    """A frame, target among its columns, as a raw table."""
    names, columns, _ = feature_columns(frame, "the frame")
    if not columns or not len(frame):
        raise InputError(f"{name}: expected at least one row and one column, got shape {frame.shape}")
    decisions = [f"read: {count(len(frame), 'row')}, {count(len(names), 'column')} of {name}"]
    raw = RawTable(names, columns, True, _hash(names, columns), arrays=True, decisions=decisions)
    raw.dtypes = {name: dtype_name(frame.iloc[:, i]) for i, name in enumerate(names)}
    return raw


def dtype_name(values: Any) -> str:
    """A dtype as a word, of a categorical with that of its categories, from which ``label_index`` makes it again.

    >>> dtype_name(pd.Series([1, 2]).astype("category")), dtype_name(np.array([True]))
    ('category:int64', 'bool')
    """
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return f"category:{dtype_name(kind.categories)}"
    return "str" if pd.api.types.is_string_dtype(kind) and not pd.api.types.is_object_dtype(kind) else str(kind)


def feature_columns(X: object, what: str = "X") -> tuple[list[str], list[Column], bool]:
    """Names and columns of a frame or of an array ``[rows, columns]``, and whether the names were given.

    Raises:
        InputError: for other than 2 dimensions, complex numbers, arrays of objects.
    """
    if isinstance(X, pd.DataFrame):
        names = [str(c) for c in X.columns]
        return names, [column_of(X.iloc[:, i], f"{what} column {show(names[i])}") for i in range(X.shape[1])], True
    array = _array(X, what)
    if array.ndim != 2:
        raise InputError(f"{what}: expected 2 dimensions [rows, columns], got {array.ndim} of shape {array.shape}")
    names = [f"c{i + 1}" for i in range(array.shape[1])]
    return names, [column_of(array[:, i], f"{what} column {i + 1}") for i in range(array.shape[1])], False


def check_labels(X: object, y: object, first: str, second: str) -> list[str]:
    """Refuse rows that carry the same labels in another order; warn where the labels differ otherwise.

    Raises:
        InputError: joined by position, ``X`` and ``y`` would be mixed up.
    """
    if not isinstance(X, (pd.DataFrame, pd.Series)) or not isinstance(y, (pd.DataFrame, pd.Series)):
        return []
    if X.index.equals(y.index) or len(X) != len(y):
        return []
    try:
        shared = int(X.index.isin(y.index).sum())
    except TypeError:
        shared = 0
    if shared == len(X):
        row = int(np.flatnonzero(np.asarray(X.index != y.index))[0]) + 1
        raise InputError(
            f"{first} and {second} have the same row labels in another order (first: row {row}): align them, as with "
            f"{second} = {second}.loc[{first}.index]"
        )
    if shared and not (isinstance(X.index, pd.RangeIndex) or isinstance(y.index, pd.RangeIndex)):
        return [f"{first} and {second} share {shared} of {len(X)} row labels: they are joined by position"]
    return []


def column_of(values: object, what: str) -> Column:
    """One column, in the dtype in which it came where that says what it is: numbers, booleans, dates; else text.

    Args:
        values: ``[rows]`` array or series.
        what: how an error names it.

    Raises:
        InputError: for complex numbers, and objects that are neither numbers nor text.
    """
    series: pd.Series = pd.Series(values)
    kind = series.dtype
    if pd.api.types.is_complex_dtype(kind):
        raise InputError(f"{what}: expected real numbers or text, got complex numbers")
    if isinstance(kind, pd.CategoricalDtype):
        words = _texts(series.cat.categories.to_numpy(), what)
        return Text.from_codes(series.cat.codes.to_numpy(), words, declared=True)
    if isinstance(kind, pd.PeriodDtype):
        series, kind = series.dt.to_timestamp(), np.dtype("M8[ns]")
    if pd.api.types.is_datetime64_any_dtype(kind):
        if isinstance(kind, pd.DatetimeTZDtype):
            series = series.dt.tz_convert("UTC").dt.tz_localize(None)
        return series.to_numpy().astype("M8[us]")
    if pd.api.types.is_timedelta64_dtype(kind):
        return series.dt.total_seconds().to_numpy()
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_numeric_dtype(kind):
        return _numbers(series)
    if pd.api.types.is_object_dtype(kind):
        return _objects(series, what)
    return Text.of(pa.array(series.astype(object), type=pa.string(), from_pandas=True))


def _numbers(series: pd.Series) -> Column:
    if isinstance(series.dtype, np.dtype):
        array = series.to_numpy()
        return array.astype(np.float64) if array.dtype.kind == "f" else array
    holes = series.isna().to_numpy(dtype=bool)
    if not holes.any():
        return series.to_numpy(dtype=np.bool_ if pd.api.types.is_bool_dtype(series.dtype) else None)
    if pd.api.types.is_bool_dtype(series.dtype):
        return Text.from_codes(np.where(holes, -1, series.fillna(False).to_numpy(dtype=int)), ["False", "True"])
    if pd.api.types.is_integer_dtype(series.dtype) and (series.abs() > _EXACT).any():
        return Text.of(series.astype(object).where(~holes, None).map(lambda v: v if v is None else str(v)).tolist())
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def _objects(series: pd.Series, what: str) -> Column:
    """A column of Python objects by what they all are; mixed ones become text, one by one."""
    values = series.to_numpy()
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if kind in ("string", "empty"):
        return Text.of(pa.array(values, type=pa.string(), from_pandas=True))
    if kind in ("integer", "floating", "mixed-integer-float", "boolean"):
        if kind == "boolean" and not series.isna().any():
            return values.astype(bool)
        try:
            numbers = pd.to_numeric(series).to_numpy()
            if numbers.dtype.kind in "iuf" and (kind != "integer" or numbers.dtype.kind != "f" or not _large(values)):
                return numbers.astype(np.float64) if numbers.dtype.kind == "f" else numbers
        except (ValueError, TypeError, OverflowError):
            pass
    if kind in ("datetime", "datetime64", "date"):
        dates = pd.to_datetime(series, utc=True, errors="coerce")
        if (dates.isna() == series.isna()).all():
            return dates.dt.tz_localize(None).to_numpy().astype("M8[us]")
    return Text.of(_texts(values, what))


def _large(values: np.ndarray) -> bool:
    return any(isinstance(v, int) and abs(v) > _EXACT for v in values)


def _texts(values: np.ndarray, what: str) -> list[str | None]:
    """Objects as text; whole numbers without a point, so that 1 and 1.0 are one word."""
    return [_text(value, what, i) for i, value in enumerate(values.tolist())]


def _text(item: Any, what: str, row: int) -> str | None:
    if isinstance(item, str):
        return item
    if item is None or item is pd.NA or item is pd.NaT or item != item:
        return None
    if isinstance(item, (complex, np.complexfloating)) or not (np.isscalar(item) or hasattr(item, "isoformat")):
        if type(item).__name__ == "Decimal":
            return str(item)
        raise InputError(f"{what}: expected numbers or text, got {type(item).__name__} in row {row + 1}")
    if isinstance(item, (float, np.floating)) and np.isfinite(item) and item == int(item):
        return str(int(item))
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


def _hash(names: list[str], columns: list[Column]) -> str:
    digest = hashlib.sha256()
    for name, column in zip(names, columns):
        digest.update(repr(name).encode())
        if isinstance(column, Text):
            digest.update("\0".join(column.words.to_pylist()).encode(errors="surrogatepass"))
            column = column.codes
        digest.update(column.dtype.str.encode() + np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
