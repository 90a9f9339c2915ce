"""From raw columns and options to a table: which column is what, and which rows and features remain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError, nearest
from ..parts import Part
from .columns import check_finite, counts_rows, drop_empty_rows, merge_same_names, uninformative
from .hints import group_hint, time_hint
from .lists import RANKING, check_whole, list_lines, read_grades, read_queries
from .options import ReadOptions, TableOptions
from .raw import Column, RawTable, Text, missing_cells
from .retrieval import RETRIEVAL
from .roles import read_groups, read_times, read_weights
from .several import read_targets, target_names
from .task import Target, read_target
from .threads import LONG, side_by_side
from .types import ColumnType, Typed, infer
from .wording import count, listing, show

pd = late("pandas")

ROLES = {"group": read_groups, "time": read_times, "weight": read_weights, "query": read_queries}


def build(
    raw: RawTable,
    options: ReadOptions,
    target: str | int | Sequence[str] | None,
    asked: TableOptions,
) -> dict[str, Any]:
    """The fields of a :class:`Table` but its name."""
    if len(raw.names) == 1 and not raw.arrays:
        raise InputError(
            "only one column was found; --separator names the sign between cells where it is no comma, tab, semicolon, "
            "pipe or blank"
        )
    digest = raw.start_digest()
    merge_same_names(raw)
    positions = drop_empty_rows(raw)
    goals = goal_columns(target, raw.names)
    target_name = ", ".join(raw.names[goal] for goal in goals)
    decisions = [*raw.decisions]
    decisions.append(
        f"target: {show(target_name)}" + (" (the last column)" if target is None and not raw.arrays else "")
    )
    roles = {role: raw.find(column, role) for role, column in asked.roles.items()}
    _check_types(options.types, raw.names)
    declared = [name for name, kind in options.types.items() if kind == "drop"]
    dropped = [raw.find(column, "drop") for column in [*dropped_names(asked.drop, raw.names), *declared]]
    for role, column in [*roles.items(), *(("drop", d) for d in dropped)]:
        if column in goals:
            raise InputError(f"{role}: {show(raw.names[column])} is {'the' if len(goals) == 1 else 'a'} target")
    warned = [*raw.warnings]
    values: dict[str, np.ndarray | None] = dict.fromkeys(ROLES)
    for role, i in roles.items():
        values[role] = ROLES[role](raw.columns[i], raw.names[i], raw.comma, options.dayfirst, warned.append)
        decisions.append(f"{role}: {show(raw.names[i])}")
    columns = raw.columns
    if values["weight"] is not None and not values["weight"].all():
        some = values["weight"] > 0
        decisions.append(f"left out: {count(int((~some).sum()), 'row')} of weight 0")
        columns, positions = [column[some] for column in columns], positions[some]
        values = {role: None if v is None else v[some] for role, v in values.items()}
    typed_target, parts = _target(raw, columns, goals, options, asked)
    decisions += typed_target.decisions
    warned += typed_target.warnings
    if dropped:
        decisions.append(f"dropped as asked: {listing([raw.names[i] for i in dict.fromkeys(dropped)], limit=200)}")
    if not typed_target.keep.all():
        values = {role: None if v is None else v[typed_target.keep] for role, v in values.items()}
    if typed_target.task == RANKING:
        check_whole(values, {role: raw.names[i] for role, i in roles.items()}, typed_target.values, asked.folds)
        decisions += list_lines(values["query"], typed_target.values)
    if values["group"] is not None and typed_target.classes and not parts:
        warned += _lonely_classes(typed_target, values["group"], columns[roles["group"]])
    rest = [i for i in range(len(raw.names)) if i not in {*goals, *roles.values(), *dropped}]
    features = _Features(raw, columns, rest, typed_target.keep, options)
    decisions += features.lines
    warned += features.warnings
    from .leaks import find_copies, find_leaks_of  # slow to import

    kind = "regression" if typed_target.task == RANKING else typed_target.task
    searches: tuple[Callable[[], list[str]], ...] = (
        lambda: find_copies(features.frame, typed_target.values),
        lambda: find_leaks_of(features.frame, typed_target.values, kind, parts),
    )
    several = side_by_side if len(typed_target.values) >= LONG else map
    for lines in several(lambda search: search(), searches):
        warned += lines
    if asked.group is None and asked.time is None and asked.query is None:
        free = [(raw.names[i], columns[i]) for i in sorted({*rest, *dropped})]
        warned += group_hint(free, len(columns[goals[0]]))
    if asked.time is None:
        warned += time_hint(features.frame, features.types)
    return {
        "frame": features.frame,
        "types": features.types,
        "options": options,
        "target": typed_target.values,
        "target_name": target_name,
        "task": typed_target.task,
        "classes": typed_target.classes,
        "label_dtype": typed_target.dtype,
        "groups": values["query"] if values["group"] is None else values["group"],
        "queries": values["query"],
        "query_name": raw.names[roles["query"]] if "query" in roles else "",
        "times": values["time"],
        "weights": values["weight"],
        "decisions": (features.summary(target_name), *decisions),
        "warnings": tuple(warned),
        "sha256": digest(),
        "parts": parts,
        "positions": positions[typed_target.keep],
    }


def goal_columns(target: str | int | Sequence[str] | None, names: list[str]) -> list[int]:
    """The positions of the target, or of several; default the last column."""
    from .raw import find_column

    asked = [] if target is None else target_names(target, names)
    return list(dict.fromkeys(find_column(names, name, "target") for name in asked)) or [len(names) - 1]


def dropped_names(drop: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """Columns to drop; one text is a column's name or several names with commas between."""
    if isinstance(drop, (str, int)):
        return [str(drop)] if str(drop) in names else [d.strip() for d in str(drop).split(",") if d.strip()]
    return [str(d) for d in drop]


