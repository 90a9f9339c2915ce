"""The target: what kind of task it makes, its classes, and what happens to rare ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import InputError, nearest
from .columns import is_number, number, parse
from .raw import count, listing, show

TASKS = ("auto", "classification", "binary", "multiclass", "regression")
RARE = ("drop", "merge")
MERGED = "rare"
MAX_AUTO_CLASSES = 10


@dataclass
class Target:
    """A target made ready.

    Args:
        values: ``[kept rows]`` int64 class codes, or float64.
        keep: ``[rows]`` bool: which rows remain.
        task, classes: as in ``Table``.
        decisions, warnings: a line each.
    """

    values: np.ndarray
    keep: np.ndarray
    task: str
    classes: tuple[str, ...]
    decisions: list[str]
    warnings: list[str]


def check_options(task: str, rare: str | None, folds: int) -> None:
    """Refuse an unknown task, an unknown way with rare classes, fewer than 2 folds."""
    if task not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, got {show(task)}{nearest(str(task), TASKS)}")
    if rare is not None and rare not in RARE:
        raise InputError(f"rare: expected drop or merge, got {show(rare)}{nearest(str(rare), RARE)}")
    if isinstance(folds, bool) or not isinstance(folds, (int, np.integer)) or folds < 2:
        raise InputError(f"folds: expected an integer of at least 2, got {show(folds)}")


def read_target(
    column: np.ndarray, name: str, *, task: str = "auto", rare: str | None = None, folds: int = 5, comma: bool = False
) -> Target:
    """Decide the task, code the classes (or take the numbers), and drop or merge rare classes.

    Text, or at most 10 distinct integers, is classification; other numbers are regression.

    Args:
        column: ``[rows]``, float64 or objects, as read.
        name: of the column.
        task: one of ``TASKS``.
        rare: ``"drop"``, ``"merge"`` or None (refuse) for classes with fewer than ``max(4, folds)`` members.
        folds: of the comparison.
        comma: whether ``1,5`` is a number.

    Raises:
        InputError: for missing or infinite targets, one class, rare classes, text where numbers are needed.
    """
    column = parse(column, decimal_comma=comma, booleans=False)
    what = f"the target {show(name)}"
    check_present(column, what, "drop them or choose another target")
    numeric = is_number(column)
    if numeric and not np.isfinite(column).all():
        row = int(np.flatnonzero(~np.isfinite(column))[0]) + 1
        raise InputError(f"{what} is infinite in row {row}: expected finite numbers")
    distinct = np.unique(column) if numeric else sorted(set(column.tolist()))
    integers = numeric and bool((distinct == np.floor(distinct)).all())
    few = integers and len(distinct) <= MAX_AUTO_CLASSES
    why = ""
    if task == "auto":
        task = "classification" if not numeric or few else "regression"
        why = f" ({_why(numeric, integers, few, len(distinct))})"
    if task == "regression":
        return _regression(column, what, numeric, folds, why, len(distinct))
    labels = class_labels(column)
    return _classes(labels, what, task, rare, folds, why)


def class_labels(column: np.ndarray) -> np.ndarray:
    """``[rows]`` class labels as text: integers without a point, other numbers in full, text as it is."""
    out = np.empty(len(column), dtype=object)
    out[:] = [_label(v) for v in column.tolist()] if is_number(column) else column
    return out


def in_order(labels: list[str]) -> list[str]:
    """Distinct labels in numeric order if all are numbers, else sorted.

    >>> in_order(["10", "9"]), in_order(["b", "10", "9"])
    (['9', '10'], ['10', '9', 'b'])
    """
    distinct = sorted(set(labels))
    values = [number(label) for label in distinct]
    if any(v is None for v in values):
        return distinct
    return [label for _, label in sorted(zip(values, distinct), key=lambda pair: (pair[0] or 0.0, pair[1]))]


def check_present(column: np.ndarray, what: str, advice: str) -> None:
    """Refuse missing cells, with how many and where the first one is."""
    missing = np.flatnonzero(pd.isna(column))
    if missing.size:
        raise InputError(f"{what} is missing in {count(missing.size, 'row')} (first: row {missing[0] + 1}); {advice}")


def _label(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _why(numeric: bool, integers: bool, few: bool, distinct: int) -> str:
    if not numeric:
        return "text"
    if few:
        return "at most 10 distinct integers"
    return f"{distinct} distinct {'integers' if integers else 'numbers'}"


def _regression(column: np.ndarray, what: str, numeric: bool, folds: int, why: str, distinct: int) -> Target:
    if not numeric:
        row, word = next((i + 1, c) for i, c in enumerate(column) if number(c) is None)
        raise InputError(f"task regression needs numbers, but {what} has {show(word)} in row {row}")
    if distinct == 1:
        raise InputError(f"{what} has one value only ({column[0]:g}): expected at least 2")
    if len(column) < max(4, folds):
        raise InputError(f"expected at least {max(4, folds)} rows for {folds} folds, got {len(column)}")
    line = f"task: regression{why}, {column.min():g} to {column.max():g}"
    return Target(column.astype(np.float64), np.ones(len(column), dtype=bool), "regression", (), [line], [])


def _classes(labels: np.ndarray, what: str, task: str, rare: str | None, folds: int, why: str) -> Target:
    least = max(4, folds)
    warnings: list[str] = []
    sizes = pd.Series(labels).value_counts()
    if len(sizes) == 1:
        raise InputError(f"{what} has one class only ({show(labels[0])}): expected at least 2")
    keep = np.ones(len(labels), dtype=bool)
    few = [label for label in in_order(list(sizes.index)) if sizes[label] < least]
    if few:
        members = listing([f"{label}: {sizes[label]}" for label in few], limit=5).replace("'", "")
        if rare is None:
            raise InputError(
                f"{what} has {count(len(few), 'class', 'classes')} with fewer than {least} members ({members}); "
                "choose --rare drop or --rare merge"
            )
        is_rare = np.isin(labels, few)
        total = int(is_rare.sum())
        taken = MERGED in sizes.index and MERGED not in few
        if rare == "merge" and (total >= least or taken):
            labels = np.where(is_rare, MERGED, labels)
            warnings.append(f"{count(len(few), 'rare class', 'rare classes')} ({members}) merged into '{MERGED}'")
        else:
            keep = ~is_rare
            still = ", too few even together," if rare == "merge" else ""
            warnings.append(
                f"{count(len(few), 'rare class', 'rare classes')} ({members}){still} dropped with {count(total, 'row')}"
            )
    kept = labels[keep]
    classes = in_order(kept.tolist())
    if len(classes) < 2:
        raise InputError(
            f"{what} has {'one class' if classes else 'no class'} with {least} members or more: expected at least 2"
        )
    if task == "binary" and len(classes) != 2:
        raise InputError(f"task binary needs 2 classes, but {what} has {len(classes)}: {listing(classes)}")
    if task == "classification":
        task = "binary" if len(classes) == 2 else "multiclass"
    codes = pd.Categorical(kept, categories=classes).codes.astype(np.int64)
    shares = ", ".join(f"{label}: {n}" for label, n in zip(classes[:12], np.bincount(codes)))
    more = ", ..." if len(classes) > 12 else ""
    line = f"task: {task}{why}, {len(classes)} classes ({shares}{more})"
    return Target(codes, keep, task, tuple(classes), [line], warnings)
