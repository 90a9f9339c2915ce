from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.comparison.design.folds import inner_splits, outer_folds
from steepest.comparison.errors import InputError
from steepest.comparison.read import load_table

IRIS = load_table("iris")


def table_of(target, *, task="multiclass", groups=None, times=None):
    frame = IRIS.frame.iloc[np.arange(len(target)) % len(IRIS.frame)].reset_index(drop=True)
    times = None if times is None else np.asarray(times, dtype=np.float64)
    return replace(IRIS, frame=frame, target=np.asarray(target), task=task, groups=groups, times=times)


def same(one, other):
    return all(np.array_equal(a.train, b.train) and np.array_equal(a.test, b.test) for a, b in zip(one, other))


@pytest.mark.parametrize("source", ["iris", "diabetes", "breast_cancer"])
def test_folds_partition_the_rows_in_each_repeat(source):
    table = load_table(source)
    rows = np.arange(len(table.target))
    folds = outer_folds(table, repeats=3, folds=4, seed=7)
    assert [(f.repeat, f.fold) for f in folds] == [(r, f) for r in range(3) for f in range(4)]
    for repeat in range(3):
        tests = [f.test for f in folds if f.repeat == repeat]
        assert np.array_equal(np.sort(np.concatenate(tests)), rows)
        assert max(map(len, tests)) - min(map(len, tests)) <= len(table.classes) or not table.classes
    for f in folds:
        assert np.array_equal(np.sort(np.concatenate([f.train, f.test])), rows)
        assert (np.diff(f.train) > 0).all()
        assert (np.diff(f.test) > 0).all()


def test_folds_are_stratified():
    for f in outer_folds(IRIS, repeats=2, folds=5, seed=0):
        assert np.bincount(IRIS.target[f.test]).tolist() == [10, 10, 10]


def test_same_seed_same_folds_and_others_differ():
    one = outer_folds(IRIS, repeats=2, folds=5, seed=3)
    assert same(one, outer_folds(IRIS, repeats=2, folds=5, seed=3))
    assert not same(one, outer_folds(IRIS, repeats=2, folds=5, seed=4))
    assert not same(one[:5], one[5:])
    assert same(one[:5], outer_folds(IRIS, repeats=1, folds=5, seed=3))
    train = one[0].train
    first, again, other = (inner_splits(IRIS, train, seed=s)[0][1] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.booleans(), st.integers(6, 12))
def test_groups_never_straddle(seed, folds, regression, number):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(90) % number)
    target = rng.standard_normal(90) if regression else rng.integers(0, 3, 90)
    table = table_of(target, task="regression" if regression else "multiclass", groups=groups)
    made = outer_folds(table, repeats=2, folds=folds, seed=seed)
    for f in made:
        assert not set(groups[f.train]) & set(groups[f.test])
        assert len(f.test)
        for wanted in (None, 1, 3):
            if len(set(groups[f.train])) < 2:
                continue
            for fit, valid in inner_splits(table, f.train, seed=seed, folds=wanted):
                assert not set(groups[fit]) & set(groups[valid])
                assert len(fit)
                assert len(valid)
                assert set(fit) | set(valid) == set(f.train)
    for repeat in range(2):
        assert np.array_equal(np.sort(np.concatenate([f.test for f in made if f.repeat == repeat])), np.arange(90))
    assert same(made, outer_folds(table, repeats=2, folds=folds, seed=seed))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=20, max_size=60), st.integers(2, 4), st.booleans())
def test_forward_chaining_never_trains_on_the_future(times, folds, grouped):
    times = np.array([*times, *range(31, 31 + folds + 1)], dtype=np.float64)
    groups = np.arange(len(times)) if grouped else None
    table = table_of(np.arange(len(times)) % 2, task="binary", times=times, groups=groups)
    made = outer_folds(table, repeats=1, folds=folds, seed=0)
    assert len(made) == folds
    for f, later in zip(made, [*made[1:], None]):
        assert times[f.train].max() < times[f.test].min()
        if later is not None:
            assert times[f.test].max() < times[later.test].min()
            assert set(f.train) | set(f.test) == set(later.train)
        if len(np.unique(times[f.train])) > 1:
            ((fit, valid),) = inner_splits(table, f.train, seed=0)
            assert times[fit].max() < times[valid].min()
            assert set(fit) | set(valid) == set(f.train)