def _check_types(types: Mapping[str, str], names: list[str]) -> None:
    for name in types:
        if name not in names:
            raise InputError(f"types: no column {show(name)}{nearest(name, names)}")


def _target(
    raw: RawTable,
    columns: list[Column],
    goals: list[int],
    options: ReadOptions,
    asked: TableOptions,
) -> tuple[Target, tuple[Part, ...]]:
    names = [raw.names[goal] for goal in goals]
    if len(goals) > 1:
        if asked.task == RETRIEVAL:
            raise InputError(f"target: --task retrieval takes one, got {listing(names)}")
        if asked.positive is not None:
            raise InputError("positive: takes one target")
        if asked.task == RANKING:
            raise InputError(f"target: expected one column of grades for ranking, got {listing(names)}")
        own = [columns[goal] for goal in goals]
        return read_targets(own, names, folds=asked.folds, comma=raw.comma, missing=options.missing, dtypes=raw.dtypes)
    goal, column, task = goals[0], columns[goals[0]], asked.task
    if task == RANKING:
        return read_grades(column, names[0], comma=raw.comma, missing=options.missing), ()
    kind = options.types.get(names[0])
    if kind == "category" and task == "auto":
        task = "classification"
    elif kind == "number" and task == "auto":
        task = "regression"
    target = read_target(
        column,
        names[0],
        task=task,
        rare=asked.rare,
        folds=asked.folds,
        comma=raw.comma,
        missing=options.missing,
        positive=asked.positive,
        dtype=raw.dtypes.get(raw.names[goal]),
    )
    return target, ()


def _lonely_classes(target: Target, groups: np.ndarray, cells: Column) -> list[str]:
    """A warning for classes that live in one group: no fold can learn and test them; ``cells`` name the groups."""
    pairs = pd.DataFrame({"class": target.values, "group": groups}).drop_duplicates()
    homes = pairs["class"].value_counts()
    lonely = [target.classes[code] for code in sorted(homes.index[homes == 1])]
    if not lonely:
        return []
    row = int(np.flatnonzero(target.keep)[target.values == target.classes.index(lonely[0])][0])
    home = cells.cells[row].as_py() if isinstance(cells, Text) else cells[row]
    if len(lonely) == 1:
        said = f"the class {show(lonely[0])} lives in one group {show(home)}"
    else:
        said = f"each of the classes {listing(lonely)} lives in one group ({show(lonely[0])}: {show(home)})"
    return [f"{said}: no fold can both learn and test it"]


