"""Several targets: labels that are all 0/1 (multilabel), or any mix of classes and numbers (multi-task)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .raw import count, show
from .task import Target, read_target


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
    each = [read_target(column, name, folds=folds, comma=comma) for column, name in zip(columns, names)]
    values = [target.values for target in each]
    warnings = [line for target in each for line in target.warnings]
    keep = np.ones(len(columns[0]), dtype=bool)
    if all(target.classes in (("0", "1"), ("False", "True")) for target in each):
        counts = [int(v.sum()) for v in values]
        for name, positive in zip(names, counts):
            least = max(4, folds)
            if min(positive, len(keep) - positive) < least:
                raise InputError(
                    f"the label {show(name)} has {count(positive, 'positive row')} of {len(keep)}: expected at least "
                    f"{least} on either side; leave it out of the target"
                )
        line = f"task: multilabel, {len(each)} labels ({', '.join(f'{n}: {c}' for n, c in zip(names, counts))})"
        parts = tuple(Part(name, "binary", ("0", "1")) for name in names)
        matrix = np.stack(values, 1).astype(np.int64)
        return Target(matrix, keep, "multilabel", tuple(names), [line], warnings), parts
    parts = tuple(Part(name, target.task, target.classes) for name, target in zip(names, each))
    lines = [f"task: multitask, {len(each)} targets"]
    lines += [f"{name}: {line}" for name, target in zip(names, each) for line in target.decisions]
    return Target(np.stack(values, 1).astype(np.float64), keep, "multitask", (), lines, warnings), parts
