"""Folds that hold whole classes out: what is tested was never trained on."""

from __future__ import annotations

import numpy as np

from ..errors import InputError

HELD_OUT = 2
"""Classes with two rows or more that a test part has at least: of one class every answer is right."""


def class_splits(labels: np.ndarray, parts: int, state: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """``(fit, test)`` positions of ``parts`` splits; the test parts are disjoint in classes and cover the rows.

    Classes with several rows are dealt out in random order, and so are those of one row, which are nobody's answer:
    numbers of classes differ by at most 1 of either kind. There are fewer parts where classes are few.

    Args:
        labels: of each row ``[N]``.
        parts: >= 2.
        state: seed of the order.

    Raises:
        InputError: fewer than 4 classes with several rows.

    >>> [test.tolist() for _, test in class_splits(np.array([7, 7, 8, 8, 9, 9, 5, 5, 1]), 2, 0)]
    [[0, 1, 2, 3, 8], [4, 5, 6, 7]]
    """
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    several, alone = np.flatnonzero(sizes > 1), np.flatnonzero(sizes == 1)
    parts = min(parts, len(several) // HELD_OUT)
    if parts < 2:
        raise InputError(
            f"retrieval holds whole classes out: expected at least 4 classes with 2 rows or more, got {len(several)}"
        )
    rng = np.random.default_rng(state)
    part_of = np.empty(len(sizes), dtype=np.int64)
    for kind in (several, alone):
        part_of[rng.permutation(kind)] = np.arange(len(kind)) % parts
    part_of_row = part_of[codes]
    return [(np.flatnonzero(part_of_row != number), np.flatnonzero(part_of_row == number)) for number in range(parts)]