class _Features:
    """The features: their frame and types, and what is said about them."""

    def __init__(
        self, raw: RawTable, columns: list[Column], rest: list[int], keep: np.ndarray, options: ReadOptions
    ) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.types: dict[str, ColumnType] = {}
        series: dict[str, Any] = {}
        holes: list[int] = []
        useless: list[str] = []
        every = bool(keep.all())

        def typed_column(i: int) -> Typed:
            typed = infer(columns[i], raw.names[i], options, raw.comma)
            check_finite(raw.names[i], typed.values)
            return typed

        long = len(keep) >= LONG
        for i, typed in zip(rest, side_by_side(typed_column, rest) if long else map(typed_column, rest)):
            name = raw.names[i]
            values = typed.values if every else typed.values[keep]
            reason = "it counts the rows" if counts_rows(typed.values) else uninformative(values)
            if reason is None and name.startswith("Unnamed: 0") and _is_index(values):
                reason = "an unnamed column of distinct integers is an index"
            if reason and options.types.get(name) is None:
                useless.append(f"dropped {show(name)}: {reason}")
                continue
            self.lines += typed.notes
            self.warnings += typed.warnings
            self.types[name] = typed.type
            series[name] = as_series(values)
            holes.append(int(np.count_nonzero(missing_cells(values))))
        if not series:
            reason = "; ".join(useless[:3]) or "every other column is dropped as asked or is the group, time or weight"
            raise InputError(f"no feature is left beside the target: {reason}")
        rows = int(keep.sum())
        self.frame = pd.DataFrame(series, copy=False)
        kinds = _by_kind(self.types)
        shares = ", ".join(f"{len(names)} {_KINDS[kind][1]}" for kind, names in kinds.items())
        self.lines += useless
        self.lines.append(f"features: {len(series)} ({shares}), {count(rows, 'row')}")
        if any(holes):
            affected = count(sum(h > 0 for h in holes), "feature")
            self.lines.append(f"missing: {count(sum(holes), 'cell')} in {affected}, filled inside each fold")

    def summary(self, target: str) -> str:
        """How each column was read, in one line."""
        said = []
        for kind, names in _by_kind(self.types).items():
            singular, plural = _KINDS[kind]
            said.append(f"{count(len(names), singular, plural)} ({listing(names, limit=12)})".replace("'", ""))
        return f"columns: {'; '.join(said)}; target {show(target)}"


_KINDS = {
    "number": ("number", "numeric"),
    "category": ("category", "categories"),
    "date": ("date", "dates"),
    "text": ("text", "text"),
}


def _by_kind(types: Mapping[str, ColumnType]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for kind in _KINDS:
        names = [name for name, type in types.items() if type.kind == kind]
        if names:
            kinds[kind] = names
    return kinds


def _is_index(column: Column) -> bool:
    if isinstance(column, Text) or column.dtype.kind != "f" or np.isnan(column).any():
        return False
    return bool((column == np.floor(column)).all()) and len(pd.unique(column)) == len(column)


def as_series(values: Column) -> Any:
    """A column for a frame: float64, datetime64, or a categorical."""
    if not isinstance(values, Text):
        return values
    return pd.Categorical.from_codes(values.codes, categories=pd.Index(values.words.to_pylist(), dtype=object))


def typed_frame(columns: Mapping[str, Typed]) -> pd.DataFrame:
    """A frame of columns that were read."""
    return pd.DataFrame({name: as_series(typed.values) for name, typed in columns.items()}, copy=False)
