"""Further rows for a table that is known: a fixed test file, and new rows to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...core.lazy import late
from ..errors import InputError, nearest
from .builtin import BUILTIN
from .columns import check_finite, merge_same_names
from .frames import feature_columns
from .options import ReadOptions
from .raw import Column, RawTable, Text
from .table import Table, read_source
from .task import MERGED, check_present, flags_of_one_spelling, label_index, target_labels, target_numbers
from .types import ColumnType, Typed, convert, labels
from .wording import count, listing, show

pd = late("pandas")


def rows_like(
    X: object,
    columns: Mapping[str, ColumnType],
    options: ReadOptions,
    more: Sequence[str] = (),
    extra: int = 1,
) -> RawTable:
    """The columns of new rows, in order: of a frame by name, of an array by place, of a file by either.

    With a header, columns of a file are found by name and others ignored. Without one they are found by place; the file
    then has as many columns as asked for, or ``extra`` more, which are ignored.

    Args:
        X: a frame, an array ``[rows, columns]``, or a path.
        columns: names, with what each is.
        options: how a file is read.
        more: names of columns after those, kept exact.
        extra: how many columns a file without a header may have beyond them.

    Raises:
        InputError: for missing columns, or another number of them.
    """
    names = [*columns, *more]
    if isinstance(X, (str, Path)):
        words = {*more, *(name for name, type in columns.items() if type.kind != "number")}

        def exact(header: list[str]) -> set[int]:
            if all(name in header for name in names):
                return {header.index(name) for name in words}
            return {i for i, name in enumerate(names) if name in words and i < len(header)}

        raw = read_source(X, options, exact)
    else:
        header, own, given = feature_columns(X)
        raw = RawTable(header, own, given, "", arrays=True)
    merge_same_names(raw)
    places = _places(raw, names, extra)
    raw.names, raw.columns = names, [raw.columns[i] for i in places]
    return raw


def converted(raw: RawTable, columns: Mapping[str, ColumnType], missing: tuple[str, ...]) -> dict[str, Typed]:
    """Raw columns as what they were when they were learnt.

    Raises:
        InputError: for words, inf or dates in columns of numbers, and the like.
    """
    out: dict[str, Typed] = {}
    for (name, type), column in zip(columns.items(), raw.columns):
        out[name] = convert(column, name, type, missing, raw.comma)
        check_finite(name, out[name].values)
        raw.warnings += out[name].warnings
    return out


def load_like(source: str | Path, table: Table) -> Table:
    """A fixed test file with the columns, target and class coding of ``table``; further columns are ignored.

    Raises:
        InputError: for missing columns, words in a numeric column, missing targets, classes that ``table`` lacks.

    >>> from steepest.comparison.read import load_table
    >>> load_like("iris", load_table("iris")).target.shape
    (150,)
    """
    from .build import typed_frame

    raw = rows_like(source, table.types, table.options, more=[table.target_name], extra=0)
    goal = raw.columns[-1]
    frame = typed_frame(converted(raw, table.types, table.options.missing))
    warned = list(raw.warnings)
    what = f"the target {show(table.target_name)}"
    if table.task == "regression":
        target = convert(goal, table.target_name, ColumnType("number"), (), raw.comma).values
        assert isinstance(target, np.ndarray)
        check_present(target, what, "every row needs one")
        if not np.isfinite(target).all():
            raise InputError(f"{what} is infinite: expected finite numbers")
    else:
        target, more = _codes(goal, table, what)
        warned += more
    return replace(
        table,
        name=str(source) if str(source) in BUILTIN else Path(source).name,
        frame=frame,
        target=target,
        groups=None,
        times=None,
        weights=None,
        decisions=(*raw.decisions, f"columns, target and classes as in {table.name}"),
        warnings=tuple(warned),
        sha256=raw.start_digest()(),
    )


def _codes(column: Column, table: Table, what: str) -> tuple[np.ndarray, list[str]]:
    """Class codes of a target column."""
    text = _as_labels(column, table).without(table.options.missing)
    check_present(text, what, "every row needs one")
    known = pd.Index(table.classes, dtype=object).get_indexer(pd.Index(text.words.to_pylist(), dtype=object))
    strangers = [word for word, code in zip(text.words.to_pylist(), known) if code < 0]
    warned = []
    if strangers and MERGED in table.classes:
        known[known < 0] = table.classes.index(MERGED)
        warned.append(f"classes {listing(strangers)} are counted as {MERGED!r}")
    elif strangers:
        row = text.first(strangers[0])
        expected = f"expected one of {listing(list(table.classes))}"
        raise InputError(f"{what} has an unknown class {show(strangers[0])} in row {row}: {expected}")
    return known[text.codes].astype(np.int64), warned


def _as_labels(column: Column, table: Table) -> Text:
    """A target as the words that classes are called by: numbers canonical where all classes are numbers."""
    if not isinstance(column, Text):
        return labels(column)
    if label_index(table.classes, table.label_dtype).dtype.kind in "iuf":
        return target_labels(column, target_numbers(column, "", "no", table.options.missing)[0])
    return flags_of_one_spelling(column) if set(table.classes) == {"False", "True"} else column


def _places(raw: RawTable, names: list[str], extra: int) -> list[int]:
    absent = [name for name in names if name not in raw.names]
    if not absent:
        return [raw.names.index(name) for name in names]
    source = "rows have" if raw.arrays else "file has"
    if raw.header:
        hint = nearest(absent[0], [n for n in raw.names if n not in names])
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise InputError(f"the {source} no column {show(absent[0])}{more}{hint}")
    extra = 0 if raw.arrays else extra
    if not len(names) <= len(raw.names) <= len(names) + extra:
        either = f" or {len(names) + extra}" if extra else ""
        raise InputError(
            f"the {source} no header and {count(len(raw.names), 'column')}: expected {len(names)}{either}, or a header "
            f"with {listing(names, limit=4)}"
        )
    return list(range(len(names)))
