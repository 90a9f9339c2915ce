"""Several targets: labels that are all 0/1 (multilabel), or any mix of classes and numbers (multi-task)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .columns import is_number, parse
from .raw import count, show
from .task import Target, check_present, read_target


@dataclass(frozen=True)
class Part:
    """One of several targets: its column, its own task, its classes (empty for numbers)."""

    name: str
    task: str
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many outputs it takes: one for numbers, C for classes."""
        return max(1, len(self.classes))


def target_names(target: object, names: Sequence[str]) -> list[str]:
    """The columns that a target option names: one, or several with commas between (a name with a comma goes first).

    >>> target_names("a,b", ["a", "b", "c"]), target_names("a,b", ["a,b", "c"]), target_names(["a", "c"], ["a", "c"])
    (['a', 'b'], ['a,b'], ['a', 'c'])
    """
    if isinstance(target, (list, tuple)):
        return [str(each) for each in target]
    text = str(target)
    if text in names or "," not in text:
        return [text]
    return [word.strip() for word in text.split(",") if word.strip()]


def read_targets(
    columns: Sequence[np.ndarray], names: Sequence[str], *, folds: int = 5, comma: bool = False
) -> tuple[Target, tuple[Part, ...]]:
    """Several targets as one: ``[rows, L]`` int64 for multilabel, ``[rows, T]`` float64 (class codes or numbers) else.

    Args:
        columns: each ``[rows]``, as read.
        names: of the columns.
        folds: of the comparison.
        comma: whether ``1,5`` is a number.

    Raises:
        InputError: what a single target is refused for; a label with too few rows on either side.
    """
    rows = len(columns[0])
    flags = [_flags(column, name, comma) for column, name in zip(columns, names)]
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
        parts = tuple(Part(name, "binary", ("0", "1")) for name in names)
        return Target(matrix, keep, "multilabel", tuple(names), [line], []), parts
    each = []
    for column, name in zip(columns, names):
        try:
            each.append(read_target(column, name, folds=folds, comma=comma))
        except InputError as error:  # with several targets, rows cannot be dropped for the sake of one
            raise InputError(
                str(error).replace("choose --rare drop or --rare merge", "leave it out of the target")
            ) from error
    values = [target.values for target in each]
    warnings = [line for target in each for line in target.warnings]
    keep = np.ones(rows, dtype=bool)
    parts = tuple(Part(name, target.task, target.classes) for name, target in zip(names, each))
    lines = [f"task: multitask, {len(each)} targets"]
    lines += [f"{name}: {line}" for name, target in zip(names, each) for line in target.decisions]
    return Target(np.stack(values, 1).astype(np.float64), keep, "multitask", (), lines, warnings), parts


def _flags(column: np.ndarray, name: str, comma: bool) -> np.ndarray | None:
    """``[rows]`` int64 if the column holds 0 and 1 (or false and true) alone, else None."""
    values = parse(column, decimal_comma=comma)
    check_present(values, f"the target {show(name)}", "drop them or choose another target")
    if not is_number(values) or not np.isin(values, (0.0, 1.0)).all():
        return None
    return values.astype(np.int64)
