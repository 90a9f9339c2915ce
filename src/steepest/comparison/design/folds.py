"""Which rows train and which test: stratified, grouped, or forward in time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ...core.arrays import codes
from ...core.lazy import late
from ..errors import InputError
from ..read import Table
from ..read.retrieval import RETRIEVAL
from .class_folds import class_splits

model_selection = late("sklearn.model_selection")

OUTER, INNER = 0, 1
CLASSES = ("binary", "multiclass")
SMALL = 500
Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Fold:
    """One train/test split: ``train`` and ``test`` are row positions, sorted."""

    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray


def outer_folds(table: Table, *, repeats: int, folds: int, seed: int) -> list[Fold]:
    """The splits that a comparison is scored on.

    Stratified for classes, shuffled for regression, whole classes for retrieval, whole groups with ``groups``. With
    ``times`` the ``folds`` test parts follow each other and each trains on what lies before it, equal times on one
    side; groups of the test part are then left out of the training part.

    Args:
        table: what to split.
        repeats: how often, >= 1; 1 with times.
        folds: parts, >= 2.
        seed: >= 0.

    Returns:
        ``repeats * folds`` folds in order of repeat and fold.

    Raises:
        InputError: for too few rows, groups or distinct times, or repeats with times.

    >>> from steepest.comparison.read import load_table
    >>> len(outer_folds(load_table("iris"), repeats=2, folds=5, seed=0))
    10
    """
    _check("repeats", repeats, 1)
    _check("folds", folds, 2)
    _check("seed", seed, 0)
    rows = np.arange(len(table.target))
    if table.times is not None:
        if repeats != 1:
            raise InputError(
                f"repeats: expected 1 with a time column (folds in time cannot be reshuffled), got {repeats}"
            )
        splits = _forward(table, folds)
        return [Fold(0, i, train, test) for i, (train, test) in enumerate(splits)]
    _check_enough(table, rows, folds)
    out = []
    for repeat in range(repeats):
        splits = _kfold(table, rows, folds, [seed, repeat, 0, OUTER])
        out += [Fold(repeat, i, train, test) for i, (train, test) in enumerate(splits)]
    return out


def inner_splits(
    table: Table, train: np.ndarray, *, seed: int, folds: int | None = None, parts: int = 4
) -> list[Split]:
    """Row positions ``(fit, valid)`` inside ``train``, to tune and stop on.

    One holdout of a quarter, or 3 folds below 500 rows; stratified, groups whole. With times the last quarter is the
    one holdout. A class that would miss in ``fit`` gets half of its ``valid`` rows (at least one) back, except with
    groups or times. Of a retrieval whole classes are held out, two or more.

    Args:
        table: what is split.
        train: row positions.
        seed: >= 0.
        folds: 1 for a holdout, more for so many folds, None for the rule above.
        parts: one of so many is the holdout, except with times.

    Raises:
        InputError: for fewer than 2 rows, or one group only.
    """
    _check("seed", seed, 0)
    train = np.sort(codes("train", train, classes=len(table.target), empty=True))
    if len(train) < 2:
        raise InputError(f"expected at least 2 training rows to hold some out, got {len(train)}")
    if table.times is not None and len(np.unique(table.times[train])) > 1:
        return [_last_quarter(table, train)]
    if folds is None:
        folds = 3 if len(train) < SMALL else 1
    _check("inner folds", folds, 1)
    units = len(train) if table.groups is None else len(np.unique(table.groups[train]))
    if units < 2:
        raise InputError("the rows of a training part are all of one group: expected at least 2 groups to hold one out")
    splits = _kfold(table, train, min(parts if folds == 1 else folds, units), [seed, 0, 0, INNER])
    if folds == 1:
        splits = splits[:1]
    if table.task not in CLASSES or table.groups is not None:
        return splits
    return [_keep_classes(fit, valid, table.target) for fit, valid in splits]


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name}: expected an integer of at least {least}, got {value!r}")


def _check_enough(table: Table, rows: np.ndarray, folds: int) -> None:
    units, what = len(rows), "rows"
    if table.groups is not None:
        units, what = len(np.unique(table.groups)), "groups"
    if units < folds:
        raise InputError(f"folds: {folds} folds need at least {folds} {what}, got {units}")


def _state(entropy: list[int]) -> int:
    return int(np.random.SeedSequence([int(e) for e in entropy]).generate_state(1)[0])


def _kfold(table: Table, rows: np.ndarray, folds: int, entropy: list[int]) -> list[Split]:
    """``folds`` splits of ``rows``; the parts are disjoint and cover them."""
    y = table.target[rows]
    classes = table.task in CLASSES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes thinner than the folds are spread as far as they go
        if table.task == RETRIEVAL:
            splits = class_splits(y, folds, _state(entropy))
        elif table.groups is not None:
            splits = _grouped(y if classes else None, table.groups[rows], folds, entropy)
        elif classes and np.unique(y, return_counts=True)[1].max() >= folds:
            splits = list(
                model_selection.StratifiedKFold(folds, shuffle=True, random_state=_state(entropy)).split(y, y)
            )
        else:
            splits = list(model_selection.KFold(folds, shuffle=True, random_state=_state(entropy)).split(y))
    return [(rows[np.sort(fit)], rows[np.sort(test)]) for fit, test in splits]


def _grouped(y: np.ndarray | None, groups: np.ndarray, folds: int, entropy: list[int]) -> list[Split]:
    """Whole groups; for classes the shares are kept near those of all rows, where no part comes out empty."""
    state = _state(entropy)
    if y is not None and np.unique(y, return_counts=True)[1].max() >= folds:
        splits = list(model_selection.StratifiedGroupKFold(folds, shuffle=True, random_state=state).split(y, y, groups))
        if all(len(fit) and len(test) for fit, test in splits):
            return splits
    return list(model_selection.GroupKFold(folds, shuffle=True, random_state=state).split(groups, groups=groups))


def _forward(table: Table, folds: int) -> list[Split]:
    assert table.times is not None
    distinct, place = np.unique(table.times, return_inverse=True)
    if len(distinct) <= folds:
        raise InputError(f"folds: {folds} folds in time need at least {folds + 1} distinct times, got {len(distinct)}")
    out = []
    for before, after in model_selection.TimeSeriesSplit(folds).split(distinct):
        train = np.flatnonzero(np.isin(place, before))
        test = np.flatnonzero(np.isin(place, after))
        train = _without_groups(table, train, test)
        if len(train) == 0:
            raise InputError("no training rows are left before a test part: its groups are those of all earlier rows")
        out.append((train, test))
    return out


def _without_groups(table: Table, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    if table.groups is None:
        return train
    return train[~np.isin(table.groups[train], table.groups[test])]


def _last_quarter(table: Table, train: np.ndarray) -> Split:
    """The latest rows, about a quarter: the boundary between two distinct times that comes nearest."""
    assert table.times is not None
    times = table.times[train]
    distinct, sizes = np.unique(times, return_counts=True)
    cut = int(np.abs(np.cumsum(sizes)[:-1] - 0.75 * len(train)).argmin())
    valid = train[times > distinct[cut]]
    fit = _without_groups(table, train[times <= distinct[cut]], valid)
    if len(fit) == 0:
        raise InputError(
            "no rows are left to fit on before the held-out quarter: its groups are those of all earlier rows"
        )
    return fit, valid


def _keep_classes(fit: np.ndarray, valid: np.ndarray, target: np.ndarray) -> Split:
    for label in np.setdiff1d(target[valid], target[fit]):
        members = valid[target[valid] == label]
        back = members[: (len(members) + 1) // 2]
        if len(back) == len(valid):
            continue
        fit, valid = np.sort(np.concatenate([fit, back])), np.setdiff1d(valid, back)
    return fit, valid
