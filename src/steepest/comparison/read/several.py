"""Several targets: labels that are all 0/1 (multilabel), or any mix of classes and numbers (multi-task)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError
from ..parts import Part
from .options import MISSING, ReadOptions
from .raw import Column, Text
from .task import Target, check_present, read_target
from .types import infer
from .wording import count, show


def target_names(target: object, names: Sequence[str]) -> list[str]:
    """The columns that a target option names: one, or several with commas between (a name with a comma goes first).

    >>> target_names("a,b", ["a", "b", "c"]), target_names("a,b", ["a,b", "c"]), target_names(["a", "c"], ["a", "c"])
    (['a', 'b'], ['a,b'], ['a', 'c'])
    """
    if isinstance(target, (list, tuple)):
        return [str(column) for column in target]
    text = str(target)
    if text in names or "," not in text:
        return [text]
    return [word.strip() for word in text.split(",") if word.strip()]


def read_targets(
    columns: Sequence[Column],
    names: Sequence[str],
    *,
    folds: int = 5,
    comma: str = "no",
    missing: tuple[str, ...] = MISSING,
    dtypes: Mapping[str, str] | None = None,
) -> tuple[Target, tuple[Part, ...]]:
    """Several targets as one: ``[rows, L]`` int64 for multilabel, ``[rows, T]`` float64 (class codes or numbers) else.

    Args:
        columns: each ``[rows]``, as read.
        names: of the columns.
        folds: of the comparison.
        comma: whether ``1,5`` is a number, as of ``RawTable``.
        missing: words that are missing.
        dtypes: in which the targets came, by name.

    Raises:
        InputError: what a single target is refused for; a label with too few rows on either side.
    """
    rows = len(columns[0])
    flags = [_flags(column, name, comma, missing) for column, name in zip(columns, names)]
    if all(flag is not None for flag in flags):
        matrix = np.stack([flag for flag in flags if flag is not None], 1)
        least = max(4, folds)
        for name, positive in zip(names, matrix.sum(0).tolist()):
            if min(positive, rows - positive) < least:
                raise InputError(
                    f"the label {show(name)} has {count(positive, 'positive row')} of {rows}: expected at least "
                    f"{least} on either side; leave it out of the target"
                )
        counts = ", ".join(f"{name}: {n}" for name, n in zip(names, matrix.sum(0)))
        line = f"task: multilabel, {len(names)} labels ({counts})"
        keep = np.ones(rows, dtype=bool)
        given = {} if dtypes is None else dtypes
        parts = tuple(Part(name, "binary", ("0", "1"), given.get(name, "int64")) for name in names)
        return Target(matrix, keep, "multilabel", tuple(names), [line], []), parts
    targets = []
    for column, name in zip(columns, names):
        try:
            dtype = (dtypes or {}).get(name)
            targets.append(read_target(column, name, folds=folds, comma=comma, missing=missing, dtype=dtype))
        except InputError as error:  # with several targets, rows cannot be dropped for the sake of one
            raise InputError(
                str(error).replace("choose --rare drop or --rare merge", "leave it out of the target")
            ) from error
    values = [target.values for target in targets]
    warnings = [line for target in targets for line in target.warnings]
    keep = np.ones(rows, dtype=bool)
    parts = tuple(Part(name, target.task, target.classes, target.dtype) for name, target in zip(names, targets))
    lines = [f"task: multitask, {len(targets)} targets"]
    lines += [f"{name}: {line}" for name, target in zip(names, targets) for line in target.decisions]
    return Target(np.stack(values, 1).astype(np.float64), keep, "multitask", (), lines, warnings), parts


def _flags(column: Column, name: str, comma: str, missing: tuple[str, ...]) -> np.ndarray | None:
    """``[rows]`` int64 if the column holds 0 and 1 (or false and true) alone, else None."""
    typed = infer(column, name, ReadOptions(missing=missing), comma).values if isinstance(column, Text) else column
    check_present(typed, f"the target {show(name)}", "drop them or choose another target")
    if isinstance(typed, Text) or typed.dtype.kind == "M" or not np.isin(typed, (0.0, 1.0)).all():
        return None
    return typed.astype(np.int64)
