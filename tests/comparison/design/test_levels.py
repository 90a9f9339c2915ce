"""The order in which a comparison gets smaller, and training rows that lie within each other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from steepest.comparison.design.context import Context
from steepest.comparison.design.levels import Level, designs, levels_of, prefix, trial_groups
from steepest.comparison.design.settings import Settings
from steepest.comparison.read import table_from_arrays

NAMES = ("cross_entropy", "a", "b", "c", "d")
WHOLE = Settings(NAMES, "cross_entropy", "accuracy", repeats=3, trials=8, epochs=60)


def sizes(settings: Settings, rows: int, typed: tuple[str, ...] = (), classes: int = 2) -> list[tuple[int, ...]]:
    """Repeats, objectives, trials, epochs, rows of each design."""
    found = designs(settings, rows, classes, typed)
    return [(d.repeats, d.objectives, d.level.trials, d.level.epochs, d.level.rows) for d in found]


def test_designs_grow_smaller_one_thing_at_a_time() -> None:
    assert sizes(WHOLE, 5000) == [
        (3, 5, 8, 60, 5000), (1, 5, 8, 60, 5000), (1, 5, 4, 60, 5000), (1, 4, 4, 60, 5000), (1, 3, 4, 60, 5000),
        (1, 3, 4, 30, 5000), (1, 3, 4, 15, 5000), (1, 3, 4, 8, 5000), (1, 3, 3, 8, 5000), (1, 3, 1, 8, 5000),
        (1, 3, 1, 8, 2500), (1, 3, 1, 8, 1250),
    ]  # fmt: skip
    assert sizes(WHOLE, 5000, classes=100)[-1][-1] == 2500  # 20 rows a class
    assert sizes(WHOLE, 900)[-1] == (1, 3, 1, 8, 900)
    assert sizes(Settings(NAMES[:2], "a", "accuracy", repeats=1, trials=2, epochs=6), 50) == [
        (1, 2, 2, 6, 50), (1, 2, 1, 6, 50),
    ]  # fmt: skip


def test_what_was_asked_for_by_name_is_cut_last() -> None:
    found = sizes(WHOLE, 2000, ("trials", "objectives"))
    assert found[:6] == [
        (3, 5, 8, 60, 2000), (1, 5, 8, 60, 2000), (1, 5, 8, 30, 2000), (1, 5, 8, 15, 2000), (1, 5, 8, 8, 2000),
        (1, 5, 8, 8, 1000),
    ]  # fmt: skip
    assert found[6:] == [
        (1, 5, 4, 8, 1000), (1, 4, 4, 8, 1000), (1, 3, 4, 8, 1000), (1, 3, 3, 8, 1000), (1, 3, 1, 8, 1000),
    ]  # fmt: skip
    assert set(found[-1]) == set(sizes(WHOLE, 2000)[-1])


def test_trials_of_equal_rows_and_epochs_are_parted_alike() -> None:
    levels = levels_of(designs(WHOLE, 5000, 2))
    assert trial_groups(levels, Level(5000, 60, 8)) == (4, 8)
    assert trial_groups(levels, Level(5000, 60, 4)) == (4,)
    assert trial_groups(levels, Level(5000, 8, 4)) == (1, 3, 4)
    assert trial_groups(levels, Level(2500, 8, 1)) == (1,)


def test_fewer_rows_lie_within_more_and_keep_the_shares_of_classes() -> None:
    y = np.repeat([0, 1, 2], [700, 297, 3])
    train = np.sort(np.random.default_rng(0).permutation(1000)[:990])
    parts = [prefix(train, y, rows, 5) for rows in (100, 200, 400, 990, 5000)]
    assert [len(part) for part in parts] == [100, 200, 400, 990, 990]
    for small, large in pairwise(parts):
        assert set(small) <= set(large)
        assert np.all(np.diff(small) > 0)
    counts = np.bincount(y[parts[0]], minlength=3)
    assert counts[2] >= min(2, np.sum(y[train] == 2))
    assert abs(counts[0] - 70) <= 3
    assert not np.array_equal(parts[0], prefix(train, y, 100, 6))
    real = prefix(train, y.astype(float), 100, 5)  # numbers have no shares
    assert len(np.unique(real)) == 100


def test_a_context_at_a_level_trains_less_and_tests_the_same_rows(blobs: Callable) -> None:
    table = table_from_arrays(*blobs(300, 3))
    settings = Settings(("cross_entropy", "focal"), "cross_entropy", "accuracy", repeats=1, folds=3)
    context = Context(table, settings)
    assert context.level == Level(200, 60, 8)
    same, fewer = context.at(Level(200, 30, 4)), context.at(Level(80, 30, 1))
    assert (same.level, fewer.level) == (Level(200, 30, 4), Level(80, 30, 1))
    assert (same.capped, fewer.capped) == (False, True)
    assert same.split((0, 0), 0) is context.split((0, 0), 0)  # prepared once
    assert fewer.at(Level(200, 60, 8)).split((0, 1), -1) is context.split((0, 1), -1)
    for pair, fold in context.folds.items():
        assert np.array_equal(fewer.folds[pair].test, fold.test)
        assert set(fewer.folds[pair].train) < set(fold.train)
        assert len(fewer.split(pair, -1).inputs) == 80
        assert torch.allclose(fewer.split(pair, -1).inputs.mean(0), torch.zeros(4), atol=1e-5)  # its own scale
    assert fewer.info((0, 0), -1).epochs == 30