def test_the_last_quarter_in_time_is_held_out_whatever_the_folds():
    times = np.random.default_rng(0).permutation(80)
    table = table_of(np.arange(80) % 2, task="binary", times=times)
    for folds in (None, 1, 3):
        ((fit, valid),) = inner_splits(table, np.arange(80), seed=0, folds=folds)
        assert set(times[valid]) == set(range(60, 80))
        assert len(fit) == 60


def test_a_group_of_the_future_is_left_out_of_the_past():
    rows = np.arange(40)
    groups = np.where(rows < 10, rows, rows % 5)
    table = table_of(rows % 2, task="binary", times=rows, groups=groups)
    made = outer_folds(table, repeats=1, folds=3, seed=0)
    assert [f.train.tolist() for f in made] == [[5, 6, 7, 8, 9]] * 3
    ((fit, valid),) = inner_splits(table, rows, seed=0)
    assert (fit.tolist(), valid.tolist()) == ([5, 6, 7, 8, 9], list(range(30, 40)))
    with pytest.raises(InputError, match="no training rows are left"):
        outer_folds(replace(table, groups=rows % 5), repeats=1, folds=3, seed=0)


def test_three_folds_below_500_rows_and_a_quarter_above():
    table = table_of(np.arange(1000) % 4)
    small = inner_splits(table, np.arange(0, 996, 2), seed=0)
    assert len(small) == 3
    assert np.array_equal(np.sort(np.concatenate([v for _, v in small])), np.arange(0, 996, 2))
    ((fit, valid),) = inner_splits(table, np.arange(500), seed=0)
    assert (len(fit), len(valid)) == (375, 125)
    assert np.ptp(np.bincount(table.target[valid])) <= 1
    assert len(inner_splits(table, np.arange(500), seed=0, folds=4)) == 4


@pytest.mark.parametrize("folds", [None, 1, 3])
@pytest.mark.parametrize("members", [1, 2, 3])
def test_every_class_stays_in_each_fit_part(folds, members):
    target = np.zeros(40, dtype=np.int64)
    target[20:] = 1
    target[5 : 5 + members] = 2
    table = table_of(target)
    for seed in range(10):
        for fit, valid in inner_splits(table, np.arange(40), seed=seed, folds=folds):
            assert set(target[fit]) == {0, 1, 2}
            assert not set(fit) & set(valid)
            assert len(fit) + len(valid) == 40


def test_classes_thinner_than_the_folds_do_not_crash():
    table = table_of(np.repeat(np.arange(10), 2))
    folds = outer_folds(table, repeats=1, folds=5, seed=0)
    assert np.array_equal(np.sort(np.concatenate([f.test for f in folds])), np.arange(20))
    assert len(inner_splits(table, np.arange(0, 20, 2), seed=0)) == 3
    assert len(inner_splits(table, np.array([0, 19]), seed=0)) == 2


def test_grouped_folds_keep_every_class_in_training_where_that_can_be():
    target = np.repeat([0, 1, 2], [40, 40, 10])
    groups = np.concatenate([np.arange(80) % 8, [8] * 5, [9] * 5])
    for seed in range(5):
        for f in outer_folds(table_of(target, groups=groups), repeats=1, folds=4, seed=seed):
            assert set(target[f.train]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("table", "options", "expected"),
    [
        (table_of(np.arange(20) % 2, times=np.arange(20)), {"repeats": 2}, "repeats: expected 1 with a time column"),
        (table_of(np.arange(20) % 2, times=np.arange(20) % 5), {}, "need at least 6 distinct times, got 5"),
        (table_of(np.arange(20) % 2, groups=np.arange(20) % 4), {}, "need at least 5 groups, got 4"),
        (table_of(np.arange(4) % 2), {}, "need at least 5 rows, got 4"),
        (IRIS, {"folds": 1}, "folds: expected an integer of at least 2, got 1"),
        (IRIS, {"repeats": 0}, "repeats: expected an integer of at least 1, got 0"),
        (IRIS, {"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        (IRIS, {"folds": 2.5}, "folds: expected an integer"),
    ],
)
def test_what_cannot_be_split_is_refused(table, options, expected):
    with pytest.raises(InputError) as error:
        outer_folds(table, **{"repeats": 1, "folds": 5, "seed": 0, **options})
    assert expected in str(error.value)


def test_what_cannot_be_held_out_is_refused():
    with pytest.raises(InputError, match="at least 2 training rows"):
        inner_splits(IRIS, np.array([3]), seed=0)
    with pytest.raises(InputError, match="all of one group"):
        inner_splits(table_of(np.arange(20) % 2, groups=np.zeros(20, dtype=int)), np.arange(20), seed=0)
