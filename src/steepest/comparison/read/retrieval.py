"""The target of a retrieval: labels of classes, or ids of what belongs together, of which whole ones are held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .wording import count

RETRIEVAL = "retrieval"
"""The task: rows of a class shall be each other's nearest."""
LEAST_TRAINED = 4
"""Classes of a training part: two are learned from while two are held out to tune on."""


def least_classes(folds: int) -> int:
    """Classes with two rows or more that so many folds need.

    Two in each test part, and four in each training part, of which two are held out to tune on.

    >>> [least_classes(folds) for folds in (2, 3, 5)]
    [8, 6, 10]
    """
    least = 2 * folds
    while least - -(-least // folds) < LEAST_TRAINED:
        least += 1
    return least


def check_classes(sizes: Sequence[int], folds: int, what: str) -> tuple[str, list[str]]:
    """A line about the classes, and warnings.

    Args:
        sizes: rows of each class.
        folds: of the comparison.
        what: the target, for errors.

    Raises:
        InputError: too few classes with two rows or more for the folds.
    """
    several = int(np.sum(np.asarray(sizes) > 1))
    least = least_classes(folds)
    if several < least:
        fewer = next((own for own in range(folds - 1, 1, -1) if several >= least_classes(own)), None)
        advice = f"; --folds {fewer} is possible" if fewer else ""
        raise InputError(
            f"retrieval holds whole classes out: {folds} folds need at least {least} classes with 2 rows or more, and "
            f"{what} has {several}{advice}"
        )
    alone = len(sizes) - several
    warned = []
    if alone:
        warned.append(
            f"{count(alone, 'class has', 'classes have')} one row: such a row is found by none, so it is no query"
        )
    middle = float(np.median(sizes))
    line = f"task: retrieval, {len(sizes):,} classes with {min(sizes):,} to {max(sizes):,} rows (median {middle:g})"
    return line, warned
