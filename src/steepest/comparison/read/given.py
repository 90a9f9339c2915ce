"""The data of a request, whatever form they have: a file, a built-in name, a frame, arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError, nearest
from ..metrics.tables import BINARY, MULTICLASS, REGRESSION
from ..metrics.words import known_as
from ..names import TEXT_MODELS
from ..request import READING, Request
from .frames import check_labels, feature_columns
from .images import is_image_source, load_images
from .inputs import Data
from .new_rows import load_like
from .several import target_names
from .table import Table, load_table, table_from_arrays, table_from_frame
from .task import MAX_AUTO_CLASSES
from .texts import load_texts

pd = late("pandas")


def read_data(request: Request) -> tuple[Data, Data | None]:
    """The data, and the fixed test part where there is one.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    if request.of_text:
        request.refuse_for_texts()
        return load_texts(
            str(request.source),
            prompt=request.prompt,
            answer=request.answer,
            encoding=request.encoding,
            folds=request.folds_for(images=False),
            tokens=request.model not in (None, *TEXT_MODELS),
        ), None
    if request.of_retrieval:
        request.refuse_for_retrieval()
    pictures = request.source is not None and is_image_source(request.source)
    folds = request.folds_for(pictures)
    options: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("task", "drop", "group", "time", "weight", "rare", "positive", "query", *READING)
    }
    options["folds"] = folds
    data, target = request.data, request.target
    for role, word in (("group", "groups"), ("time", "times"), ("weight", "sample_weight"), ("query", "queries")):
        values = getattr(request, word)
        if values is not None:
            data, target, options[role] = _with_column(data, request.y, target, role, word, values, options[role])
    if pictures:
        request.refuse_for_images()
        task = request.task if request.of_retrieval else "auto"
        return load_images(str(data), split=request.split, size=request.size, folds=folds, task=task)
    request.refuse_for_tables()
    table = _table_for(request, data, target, options)
    if request.test is None:
        return table, None
    fixed = load_like(request.test, table)
    if table.parts:
        raise InputError("--test: takes one target")
    return table, fixed


def _with_column(
    data: Any, y: Any, target: Any, role: str, word: str, values: Any, named: str | None
) -> tuple[Any, Any, str]:
    """The features with one more column, of the groups, times or weights; the target; and the name of the column."""
    if named is not None:
        raise InputError(f"{word}: an array, or {role} with the name of a column, not both")
    if isinstance(data, (str, Path)):
        raise InputError(f"{word} goes with arrays and frames; of a file, name the column: {role}=...")
    if isinstance(data, pd.DataFrame):
        frame = data
    else:
        names, _, _ = feature_columns(data)
        frame = pd.DataFrame(np.asarray(data)).set_axis(names, axis=1)
    if np.ndim(values) != 1 or len(values) != len(frame):
        raise InputError(f"{word}: expected {len(frame)} values, one a row of X, got shape {np.shape(values)}")
    check_labels(data, values, "X", word)
    while word in frame.columns:
        word += "_"
    if y is None and target is None:
        target = str(frame.columns[-1])
    column = values.array if isinstance(values, pd.Series) else np.asarray(values)
    return frame.assign(**{word: column}), target, word


def _table(data: Any, y: Any, target: Any, name: str, options: dict[str, Any]) -> Table:
    """A table from whatever a caller has: a file, a frame with its target inside, features and target apart."""
    if y is None and not isinstance(data, pd.DataFrame):
        return load_table(data, target=target, **options)
    if y is not None and getattr(y, "ndim", 1) == 2 and np.shape(y)[1] > 1:
        targets = y if isinstance(y, pd.DataFrame) else pd.DataFrame(np.asarray(y)).add_prefix("target_")
        features = data if isinstance(data, pd.DataFrame) else pd.DataFrame(np.asarray(data)).add_prefix("c")
        if len(features) != len(targets):
            raise InputError(f"X has {len(features)} rows and y has {len(targets)}: expected one length")
        check_labels(data, y, "X", "y")
        data = pd.concat([features.reset_index(drop=True), targets.reset_index(drop=True)], axis=1)
        y, target = None, [str(column) for column in targets.columns]
    if y is not None:
        return table_from_arrays(data, y, name=name, **options)
    names = [str(column) for column in data.columns]
    goals = [names[-1]] if target is None else target_names(target, names)
    for goal in goals:
        if goal not in names:
            raise InputError(f"target: the frame has no column {goal!r}{nearest(goal, names)}")
    frame = data.set_axis(names, axis=1)
    rest = [column for column in names if column not in goals]
    if len(goals) == 1:
        return table_from_arrays(frame[rest], frame[goals[0]], name=name, **options)
    return table_from_frame(frame[[*rest, *goals]], goals, name=name, **options)


def _table_for(request: Request, data: Any, target: Any, options: dict[str, Any]) -> Table:
    """The table; where the task is left open, and the metric is for one kind alone, it is of that kind if it can be."""
    y, name = request.y, request.name
    word = request.metric if options["task"] == "auto" and isinstance(request.metric, str) else ""
    if known_as(word, REGRESSION) in REGRESSION:
        try:
            table = _table(data, y, target, name, {**options, "task": "regression"})
        except InputError:
            return _table(data, y, target, name, options)
        return _said(table, f"task: numbers, as {word} needs them") if _like_classes(table) else table
    table = _table(data, y, target, name, options)
    if known_as(word, {*BINARY, *MULTICLASS}) in BINARY and _few_integers(table):
        table = _table(data, y, target, name, {**options, "task": "classification"})
        return _said(table, f"task: classes, as {word} needs them")
    return table


def _said(table: Table, decision: str) -> Table:
    return replace(table, decisions=(*table.decisions, decision))


def _like_classes(table: Table) -> bool:
    """Whether a target of numbers would be one of classes by itself."""
    values = pd.unique(table.target) if table.task == "regression" else np.arange(0)
    return len(values) == 2 or (0 < len(values) <= MAX_AUTO_CLASSES and bool((values == np.floor(values)).all()))


MOST_CLASSES, MOST_DISTINCT = 1000, 0.05
"""Integers of at most so many values, that are at most this share of the rows, are classes where the metric asks."""


def _few_integers(table: Table) -> bool:
    """Whether a target of numbers may as well be one of classes."""
    if table.task != "regression":
        return False
    values = pd.unique(table.target)
    most = min(MOST_CLASSES, MOST_DISTINCT * len(table.target))
    return len(values) <= most and bool((values == np.floor(values)).all())
