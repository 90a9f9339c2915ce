"""A table ready for a comparison: what is a feature, what is the target, and what was decided on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError
from .arrays import from_arrays, from_frame
from .builtin import BUILTIN, load_builtin
from .columns import check_finite, counts_rows, is_number, merge_same_names, parse, stray_words, uninformative
from .leaks import find_copies, find_leaks
from .raw import RawTable, count, listing, show
from .read import read_file
from .roles import read_groups, read_times, read_weights
from .several import Part, read_targets, target_names
from .task import check_options, read_target


@dataclass(frozen=True)
class Table:
    """Features, target and the parts of rows, with what was decided and what to beware of.

    Args:
        name: of the source.
        frame: ``[rows, features]``: float64 columns (NaN: missing), or text columns (objects, None: missing).
        target: ``[rows]`` int64 class codes ``0..C-1``, or float64.
        target_name: of the target's column.
        task: ``"binary"``, ``"multiclass"``, ``"regression"``, or with several targets ``"multilabel"`` (target
            ``[rows, L]`` of 0/1) or ``"multitask"`` (``[rows, T]`` float64, class codes or numbers).
        classes: C labels in code order, the L label names of multilabel; empty for regression and multitask.
        groups: ``[rows]`` int64 codes, or None.
        times: ``[rows]`` float64 ranks in time order, or None.
        weights: ``[rows]`` float64 >= 0, or None.
        decisions: what was decided, a line each.
        warnings: what to beware of, a line each.
        sha256: of the file's bytes, or of the arrays' contents.
        parts: each of several targets; empty for one.
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
) -> Table:
    """Read a table and decide what it asks.

    Args:
        source: a built-in name (breast_cancer, diabetes, digits, iris, wine), or a CSV or TSV file.
        target: the target's column, by name or number (1 is the first), or several with commas between; default the
            last.
        task: ``"auto"`` (text, or at most 10 distinct integers, is classification), ``"classification"``, ``"binary"``,
            ``"multiclass"`` or ``"regression"``.
        drop: columns that are not to be used.
        group: column whose equal cells stay on one side of every split.
        time: column of numbers or dates: folds then go forward in time.
        weight: column of sample weights.
        rare: ``"drop"`` or ``"merge"`` classes with fewer than ``max(4, folds)`` members; None refuses them.
        folds: of the comparison.

    Raises:
        InputError: for whatever cannot be used, in one line.

    >>> table = load_table("iris")
    >>> table.task, table.frame.shape, table.classes
    ('multiclass', (150, 4), ('setosa', 'versicolor', 'virginica'))
    """
    check_options(task, rare, folds)
    raw = read_source(source)
    name = str(source) if str(source) in BUILTIN else Path(source).name
    return _build(raw, name, target, task, drop, group, time, weight, rare, folds)


def table_from_arrays(
    X: object,
    y: object,
    *,
    name: str = "data",
    target: str | None = None,
    task: str = "auto",
    drop: str | Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    rare: str | None = None,
    folds: int = 5,
) -> Table:
    """A table of features ``X [rows, columns]`` and a target ``y [rows]``: arrays, lists, frames or series.

    Args:
        X: numbers or text; columns of an array are named ``c1 .. cN``.
        y: numbers, booleans or text.
        name: of the table.
        target: name for the target; default the series' own name, or ``target``.
        task, drop, group, time, weight, rare, folds: as in ``load_table``; columns are those of ``X``.

    Raises:
        InputError: for whatever cannot be used, in one line.

    >>> import numpy as np
    >>> table = table_from_arrays(np.eye(3).repeat(4, axis=0), list("aaaabbbbcccc"), folds=3)
    >>> table.task, table.classes, table.target.tolist()
    ('multiclass', ('a', 'b', 'c'), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """
    check_options(task, rare, folds)
    raw = from_arrays(X, y, target)
    return _build(raw, name, None, task, drop, group, time, weight, rare, folds)


def table_from_frame(frame: pd.DataFrame, targets: Sequence[str], *, name: str = "data", **options: Any) -> Table:
    """A table of a frame whose columns ``targets`` are several targets; options as in ``load_table``."""
    raw = from_frame(frame, name)
    raw.decisions, raw.arrays = (
        [f"read: {count(raw.rows, 'row')}, {count(len(raw.names), 'column')} from a frame"],
        True,
    )
    settings = {"task": "auto", "drop": (), "group": None, "time": None, "weight": None, "rare": None, "folds": 5}
    settings |= options
    check_options(settings["task"], settings["rare"], settings["folds"])
    return _build(raw, name, list(targets), **settings)


def read_source(source: str | Path) -> RawTable:
    """A built-in table by name, or a file, as raw columns."""
    if not isinstance(source, (str, Path)) or source == "":
        raise InputError(f"expected a built-in name or a path, got {source!r:.80}")
    if str(source) in BUILTIN:
        return from_frame(load_builtin(str(source)), str(source))
    return read_file(source)


