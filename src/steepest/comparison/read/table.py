"""A table ready for a comparison: what is a feature, what is the target, and what was decided on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from ..parts import Part
from .build import build, goal_columns
from .builtin import BUILTIN, load_builtin
from .cells import read_file
from .frames import from_arrays, from_frame
from .lists import list_column
from .options import ReadOptions, TableOptions, read_options, told_apart
from .raw import RawTable, find_column
from .types import ColumnType

pd = late("pandas")


@dataclass(frozen=True)
class Table:
    """Features, target and the parts of rows, with what was decided and what to beware of.

    Args:
        name: of the source.
        frame: ``[rows, features]``: float64 (NaN: missing), datetime64 (NaT: missing), or categorical columns.
        types: what each feature is.
        options: how the source was read.
        target: ``[rows]`` int64 class codes ``0..C-1``, or float64.
        target_name: of the target's column.
        task: ``"binary"``, ``"multiclass"``, ``"regression"``, ``"ranking"`` (target grades), or with several targets
            ``"multilabel"`` (target ``[rows, L]`` of 0/1) or ``"multitask"`` (``[rows, T]`` float64, class codes or
            numbers).
        label_dtype: in which the labels came, as of ``label_index``.
        classes: C labels in code order, the L label names of multilabel; empty for regression and multitask.
        groups: ``[rows]`` int64 codes, or None; the queries of a ranking that names no groups.
        times: ``[rows]`` float64 ranks in time order, or None.
        weights: ``[rows]`` float64 >= 0, or None.
        decisions: what was decided, a line each.
        warnings: what to beware of, a line each.
        sha256: of the file's bytes, or of the arrays' contents.
        parts: each of several targets; empty for one.
        queries: of ranking the list of each row, ``[rows]`` int64 codes; else None.
        query_name: of the queries' column.
        positions: ``[rows]``, where each row stands in the source, from 0 on; empty in a table made by hand.
    """

    name: str
    frame: pd.DataFrame
    target: np.ndarray
    target_name: str
    task: str
    classes: tuple[str, ...]
    groups: np.ndarray | None
    times: np.ndarray | None
    weights: np.ndarray | None
    decisions: tuple[str, ...]
    warnings: tuple[str, ...]
    sha256: str
    parts: tuple[Part, ...] = ()
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    options: ReadOptions = field(default_factory=ReadOptions)
    label_dtype: str = "str"
    queries: np.ndarray | None = None
    query_name: str = ""
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def load_table(
    source: str | Path,
    *,
    target: str | int | Sequence[str] | None = None,
    task: str = "auto",
    drop: str | Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    rare: str | None = None,
    folds: int = 5,
    positive: str | None = None,
    query: str | None = None,
    **reading: Any,
) -> Table:
    """Read a table and decide what it asks.

    Args:
        source: a built-in name (breast_cancer, diabetes, digits, iris, wine), or a file: text with separators (packed
            or not), Parquet, Excel.
        target: the target's column, by name or number (1 is the first), or several with commas between; default the
            last.
        task: ``"auto"`` (text, or at most 10 distinct integers, is classification), ``"classification"``, ``"binary"``,
            ``"multiclass"``, ``"regression"``, or ``"ranking"``: grades in lists.
        drop: columns that are not to be used.
        group: column whose equal cells stay on one side of every split.
        time: column of numbers or dates: folds then go forward in time.
        weight: column of sample weights; rows of weight 0 are left out.
        rare: ``"drop"`` or ``"merge"`` classes with fewer than ``max(4, folds)`` members; None drops them, with a
            warning, where they are at most a twentieth of the rows, and refuses them where they are more.
        folds: of the comparison.
        positive: of two classes the one that is looked for; default the later in order.
        query: column that says to which list a row belongs, where the task is ranking; default of the built-in lists.
        **reading: encoding, separator, header, missing, dayfirst, types, as of :func:`read_options`.

    Raises:
        InputError: for whatever cannot be used, in one line.

    >>> table = load_table("iris")
    >>> table.task, table.frame.shape, table.classes
    ('multiclass', (150, 4), ('setosa', 'versicolor', 'virginica'))
    """
    query = list_column(source, task, query)
    asked = TableOptions(task, drop, group, time, weight, rare, folds, positive, query)
    options = read_options(**reading)

    def exact(names: list[str]) -> Collection[int]:
        words = {names.index(name) for name, kind in options.types.items() if kind != "number" and name in names}
        named = {find_column(names, column, role) for role, column in asked.roles.items()}
        return {*goal_columns(target, names), *named, *words}

    raw = read_source(source, options, exact)
    name = str(source) if str(source) in BUILTIN else Path(source).name
    return Table(name=name, **build(raw, options, target, asked))


def table_from_arrays(X: object, y: object, *, name: str = "data", target: str | None = None, **options: Any) -> Table:
    """A table of features ``X [rows, columns]`` and a target ``y [rows]``: arrays, lists, frames or series.

    Args:
        X: numbers, dates, categories or text; columns of an array are named ``c1 .. cN``.
        y: numbers, booleans or text.
        name: of the table.
        target: name for the target; default the series' own name, or ``target``.
        **options: task, drop, group, time, weight, rare, folds, positive, query, missing, dayfirst, types, as in
            ``load_table``; columns are those of ``X``.

    Raises:
        InputError: for whatever cannot be used, in one line.

    >>> import numpy as np
    >>> table = table_from_arrays(np.eye(3).repeat(4, axis=0), list("aaaabbbbcccc"), folds=3)
    >>> table.task, table.classes, table.target.tolist()
    ('multiclass', ('a', 'b', 'c'), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """
    asked, reading = told_apart(options)
    return Table(name=name, **build(from_arrays(X, y, target), reading, None, asked))


def table_from_frame(frame: pd.DataFrame, targets: Sequence[str], *, name: str = "data", **options: Any) -> Table:
    """A table of a frame whose columns ``targets`` are several targets; options as in ``load_table``."""
    asked, reading = told_apart(options)
    return Table(name=name, **build(from_frame(frame, "a frame"), reading, list(targets), asked))


def read_source(
    source: str | Path,
    options: ReadOptions | None = None,
    exact: Callable[[list[str]], Collection[int]] = lambda names: (),
) -> RawTable:
    """A built-in table by name, or a file, as raw columns; ``exact`` as of :func:`read_file`."""
    if not isinstance(source, (str, Path)) or source == "":
        raise InputError(f"expected a built-in name or a path, got {source!r:.80}")
    if str(source) in BUILTIN:
        raw = from_frame(load_builtin(str(source)), f"the built-in {source}")
        raw.arrays = False
        return raw
    return read_file(source, options, exact)
