"""Further files for a table that is known: a fixed test file, and new rows to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError, nearest
from .columns import check_finite, is_number, merge_same_names, number, parse
from .raw import RawTable, count, listing, show
from .read import read_file
from .table import Table, read_source
from .task import MERGED, check_present, class_labels, in_order


def load_like(source: str | Path, table: Table) -> Table:
    """A fixed test file with the columns, target and class coding of ``table``; further columns are ignored.

    Raises:
        InputError: for missing columns, words in a numeric column, missing targets, classes that ``table`` lacks.

    >>> from steepest.comparison.tables import load_table
    >>> load_like("iris", load_table("iris")).target.shape
    (150,)
    """
    raw = read_source(source)
    merge_same_names(raw)
    names = [*table.frame.columns, table.target_name]
    places = _places(raw, names, extra=0)
    numeric = [c for c in table.frame.columns if is_number(table.frame[c].to_numpy())]
    frame = _frame(raw, names[:-1], places[:-1], numeric)
    column = parse(raw.columns[places[-1]], decimal_comma=raw.decimal_comma, booleans=False)
    check_present(column, f"the target {show(table.target_name)}", "every row needs one")
    warned = list(raw.warnings)
    if table.task == "regression":
        target = _numbers(column, table.target_name)
        if not np.isfinite(target).all():
            raise InputError(f"the target {show(table.target_name)} is infinite: expected finite numbers")
    else:
        labels = class_labels(column)
        unknown = in_order([label for label in labels if label not in table.classes])
        if unknown and MERGED in table.classes:
            labels = np.where(np.isin(labels, unknown), MERGED, labels)
            warned.append(f"classes {listing(unknown)} are counted as {MERGED!r}")
        elif unknown:
            row = int(np.flatnonzero(np.isin(labels, unknown))[0]) + 1
            known = f"expected one of {listing(list(table.classes))}"
            raise InputError(
                f"the target {show(table.target_name)} has an unknown class {show(unknown[0])} in row {row}: {known}"
            )
        target = pd.Categorical(labels, categories=table.classes).codes.astype(np.int64)
    return replace(
        table,
        name=str(source) if not Path(source).suffix else Path(source).name,
        frame=frame,
        target=target,
        groups=None,
        times=None,
        weights=None,
        decisions=(*raw.decisions, f"columns, target and classes as in {table.name}"),
        warnings=tuple(warned),
        sha256=raw.sha256,
    )


def read_features(path: str | Path, columns: Sequence[str], numeric: Sequence[str]) -> pd.DataFrame:
    """New rows to predict: the named columns of a file, in that order.

    With a header, columns are found by name and others ignored. Without one, ``c1 .. cN`` are found by position if the
    file has them all; else the file has as many columns as ``columns``, or one more, which is ignored.

    Args:
        path: a CSV or TSV file.
        columns: names of the features.
        numeric: those among them that hold numbers.

    Raises:
        InputError: for missing columns, and words or inf in numeric ones.
    """
    raw = read_file(path)
    merge_same_names(raw)
    return _frame(raw, list(columns), _places(raw, list(columns), extra=1), numeric)


def _places(raw: RawTable, names: list[str], extra: int) -> list[int]:
    absent = [name for name in names if name not in raw.names]
    if not absent:
        return [raw.names.index(name) for name in names]
    if raw.header:
        hint = nearest(absent[0], [n for n in raw.names if n not in names])
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise InputError(f"the file has no column {show(absent[0])}{more}{hint}")
    if not len(names) <= len(raw.names) <= len(names) + extra:
        either = f" or {len(names) + extra}" if extra else ""
        raise InputError(
            f"the file has no header and {count(len(raw.names), 'column')}: expected {len(names)}{either}, or a header "
            f"with {listing(names, limit=4)}"
        )
    return list(range(len(names)))


def _frame(raw: RawTable, names: list[str], places: list[int], numeric: Sequence[str]) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {}
    for name, place in zip(names, places):
        column = raw.columns[place]
        if name in set(numeric):
            column = _numbers(parse(column, decimal_comma=raw.decimal_comma), name)
            check_finite(name, column)
        elif is_number(column):
            missing, column = np.isnan(column), class_labels(np.nan_to_num(column))
            column[missing] = None
        columns[name] = column
    return pd.DataFrame({name: pd.Series(c, dtype=c.dtype) for name, c in columns.items()})


def _numbers(column: np.ndarray, name: str) -> np.ndarray:
    if is_number(column):
        return column
    row, word = next((i + 1, c) for i, c in enumerate(column) if c is not None and number(c) is None)
    raise InputError(f"column {show(name)} has {show(word)} in row {row}: expected a number")