def _build(
    raw: RawTable,
    name: str,
    target: str | int | Sequence[str] | None,
    task: str,
    drop: str | Sequence[str],
    group: str | None,
    time: str | None,
    weight: str | None,
    rare: str | None,
    folds: int,
) -> Table:
    merge_same_names(raw)
    decisions, warned = raw.decisions, raw.warnings
    asked = [] if target is None else target_names(target, raw.names)
    goals = list(dict.fromkeys(raw.find(name, "target") for name in asked)) or [len(raw.names) - 1]
    target_name = ", ".join(raw.names[goal] for goal in goals)
    decisions.append(
        f"target: {show(target_name)}" + (" (the last column)" if target is None and not raw.arrays else "")
    )
    parts = {"group": group, "time": time, "weight": weight}
    found = {part: raw.find(column, part) for part, column in parts.items() if column is not None}
    dropped = [raw.find(column, "drop") for column in _columns(drop, raw.names)]
    for part, column in [*found.items(), *(("drop", d) for d in dropped)]:
        if column in goals:
            raise InputError(f"{part}: {show(raw.names[column])} is {'the' if len(goals) == 1 else 'a'} target")
    comma = raw.decimal_comma
    goal_column = raw.columns[goals[0]]
    several: tuple[Part, ...] = ()
    if len(goals) > 1:
        own = [raw.columns[goal] for goal in goals]
        made, several = read_targets(own, [raw.names[goal] for goal in goals], folds=folds, comma=comma)
    else:
        made = read_target(goal_column, target_name, task=task, rare=rare, folds=folds, comma=comma)
    decisions += made.decisions
    warned += made.warnings
    stray = stray_words(goal_column)
    if stray and not several:
        warned.append(
            f"the target is text: {count(stray[0], 'word')} among numbers (first: {show(stray[2])}, row {stray[1]})"
        )
    readers = {"group": read_groups, "time": read_times, "weight": read_weights}
    values: dict[str, np.ndarray | None] = dict.fromkeys(parts)
    for part, i in found.items():
        values[part] = readers[part](raw.columns[i], raw.names[i], comma)[made.keep]
        decisions.append(f"{part}: {show(raw.names[i])}")
    if dropped:
        decisions.append(f"dropped as asked: {listing([raw.names[i] for i in dict.fromkeys(dropped)], limit=200)}")
    rest = [i for i in range(len(raw.names)) if i not in {*goals, *found.values(), *dropped}]
    frame = _features(raw, rest, made.keep, decisions, warned)
    if not several:
        warned += find_copies(frame, made.values)
        warned += find_leaks(frame, made.values, made.task)
    return Table(
        name=name,
        frame=frame,
        target=made.values,
        target_name=target_name,
        task=made.task,
        classes=made.classes,
        groups=values["group"],
        times=values["time"],
        weights=values["weight"],
        decisions=tuple(decisions),
        warnings=tuple(warned),
        sha256=raw.sha256,
        parts=several,
    )


def _columns(drop: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """Columns to drop; one text is a column's name or several names with commas between."""
    if isinstance(drop, (str, int)):
        return [str(drop)] if str(drop) in names else [d.strip() for d in str(drop).split(",") if d.strip()]
    return [str(d) for d in drop]


def _features(
    raw: RawTable, rest: list[int], keep: np.ndarray, decisions: list[str], warned: list[str]
) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {}
    useless: list[str] = []
    for i in rest:
        name, column = raw.names[i], parse(raw.columns[i], decimal_comma=raw.decimal_comma)
        check_finite(name, column)
        reason = "it counts the rows" if counts_rows(column) else uninformative(column[keep])
        if reason:
            useless.append(f"dropped {show(name)}: {reason}")
            continue
        stray = stray_words(column)
        if stray:
            words = f"{count(stray[0], 'word')} among numbers (first: {show(stray[2])}, row {stray[1]})"
            warned.append(f"{show(name)} is taken as text: {words}")
        columns[name] = column[keep]
    decisions += useless
    if not columns:
        reason = "; ".join(useless[:3]) or "every other column is dropped as asked or is the group, time or weight"
        raise InputError(f"no feature is left beside the target: {reason}")
    numeric = sum(is_number(c) for c in columns.values())
    decisions.append(
        f"features: {len(columns)} ({numeric} numeric, {len(columns) - numeric} text), {count(int(keep.sum()), 'row')}"
    )
    holes = {name: int(pd.isna(c).sum()) for name, c in columns.items()}
    if any(holes.values()):
        affected = sum(h > 0 for h in holes.values())
        decisions.append(
            f"missing: {count(sum(holes.values()), 'cell')} in {count(affected, 'feature')}, filled inside each fold"
        )
    return pd.DataFrame({name: pd.Series(c, dtype=c.dtype) for name, c in columns.items()})
