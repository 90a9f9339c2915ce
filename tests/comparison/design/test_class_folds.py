"""Folds that hold whole classes out."""

from __future__ import annotations

import numpy as np
import pytest

from steepest.comparison import InputError
from steepest.comparison.design.class_folds import class_splits
from steepest.comparison.design.folds import inner_splits, outer_folds
from steepest.comparison.read import table_from_arrays
from steepest.comparison.read.retrieval import least_classes


def table(sizes, folds):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(0)
    return table_from_arrays(rng.normal(size=(len(labels), 2)), labels, task="retrieval", folds=folds)


@pytest.mark.parametrize(("sizes", "folds"), [([3] * 10, 5), ([40, *[2] * 9, *[1] * 30], 3), ([5] * 8, 2)])
def test_classes_of_a_test_part_are_nowhere_else(sizes, folds):
    data = table(sizes, folds)
    tested = []
    for fold in outer_folds(data, repeats=2, folds=folds, seed=1):
        train, test = data.target[fold.train], data.target[fold.test]
        assert not set(train) & set(test)
        assert len(train) + len(test) == len(data.target)
        several = [label for label in set(test) if (test == label).sum() > 1]
        assert len(several) >= 2
        if fold.repeat == 0:
            tested += fold.test.tolist()
        for fit, valid in inner_splits(data, fold.train, seed=2):
            assert not set(data.target[fit]) & set(data.target[valid])
            assert set(fit) | set(valid) <= set(fold.train)
            assert sum((data.target[valid] == label).sum() > 1 for label in set(data.target[valid])) >= 2
    assert sorted(tested) == list(range(len(data.target)))


def test_classes_of_one_row_are_shared_out_by_themselves():
    labels = np.concatenate([np.repeat(np.arange(4), 3), np.arange(10, 31)])
    for _, test in class_splits(labels, 2, 0):
        assert sum(label < 4 for label in set(labels[test])) == 2
        assert sum(label >= 10 for label in labels[test]) in (10, 11)


def test_seeds_and_repeats_differ():
    data = table([3] * 20, 5)
    first, again, another = (outer_folds(data, repeats=2, folds=5, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(first, again))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(first, another))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(first[:5], first[5:]))


def test_too_few_classes():
    with pytest.raises(InputError, match="5 folds need at least 10 classes with 2 rows or more, and the target 'target'"
                       " has 9; --folds 4 is possible"):  # fmt: skip
        table([3] * 9 + [1] * 50, 5)
    with pytest.raises(InputError, match=r"3 folds need at least 6 classes .* has 5$"):
        table([3] * 5, 3)
    with pytest.raises(InputError, match="at least 4 classes"):
        class_splits(np.array([0, 0, 1, 1, 2, 2, 3]), 2, 0)
    assert [least_classes(folds) for folds in range(2, 7)] == [8, 6, 8, 10, 12]


def test_ids_keep_their_words():
    frame = np.random.default_rng(0).normal(size=(40, 2))
    ids = [f"p{i // 2}" for i in range(40)]
    data = table_from_arrays(frame, ids, task="retrieval")
    assert data.task == "retrieval"
    assert len(data.classes) == 20
    assert [data.classes[code] for code in data.target] == ids
    assert data.label_dtype == "str"
    assert any("20 classes with 2 to 2 rows" in line for line in data.decisions)
    alone = table_from_arrays(np.vstack([frame, frame[:1]]), [*ids, "only"], task="retrieval")
    assert any("1 class has one row" in line for line in alone.warnings)
